"""The cells of a set that changes: batches of blocks come and go, and the sums follow.

Kept after the commit that made the change, never before, and in batches: an addition costs a
tenth of a microsecond that way. The set itself is the ledger's; this holds no id.
"""

from math import ceil, log2
from typing import Final

from protocol.merkle.cells import Cells, Root
from protocol.merkle.diff import TOP_LEVEL
from replicator.index.tokens import Packed, TokenKey, heads

LEAF_BLOCKS_BITS: Final = 4
"""A leaf for every 8 to 16 blocks: 1.3 to 2.5 bytes a block. Deeper cells are summed from the ids when asked for."""


def leaf_level(blocks: int) -> int:
    return max(ceil(log2(max(blocks, 1))) - LEAF_BLOCKS_BITS, TOP_LEVEL)


class Summary:
    """Sums that are at every moment those of the set. The caller adds and removes each block once."""

    def __init__(self, key: TokenKey, *, blocks_expected: int) -> None:
        self._key = key
        self._cells = Cells.empty(leaf_level(blocks_expected))
        self._count = 0

    def add(self, ids: Packed) -> None:
        self._cells.add(heads(ids), *self._key.tokens(ids))
        self._count += len(ids) // 32

    def remove(self, ids: Packed) -> None:
        self._cells.remove(heads(ids), *self._key.tokens(ids))
        self._count -= len(ids) // 32
        assert self._count >= 0, "more blocks went than ever came"

    @property
    def is_outgrown(self) -> bool:
        """Leaves have become crowded: rebuild from the ledger, with a level more."""
        return leaf_level(self._count) > self._cells.level

    def root(self) -> Root:
        return self._cells.root()

    def frozen(self) -> Cells:
        """The cells as they are now; later changes do not show."""
        return self._cells.copy()
