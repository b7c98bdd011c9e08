"""Sets of blocks whose ids follow from their heads, so that a hundred million of them fit into memory.

What is real in them: the heads are random and in order, the other 24 bytes look random, the tokens are the product's
own, AES over the whole id, and so are cells, roots, look-ups. What is left out is keeping the ids: the tail of one is
made from its head when somebody wants it. A session never sees the difference.
"""

from typing import Final

import numpy as np

from protocol.ids import BLOCK_ID_BYTES
from protocol.merkle.cells import I64, U8, U64, Cells
from replicator.index.tokens import TokenKey
from replicator.index.view import FrozenSet, leaf_level

_SLICE: Final = 1 << 15
_LANES: Final = BLOCK_ID_BYTES // 8
_GOLDEN: Final = 0x9E3779B97F4A7C15


def random_heads(rng: np.random.Generator, count: int) -> U64:
    """Distinct, in order."""
    heads = np.sort(rng.integers(0, 2**64, count, dtype=np.uint64))
    return np.unique(heads) if bool((heads[1:] == heads[:-1]).any()) else heads


def derived_ids(heads: U64) -> U8:
    """The id of each head: itself, and three words of a counter that is mixed (splitmix64)."""
    words = np.empty((len(heads), _LANES), np.uint64)
    words[:, 0] = heads
    for nth in range(1, _LANES):
        word = heads + np.uint64(nth * _GOLDEN % 2**64)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[:, nth] = word ^ (word >> np.uint64(31))
    return words.astype(">u8").view(np.uint8).reshape(-1, BLOCK_ID_BYTES)


class DerivedSet(FrozenSet):
    """A `FrozenSet` of such ids: 16 bytes a block and its leaf cells, and nothing besides."""

    def __init__(self, heads: U64, key: TokenKey) -> None:  # Not that of `FrozenSet`, which wants all ids at once.
        self._heads = heads
        self._key = key
        lane_a, lane_b = self._tokens()
        self._cells = Cells.from_sorted(leaf_level(len(heads)), heads, lane_a, lane_b)
        self._root = self._cells.root()
        self._lanes = [lane_a.copy(), None]  # Lane B is only wanted for a second attempt: let it go.

    def ids(self, rows: I64) -> bytes:
        return derived_ids(self._heads[rows]).tobytes()

    def _lane(self, lane: int) -> U64:
        tokens = self._lanes[lane]
        if tokens is None:
            tokens = self._lanes[lane] = self._tokens()[lane]
        return tokens

    def _tokens(self) -> U64:
        """Both lanes, a slice of ids at a time."""
        lanes = np.empty((2, len(self._heads)), np.uint64)
        for at in range(0, len(self._heads), _SLICE):
            some = slice(at, at + _SLICE)
            lanes[:, some] = self._key.tokens(derived_ids(self._heads[some]).data.cast("B"))
        return lanes
