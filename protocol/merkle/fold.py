"""Upper levels out of lower ones: a parent is the sum of its children, so no level but one is kept."""

import numpy as np

from protocol.merkle.cells import U64, Cells, Sums


def fold(cells: Cells, level: int) -> Cells:
    """All cells of an upper level. A million leaves take about a millisecond."""
    assert level <= cells.level
    rows = 1 << level
    return Cells(
        level,
        cells.sum_a.reshape(rows, -1).sum(axis=1, dtype=np.uint64),
        cells.sum_b.reshape(rows, -1).sum(axis=1, dtype=np.uint64),
        cells.counts.reshape(rows, -1).sum(axis=1, dtype=np.uint32),
    )


def fold_some(cells: Cells, level: int, prefixes: U64 | slice, *, lane: int) -> Sums:
    """Only the named cells of an upper level, one lane; a slice is folded without copying its leaves."""
    assert level <= cells.level
    rows = 1 << level
    at = prefixes if isinstance(prefixes, slice) else prefixes.astype(np.int64)
    return Sums(
        cells.lane(lane).reshape(rows, -1)[at].sum(axis=1, dtype=np.uint64),
        cells.counts.reshape(rows, -1)[at].sum(axis=1, dtype=np.uint64),
    )
