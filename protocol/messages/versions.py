"""The history of the protocol, newest first, and how two sites agree on a version.

Change a message, and you add a line here, raise `CURRENT`, and freeze new golden bytes.
"""

from typing import Final

from protocol.errors import VersionMismatch

HISTORY: Final = {
    2: "A site tells how fast it may be sent to; copies with terms; receipts for what was pulled; probes for a plan; "
    "introductions and new keys; blocks sent ahead.",
    1: "The first: hello, pairing, snapshot offers and differences, blocks, summaries, repair.",
}

CURRENT: Final = max(HISTORY)
OLDEST: Final = max(1, CURRENT - 1)
"""We speak this version and the one before: sites are never upgraded at the same moment."""


def agree(ours: tuple[int, int], theirs: tuple[int, int]) -> int:
    """The newest version in both ranges, lowest and highest. Raises `VersionMismatch` if there is none."""
    chosen = min(ours[1], theirs[1])
    if chosen < max(ours[0], theirs[0]):
        raise VersionMismatch(f"the peer speaks {theirs[0]} to {theirs[1]}, we speak {ours[0]} to {ours[1]}")
    return chosen
