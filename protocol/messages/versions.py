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


def agree(low: int, high: int) -> int:
    """The newest version that both we and a peer speaking `low`..`high` know. Raises `VersionMismatch`."""
    chosen = min(high, CURRENT)
    if chosen < max(low, OLDEST):
        raise VersionMismatch(f"the peer speaks {low} to {high}, we speak {OLDEST} to {CURRENT}")
    return chosen
