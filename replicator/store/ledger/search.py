"""Looking through runs: for some ids, for all ids in order, for all rows in no order."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.store.ledger.merge import HEAD_END, LEVEL_BASE, position
from replicator.store.ledger.rows import (
    HEAD_BYTES,
    REST_BYTES,
    TAIL_BYTES,
    Answer,
    Heads,
    Rests,
    columns_of,
    heads_of,
    ids_of,
    no_answer,
    sort_rows,
)
from replicator.store.ledger.run import Run

_SCAN_ROWS: Final = 65_536
"""Rows held at once when all are gone through: some 3 MiB."""


def ask_runs(runs: Sequence[Run], ids: Sequence[BlockId]) -> Answer:
    """Search all ids in one run after the other; those that are found are asked for no more."""
    packed = b"".join(ids)
    answer = no_answer(len(ids))
    heads = heads_of(packed)
    left = np.argsort(heads)  # Which of `ids` are still looked for, in the order of their heads.
    heads = heads[left]
    asked = _Asked(np.frombuffer(packed, np.uint8).reshape(-1, BLOCK_ID_BYTES)[:, HEAD_BYTES:], answer)
    base = [run for run in runs if run.level == LEVEL_BASE]
    for run in runs[: len(runs) - len(base)]:
        stays = _ask_run(run, asked, heads, left)
        if stays is not None:
            heads, left = heads[stays], left[stays]
    if not base:
        return answer
    # Each id can be in one part only.
    cuts = heads.searchsorted(np.array([part.first_head for part in base], np.uint64)).tolist()
    for part, start, end in zip(base, cuts, [*cuts[1:], len(heads)], strict=True):
        if start < end:
            _ask_run(part, asked, heads[start:end], left[start:end])
    return answer


class _Asked(NamedTuple):
    """What is looked for, and what has been found of it."""

    tails: npt.NDArray[np.uint8]
    answer: Answer


def _ask_run(run: Run, asked: _Asked, heads: Heads, left: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_] | None:
    """Enter what a run has of some ids. Returns which are still looked for; None for all."""
    if not run.rows or not len(heads):
        return None
    at = run.heads.searchsorted(heads)
    hits = np.flatnonzero(run.heads[np.minimum(at, run.rows - 1)] == heads)
    if not len(hits):
        return None
    numbers = left[hits]
    found = run.records(at[hits], asked.tails[numbers])
    numbers, records = numbers[found.known], found.records[found.known]
    asked.answer.known[numbers], asked.answer.records[numbers] = True, records
    stays = np.ones(len(left), dtype=bool)
    stays[hits[found.known]] = False
    return stays


def ids_in_order(fresh: tuple[Heads, Rests], runs: Sequence[Run]) -> Iterator[bytes]:
    """The ids of all rows that are not gone, ascending, joined in batches. `fresh` rows are newer than all runs."""
    return _ids_between(fresh, runs, first=0, end=HEAD_END)


def _ids_between(fresh: tuple[Heads, Rests], runs: Sequence[Run], *, first: int, end: int) -> Iterator[bytes]:
    spans = [(position(heads, first), position(heads, end)) for heads in (fresh[0], *(run.heads for run in runs))]
    middle = first + (end - first) // 2
    if sum(b - a for a, b in spans) > _SCAN_ROWS and middle > first:
        yield from _ids_between(fresh, runs, first=first, end=middle)
        yield from _ids_between(fresh, runs, first=middle, end=end)
        return
    (a, b), *of_runs = spans
    heads, rests = [fresh[0][a:b]], [fresh[1][a:b]]
    for run, (a, b) in zip(runs, of_runs, strict=True):
        if a < b:
            heads.append(run.heads[a:b])
            rests.append(run.rests(a, b))
    all_heads, all_rests = sort_rows(np.concatenate(heads), np.concatenate(rests))
    stays = ~columns_of(all_rests).gone
    if stays.any():
        yield ids_of(all_heads[stays], all_rests[stays])


def scan_runs(runs: Sequence[Run]) -> Iterator[tuple[Heads, Rests]]:
    """Every row, those that newer ones shadow included. For searches: look each hit up again."""
    for run in runs:
        for at in range(0, run.rows, _SCAN_ROWS):
            end = min(at + _SCAN_ROWS, run.rows)
            yield run.heads[at:end], run.rests(at, end)


def sorted_rows(fresh: dict[BlockId, bytes]) -> tuple[Heads, Rests]:
    """The rows of a dictionary as a run would have them. It may grow meanwhile."""
    fresh = dict(fresh)
    ids = np.frombuffer(b"".join(fresh), np.uint8).reshape(-1, BLOCK_ID_BYTES)
    rests = np.empty((len(ids), REST_BYTES), np.uint8)
    rests[:, :TAIL_BYTES] = ids[:, HEAD_BYTES:]
    rests[:, TAIL_BYTES:] = np.frombuffer(b"".join(fresh.values()), np.uint8).reshape(-1, REST_BYTES - TAIL_BYTES)
    return sort_rows(heads_of(ids.tobytes()), rests)
