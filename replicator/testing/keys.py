"""The keys of a site in memory. They outlive its node, as files would."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from replicator.catalog.model import Succession
from replicator.core.ports import Entropy
from replicator.net.identity import Identity


class MemoryKeys:
    """`KeyPlace` from memory."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._current = self.generate()
        self._next: Identity | None = None
        self._remembered: list[Succession] = []

    def load(self) -> Identity:
        return self._current

    def generate(self) -> Identity:
        return Identity(Ed25519PrivateKey.from_private_bytes(self._entropy.token(32)))

    def keep_next(self, fresh: Identity) -> None:
        self._next = fresh

    def has_next(self) -> bool:
        return self._next is not None

    def move_up(self) -> None:
        assert self._next is not None
        self._current, self._next = self._next, None

    def remember(self, one: Succession) -> None:
        self._remembered.append(one)

    def remembered(self) -> list[Succession]:
        return list(self._remembered)
