"""One set of blocks, frozen, as a reconciliation wants to see it.

A block's place in the trie is the head of its id, and the ids are in order; so a cell is a run
of rows, whatever its level, and no second index is needed. Upper levels are folded from leaf
cells, deeper ones summed from the few rows in question.

Building is linear (about a second for ten million blocks); a session then touches only what
differs, and the leaf cells a few times. So build once for a snapshot, whose set does not
change, and keep it for as long as sessions use its nonce: 16 bytes a block besides the ids.
"""

from math import ceil, log2
from typing import Final

import numpy as np

from protocol.ids import BLOCK_ID_BYTES
from protocol.merkle.cells import I64, RECORD_BYTES, U64, Cells, Root, Sums, expand_spans, sum_mask, sum_runs
from protocol.merkle.diff import TOP_LEVEL
from protocol.merkle.fold import fold_some
from replicator.index.tokens import Packed, TokenKey, heads

LEAF_BLOCKS_BITS: Final = 4
"""A leaf for every 8 to 16 blocks: 1.3 to 2.5 bytes a block. Deeper cells are summed from the ids when asked for."""
_WIDE_ROWS: Final = 512
"""Cells with more rows are searched one by one, where they lie; smaller ones all at once, in a copy."""


def leaf_level(blocks: int) -> int:
    return max(ceil(log2(max(blocks, 1))) - LEAF_BLOCKS_BITS, TOP_LEVEL)


class FrozenSet:
    """Implements `protocol.machines.reconcile.SummaryView` over packed, ascending, distinct block ids."""

    def __init__(self, ids: Packed, key: TokenKey) -> None:
        assert len(ids) % BLOCK_ID_BYTES == 0
        self._ids = np.frombuffer(ids, np.uint8).reshape(-1, BLOCK_ID_BYTES)
        self._heads = heads(ids)
        assert bool((self._heads[1:] >= self._heads[:-1]).all()), "ids are not in order"
        self._key = key
        lane_a, lane_b = key.tokens(ids)
        self._cells = Cells.from_sorted(leaf_level(len(self._heads)), self._heads, lane_a, lane_b)
        self._root = self._cells.root()
        # Lane B is only needed for a second attempt, which next to no session makes.
        self._lanes: list[U64 | None] = [lane_a, None]

    def root(self) -> Root:
        return self._root

    def whole(self, level: int, *, lane: int) -> Sums:
        if level <= self._cells.level:
            return fold_some(self._cells, level, slice(None), lane=lane)
        return self._sum_rows(level, np.arange(1 << level, dtype=np.uint64), lane=lane)

    def cells(self, level: int, prefixes: U64, *, lane: int) -> Sums:
        if level <= self._cells.level:
            return fold_some(self._cells, level, prefixes, lane=lane)
        return self._sum_rows(level, prefixes, lane=lane)

    def _sum_rows(self, level: int, prefixes: U64, *, lane: int) -> Sums:
        starts, stops = self.spans(level, prefixes)
        rows, edges = expand_spans(starts, stops)
        return Sums(sum_runs(self._lane(lane)[rows], edges), (stops - starts).astype(np.uint64))

    def spans(self, level: int, prefixes: U64) -> tuple[I64, I64]:
        if level == 0:
            return np.zeros(len(prefixes), np.int64), np.full(len(prefixes), len(self._heads), np.int64)
        shift = np.uint64(64 - level)
        firsts = prefixes << shift
        lasts = firsts | np.uint64((1 << int(shift)) - 1)
        starts = np.searchsorted(self._heads, firsts)
        return starts.astype(np.int64), np.searchsorted(self._heads, lasts, side="right").astype(np.int64)

    def find(self, level: int, prefixes: U64, suffixes: U64, *, width: int, lane: int) -> I64:
        tokens, mask = self._lane(lane), sum_mask(width)
        starts, stops = self.spans(level, prefixes)
        is_wide = stops - starts > _WIDE_ROWS
        found = np.full(len(prefixes), -1, np.int64)
        for nth in np.flatnonzero(is_wide):
            start = starts[nth]
            hits = np.flatnonzero((tokens[start : stops[nth]] & mask) == suffixes[nth])
            if len(hits) == 1:
                found[nth] = start + hits[0]
        narrow = np.flatnonzero(~is_wide)
        rows, edges = expand_spans(starts[narrow], stops[narrow])
        cells = np.repeat(narrow, np.diff(edges))
        is_hit = (tokens[rows] & mask) == suffixes[cells]
        hit_cells, hit_rows = cells[is_hit], rows[is_hit]
        found[hit_cells] = hit_rows
        found[np.bincount(hit_cells, minlength=len(found)) > 1] = -1
        return found

    def suffixes(self, rows: I64, *, lane: int) -> U64:
        return self._lane(lane)[rows] & sum_mask(RECORD_BYTES)

    def total(self, rows: I64) -> Root:
        lane_a, lane_b = self._key.tokens(self.ids(rows))
        return Root(len(rows), int(lane_a.sum(dtype=np.uint64)), int(lane_b.sum(dtype=np.uint64)))

    def ids(self, rows: I64) -> bytes:
        return self._ids[rows].tobytes()

    def _lane(self, lane: int) -> U64:
        tokens = self._lanes[lane]
        if tokens is None:
            tokens = self._lanes[lane] = self._key.tokens(self._ids.reshape(-1).data)[lane]
        return tokens
