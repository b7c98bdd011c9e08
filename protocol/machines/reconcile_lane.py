"""One lane of one set of blocks: everything a reconciliation computes, and nothing of what it says when.

`SummaryView` is the port to the set itself. What is read off the peer's cells and lists comes
back as values, with the rows of our blocks that the peer turns out to lack.
"""

from typing import Final, NamedTuple, Protocol

import numpy as np

from protocol.machines.reconcile_turn import Answer, Batch, Listed, Places
from protocol.merkle import diff
from protocol.merkle.cells import (
    CHECK_MASK,
    I64,
    SUM_BITS,
    U8,
    U64,
    Flags,
    Root,
    Sums,
    expand_spans,
    mix,
    sum_mask,
    sum_runs,
)
from protocol.merkle.diff import Verdict

_CROWD_MIN: Final = 16
_CROWD_FACTOR: Final = 4
"""By the law of Poisson the fullest of a few thousand cells holds under four times the mean, and sixteen more."""
_SAMPLE_MASK = np.uint64(2 ** (8 * diff.SAMPLE_BYTES) - 1)


class SummaryView(Protocol):
    """A set of blocks that does not change for the length of a session. A *row* is a block's rank by id."""

    def root(self) -> Root: ...
    def whole(self, level: int, *, lane: int) -> Sums:
        """All cells of a level."""

    def cells(self, level: int, prefixes: U64, *, lane: int) -> Sums: ...
    def spans(self, level: int, prefixes: U64) -> tuple[I64, I64]:
        """The first row of each cell, and the row after its last. Level 0 is the whole set."""

    def find(self, level: int, prefixes: U64, suffixes: U64, *, width: int, lane: int) -> I64:
        """For each cell the row of the one block with that suffix; -1 if there is none, or several.

        A suffix is as long as the sum in a record of `width` bytes.
        """

    def suffixes(self, rows: I64, *, lane: int) -> U64: ...
    def total(self, rows: I64) -> Root:
        """The root of a set that has only these rows."""

    def ids(self, rows: I64) -> bytes: ...


class Reading(NamedTuple):
    """What the peer's cells told."""

    states: U8
    asks: U64
    rows: I64


class Match(NamedTuple):
    """What the peer's list told."""

    lacks: Flags
    rows: I64


class LaneReader:
    """Reads the peer's cells against ours."""

    def __init__(self, view: SummaryView, lane: int) -> None:
        self._view, self._lane = view, lane

    def cells(self, places: Places) -> Sums:
        if len(places.prefixes) == 1 << places.level:
            return self._view.whole(places.level, lane=self._lane)
        return self._view.cells(places.level, places.prefixes, lane=self._lane)

    def checks(self, places: Places, *, width: int) -> U64:
        rows, edges = self.rows(places)
        return sum_runs(mix(self._view.suffixes(rows, lane=self._lane) & sum_mask(width)), edges)

    def rows(self, places: Places) -> tuple[I64, I64]:
        """All our rows in these cells, and where each cell begins among them."""
        return expand_spans(*self._view.spans(*places))

    def suffixes(self, rows: I64) -> U64:
        return self._view.suffixes(rows, lane=self._lane)

    def blocks_count(self, places: Places) -> int:
        starts, stops = self._view.spans(*places)
        return int((stops - starts).sum())

    def is_crowded(self, places: Places) -> bool:
        """Whether some cell holds far more than its share: no accident, and no split will part what is in it."""
        starts, stops = self._view.spans(*places)
        sizes = stops - starts
        return bool(sizes.max() > _CROWD_MIN + _CROWD_FACTOR * sizes.mean())

    def find(self, places: Places, suffixes: U64, *, width: int) -> I64:
        return self._view.find(*places, suffixes, width=width, lane=self._lane)

    def sample(self, nonce: bytes, level: int) -> U64:
        prefixes = diff.sample_prefixes(nonce, level)
        return self._view.cells(level, prefixes, lane=self._lane).sums & _SAMPLE_MASK

    def estimate(self, top: Batch, samples: bytes, *, nonce: bytes) -> float:
        """How many blocks differ, from the peer's top cells and samples."""
        verdicts = diff.compare(self.cells(top.places), top.theirs, width=top.width).verdicts
        seen = [diff.Sample(top.places.level, len(verdicts), int(np.count_nonzero(verdicts != Verdict.SAME)), 0.0)]
        theirs = np.frombuffer(samples, np.uint8).astype(np.uint64).reshape(-1, diff.SAMPLE_CELLS)
        for nth, sample in enumerate(theirs):
            level = diff.TOP_LEVEL + 2 + 2 * nth
            differing = int(np.count_nonzero(self.sample(nonce, level) != sample))
            seen.append(diff.Sample(level, diff.SAMPLE_CELLS, differing, diff.SAMPLE_BLIND))
        return diff.estimate(seen)

    def read(self, batch: Batch) -> Reading:
        """Subtract their cells from ours, and say about each what can be said."""
        places, width = batch.places, batch.width
        verdicts, suffixes = diff.compare(self.cells(places), batch.theirs, width=width)
        theirs_empty = places.only(verdicts == Verdict.THEIRS_EMPTY)
        singles = np.flatnonzero(verdicts == Verdict.MINE_SINGLE)
        singles = singles[self._agrees(batch, singles, (np.uint64(0) - mix(suffixes[singles])) & CHECK_MASK)]
        found = self.find(Places(places.level, places.prefixes[singles]), suffixes[singles], width=width)
        asks = np.flatnonzero(verdicts == Verdict.THEIRS_SINGLE)
        asks = asks[self._agrees(batch, asks, mix(suffixes[asks]))]
        same = np.flatnonzero(verdicts == Verdict.SAME)
        same = same[self._agrees(batch, same, np.zeros(len(same), np.uint64))]
        states = np.full(len(verdicts), Answer.OPEN, np.uint8)
        states[same] = Answer.SETTLED
        states[verdicts == Verdict.THEIRS_EMPTY] = Answer.SETTLED
        states[verdicts == Verdict.MINE_EMPTY] = Answer.NONE
        states[singles[found >= 0]] = Answer.SETTLED
        states[asks] = Answer.ASK
        return Reading(states, suffixes[asks], np.concatenate([self.rows(theirs_empty)[0], found[found >= 0]]))

    def _agrees(self, batch: Batch, at: I64, expected: U64) -> Flags:
        """Whether the peer's checks of these cells are ours and `expected` more. True if there are no checks."""
        if batch.checks is None:
            return np.ones(len(at), np.bool_)
        mine = self.checks(Places(batch.places.level, batch.places.prefixes[at]), width=batch.width)
        surplus: U64 = (batch.checks[at] - mine) & CHECK_MASK
        return np.equal(surplus, expected)

    def match(self, listed: Listed) -> Match:
        """Which of the short ids that the peer listed we lack, and which of our rows there it did not list."""
        rows, edges = self.rows(listed.places)
        cells = np.repeat(np.arange(len(edges) - 1, dtype=np.int64), np.diff(edges))
        mine = _keys(cells, self.suffixes(rows))
        theirs = _keys(listed.cells, listed.suffixes)
        return Match(~np.isin(theirs, mine), rows[~np.isin(mine, theirs)])


def _keys(cells: I64, suffixes: U64) -> U64:
    """A suffix means something only within its cell."""
    return (cells.astype(np.uint64) << np.uint64(SUM_BITS)) | suffixes
