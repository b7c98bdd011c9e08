"""What a segment should hold: all rows that name it, in the order in which they lie there.

There is no index by place (`docs/decisions/0010-the-ledgers-engine.md`). Only scrubs and collections ask,
for one segment after the other, so one pass over all rows answers for many segments at once, and what it
has found is kept until the runs are others. The rows that no run has yet are few and change all the time;
they are taken apart anew whenever some have been entered.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.ids import BLOCK_ID_BYTES
from replicator.store.ledger.rows import Offsets, columns_of, columns_of_records, ids_of, segments_in
from replicator.store.ledger.run import Run
from replicator.store.ledger.search import scan_runs
from replicator.store.ledger.table import BlockTable

_WINDOW_SEGMENTS: Final = 256
"""Segments whose rows are gathered in one pass over the runs."""
_WINDOW_ROWS_MAX: Final = 1_000_000


class SegmentRows(NamedTuple):
    """The rows that name one segment, by offset. Newer ones may shadow some of them."""

    ids: bytes
    offsets: Offsets


class _Window(NamedTuple):
    """Rows of a range of segments, as some runs have them."""

    runs: tuple[Run, ...]
    segments: range
    rows: dict[int, SegmentRows]


class _Fresh(NamedTuple):
    """The rows of no run."""

    entered: int
    """How many changes the table had seen."""
    ids: npt.NDArray[np.uint8]
    segments: npt.NDArray[np.uint32]
    offsets: Offsets


_NONE: Final = SegmentRows(b"", np.empty(0, np.uint32))


class BySegment:
    """Answers for one table. Not thread-safe: the ledger holds its lock."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._window = _Window((), range(0), {})
        self._fresh = _take_apart(table)

    def rows_of(self, number: int) -> SegmentRows:
        runs = self._table.runs
        if self._window.runs != runs or number not in self._window.segments:
            self._window = _gather(self._table, runs, number)
        if self._fresh.entered != self._table.entered:
            self._fresh = _take_apart(self._table)
        found, fresh = self._window.rows.get(number, _NONE), self._fresh
        of_it = np.flatnonzero(fresh.segments == number)
        offsets = np.concatenate([found.offsets, fresh.offsets[of_it]])
        order = np.argsort(offsets, kind="stable")
        packed = np.frombuffer(found.ids + fresh.ids[of_it].tobytes(), np.uint8).reshape(-1, BLOCK_ID_BYTES)
        return SegmentRows(packed[order].tobytes(), offsets[order])


def _take_apart(table: BlockTable) -> _Fresh:
    entered, rows = table.entered, table.fresh_rows()
    ids = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, BLOCK_ID_BYTES)
    segments, offsets, gone = columns_of_records(b"".join(rows.values()))
    return _Fresh(entered, ids[~gone], segments[~gone], offsets[~gone])


def _gather(table: BlockTable, runs: tuple[Run, ...], first: int) -> _Window:
    """One pass over all rows of the runs, for as many segments from `first` on as memory allows."""
    states = table.segments
    rows, end = 0, first
    while end < first + _WINDOW_SEGMENTS and rows <= _WINDOW_ROWS_MAX:
        state = states.get(end)
        rows += state.live_blocks if state is not None else 0
        end += 1
    ids: list[bytes] = []
    segments: list[npt.NDArray[np.uint32]] = []
    offsets: list[Offsets] = []
    for heads, rests in scan_runs(runs):
        named = segments_in(rests)
        hits = np.flatnonzero((named >= first) & (named < end))
        if len(hits):
            ids.append(ids_of(heads[hits], rests[hits]))
            segments.append(named[hits])
            offsets.append(columns_of(np.ascontiguousarray(rests[hits])).offset)
    window: dict[int, SegmentRows] = {}
    if ids:
        packed = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, BLOCK_ID_BYTES)
        all_segments, all_offsets = np.concatenate(segments), np.concatenate(offsets)
        for number in np.unique(all_segments).tolist():
            of_it = np.flatnonzero(all_segments == number)
            window[number] = SegmentRows(packed[of_it].tobytes(), all_offsets[of_it])
    return _Window(runs, range(first, end), window)
