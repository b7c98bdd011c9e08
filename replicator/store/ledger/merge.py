"""Keeping runs few: which to merge, and the merging.

New runs are small and come one after the other (level 0). Four of them (`ledger_runs_max`) become one
of level 1, and four of those go into the *base* (level 2): one run by content, cut into parts by heads so that
rewriting it needs the space of a part beside it, and not of a second base. A part is merged, entered
in the manifest, and only then the next: what is killed in between has merged some parts, and the
runs above still say the same.

Why so: a look-up asks every run, so there must be few: at most three new ones, three of level 1, and
the one part of the base that can hold an id. A row is written three times until it lies in the base, and
the base again with each three million rows that come later. Next to the blocks themselves, a thousand
times larger, that is little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from replicator.store.ledger.rows import REST_BYTES, Heads, Rests, columns_of, sort_rows
from replicator.store.ledger.run import STRETCH_ROWS, Run

LEVEL_NEW: Final = 0
LEVEL_MIDDLE: Final = 1
LEVEL_BASE: Final = 2
HEAD_END: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Merge:
    """Runs to be replaced, newest first, and by what."""

    sources: tuple[Run, ...]
    base: tuple[Run, ...]
    """The parts of the base that take part, in order; empty for a merge into level 1."""
    level: int


def plan_merge(runs: Sequence[Run], *, runs_max: int) -> Merge | None:
    """What should be merged next; None if nothing has to be. The base first: it is the more urgent."""
    for level in (LEVEL_MIDDLE, LEVEL_NEW):
        full = tuple(run for run in runs if run.level == level)
        if len(full) >= runs_max:
            base = tuple(run for run in runs if run.level == LEVEL_BASE) if level == LEVEL_MIDDLE else ()
            return Merge(full, base, level + 1)
    return None


def merged(
    sources: Sequence[Run], *, first: int, end: int, drop_gone: bool, go_on: Callable[[], None]
) -> Iterator[tuple[Heads, Rests]]:
    """The rows of `sources` (newest first) with heads from `first` up to `end`, in order, one an id.

    `go_on` is called between stretches, and may raise to stop. Raises `LedgerDamaged`.
    """
    readers = [_Reader(run, first, end) for run in sources]
    while any(reader.rows_left for reader in readers):
        go_on()
        # Up to the smallest head that ends somebody's next stretch, so that no id is torn between two.
        until = min(reader.next_head() for reader in readers)
        pieces = [reader.take(until) for reader in readers]
        heads, rests = sort_rows(
            np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])
        )
        if drop_gone:
            stays = ~columns_of(rests).gone
            heads, rests = heads[stays], rests[stays]
        yield heads, rests


class _Reader:
    """A run, read a stretch at a time, each checked before it is copied into another run."""

    def __init__(self, run: Run, first: int, end: int) -> None:
        self._run = run
        self._at = position(run.heads, first)
        self._end = position(run.heads, end)
        self._held_from = self._held_to = 0
        self._held: Rests | None = None

    @property
    def rows_left(self) -> int:
        return self._end - self._at

    def next_head(self) -> int:
        """The head before which everything is within this run's next stretch."""
        reach = self._at + STRETCH_ROWS
        if reach >= self._end:
            return HEAD_END
        head = int(self._run.heads[reach])
        # A whole stretch of one head cannot be ended inside: take all of it.
        return head if head > int(self._run.heads[self._at]) else head + 1

    def take(self, until: int) -> tuple[Heads, Rests]:
        start, stop = self._at, min(position(self._run.heads, until), self._end)
        self._at = max(start, stop)
        return self._run.heads[start : self._at], self._checked(start, self._at)

    def _checked(self, start: int, end: int) -> Rests:
        parts: list[Rests] = []
        while start < end:
            if not self._held_from <= start < self._held_to:
                stretch = start // STRETCH_ROWS
                _, self._held = self._run.stretch(stretch)
                self._held_from = stretch * STRETCH_ROWS
                self._held_to = self._held_from + len(self._held)
            assert self._held is not None
            stop = min(end, self._held_to)
            parts.append(self._held[start - self._held_from : stop - self._held_from])
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate([_NOTHING, *parts])


_NOTHING: Final[Rests] = np.empty((0, REST_BYTES), np.uint8)


def position(heads: Heads, head: int) -> int:
    """How many rows have a smaller head. `head` may be one past the largest."""
    return len(heads) if head >= HEAD_END else int(heads.searchsorted(np.uint64(head)))


def part_bounds(sources: Sequence[Run], *, first: int, end: int, rows_max: int) -> list[tuple[int, int]]:
    """Cut a range of heads so that no piece holds more than about `rows_max` rows."""
    rows = sum(position(run.heads, end) - position(run.heads, first) for run in sources)
    middle = first + (end - first) // 2
    if rows <= rows_max or middle == first:
        return [(first, end)]
    below = part_bounds(sources, first=first, end=middle, rows_max=rows_max)
    return below + part_bounds(sources, first=middle, end=end, rows_max=rows_max)
