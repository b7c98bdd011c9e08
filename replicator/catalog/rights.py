"""What a peer may ask of this site, in words that an operator can list.

A site that was paired by code may do what keeping copies for each other takes. One that was
introduced by another peer may do nothing until someone here says so, in person or by what the
introducer's own rights say about those it introduces.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from replicator.core.errors import UsageError

WORDS: Final = {
    "offer": "send us snapshots, and ask beforehand which blocks we lack",
    "read": "read snapshots that one of our syncs names for it, that are its own, or of volumes listed for it",
    "read-all": "read every snapshot that is here",
    "repair": "ask for sound copies of blocks that have rotted there",
    "audit": "compare by Merkle summaries what both sides hold of a snapshot",
    "retain": "say which of its copies are kept here; at first as it likes, from then on only more of them",
    "introduce": "vouch for other sites",
}
PAIRED: Final = frozenset({"offer", "read", "repair", "audit"})


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """What one peer may do."""

    may: frozenset[str] = frozenset()
    volumes: frozenset[str] = frozenset()
    """Hex ids of volumes that it may read although no sync names them for it."""
    introduced: frozenset[str] = frozenset()
    """What a site may do that this peer has vouched for."""

    def changed(
        self,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        volumes: Iterable[str] = (),
        introduced: Iterable[str] | None = None,
    ) -> "Rights":
        """Raises `UsageError` for a word that is not a right."""
        given, taken = check_words(allow), check_words(deny)
        passed_on = self.introduced if introduced is None else check_words(introduced)
        return Rights(
            may=(self.may | given) - taken,
            volumes=frozenset() if "read" in taken else self.volumes | frozenset(volumes),
            introduced=passed_on,
        )


BY_CODE: Final = Rights(may=PAIRED)
"""What a site that was paired by code begins with."""


def check_words(words: Iterable[str]) -> frozenset[str]:
    chosen = frozenset(words)
    if unknown := chosen - WORDS.keys():
        raise UsageError(f"{sorted(unknown)[0]!r} is not a right.", hint=f"Rights: {', '.join(WORDS)}.")
    return chosen


def encode_rights(rights: Rights) -> str:
    return msgspec.json.encode(rights).decode()


def decode_rights(text: str) -> Rights:
    return msgspec.json.decode(text, type=Rights)
