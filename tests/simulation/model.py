"""What the world ought to remember, kept outside of it.

The product is never asked what is right. The content of every version that a source ever had is
kept here, and says its own number; what was once seen in a catalogue is written down; and what
operators deleted, held and damaged.
"""

import random
from dataclasses import dataclass, field

from protocol.ids import BlockId
from replicator.catalog.model import Snapshot

Content = dict[str, bytes] | bytes
_POOL = 40
"""So many different pieces there are in the whole world: sites share some, as real ones do."""


class Violation(Exception):
    """A promise was broken."""


@dataclass(slots=True)
class SiteModel:
    """What one site owes."""

    seen: dict[bytes, Snapshot] = field(default_factory=dict)
    """Snapshots that were once in its catalogue: it has acknowledged them."""
    deleted: set[bytes] = field(default_factory=set)
    held: dict[bytes, str] = field(default_factory=dict)
    damaged: set[BlockId] = field(default_factory=set)
    """Blocks that a fault has hit here. Nothing else may be broken."""
    lost_catalogs: int = 0
    looked_at: tuple[object, int] | None = None
    """The database and how far it had been changed when all of its catalogue was last written down here."""
    paths: dict[bytes, str] = field(default_factory=dict)
    """What each volume that was ever protected here is of."""


class Sources:
    """The contents of all sources, by version."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"pool {seed}")
        self._pool = [chance.randbytes(chance.randrange(200, 9000)) for _ in range(_POOL)]
        self._pool[0] = bytes(8192)
        self._pool[1] = b"all the same line\n" * 300
        self.versions: dict[int, Content] = {}

    def make(self, kind: str, chance: random.Random) -> Content:
        """A first version."""
        return self._enter({} if kind == "tree" else b"", chance, changes=12)

    def change(self, content: Content, chance: random.Random) -> Content:
        """The next version: a few pieces differ."""
        return self._enter(content, chance, changes=chance.randint(1, 4))

    def _enter(self, content: Content, chance: random.Random, *, changes: int) -> Content:
        number = len(self.versions) + 1
        if isinstance(content, dict):
            tree = dict(content)
            for _ in range(changes):
                name = f"{chance.choice(('a', 'a/b', 'c'))}/{chance.randrange(12)}.bin"
                if chance.random() < 0.15:
                    tree.pop(name, None)
                else:
                    tree[name] = self._piece(chance)
            tree["version"] = str(number).encode()
            self.versions[number] = tree
        else:
            image = bytearray(content or bytes(16 * 4096))
            for _ in range(changes):
                at = chance.randrange(1, 16) * 4096
                image[at : at + 4096] = self._piece(chance)[:4096].ljust(4096, b"\0")
            image[:8] = number.to_bytes(8, "big")
            self.versions[number] = bytes(image)
        return self.versions[number]

    def _piece(self, chance: random.Random) -> bytes:
        return b"".join(chance.choice(self._pool) for _ in range(chance.randint(1, 3)))

    def check(self, found: Content, what: str) -> int:
        """The number of the version that this is. Raises `Violation` if it is none."""
        number = int(found.get("version", b"0")) if isinstance(found, dict) else int.from_bytes(found[:8], "big")
        if self.versions.get(number) != found:
            raise Violation(f"{what} gave back bytes that were never there (it says version {number})")
        return number
