"""Proving all blocks of a segment, as a scrub does: one thread reads ahead, the other opens and hashes.

Why not two threads that do both: a hash of 64 KiB lets go of the interpreter and wants it back ten
microseconds later. Two threads that do so wait for each other more than they work, and took twice
as long together as one of them alone (measured). The reader is away for a whole mebibyte at a
time, and what it reads lies in two buffers that are used again and again.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, wait
from itertools import groupby
from typing import Final

from replicator.store.ports import Fault
from replicator.store.segments import SegmentFiles
from replicator.store.verify import Piece, Wanted, closing_handle, extent, judge, read_alone, read_pieces, runs_of

_SHARED_MIN: Final = 32
"""Fewer blocks than this are proven before a second thread has begun."""


def prove(files: SegmentFiles, wanted: Sequence[Wanted], *, threads: Executor) -> tuple[list[Fault], int]:
    """Read and prove blocks. Returns what is not sound, and how many reads were right only at the second attempt."""
    if len(wanted) < _SHARED_MIN:
        return _found(piece for run in read_pieces(files, wanted) for piece in run)
    faults: list[Fault] = []
    soft = 0
    ordered = sorted(wanted, key=lambda item: (item[1].segment, item[1].offset))
    for number, of_it in groupby(ordered, key=lambda item: item[1].segment):
        inside = list(of_it)
        try:
            handle = files.open_to_read(number)
        except OSError:
            found = _found(piece for run in read_pieces(files, inside) for piece in run)
        else:
            with closing_handle(handle):
                found = _prove_segment(handle, list(runs_of(inside)), threads=threads)
        faults += found[0]
        soft += found[1]
    return faults, soft


def _prove_segment(handle: int, runs: Sequence[Sequence[Wanted]], *, threads: Executor) -> tuple[list[Fault], int]:
    size_max = max(extent(run)[1] for run in runs)
    mine, ahead = memoryview(bytearray(size_max)), memoryview(bytearray(size_max))
    faults: list[Fault] = []
    soft = 0
    reading = threads.submit(_read_into, handle, runs[0], ahead)
    try:
        for number, run in enumerate(runs):
            mine, ahead = ahead, mine
            try:
                have: int | None = reading.result()
            except OSError:
                have = None
            if number + 1 < len(runs):
                reading = threads.submit(_read_into, handle, runs[number + 1], ahead)
            found = _found(read_alone(handle, run) if have is None else judge(run, mine[:have]))
            faults += found[0]
            soft += found[1]
    finally:
        wait([reading])  # It reads from a descriptor that is closed next.
    return faults, soft


def _read_into(handle: int, run: Sequence[Wanted], into: memoryview) -> int:
    """Read until the run or the file ends: a short read is legal. Returns how many bytes there are."""
    offset, size = extent(run)
    have = 0
    while have < size and (count := os.preadv(handle, [into[have:size]], offset + have)):
        have += count
    return have


def _found(pieces: Iterable[Piece]) -> tuple[list[Fault], int]:
    faults: list[Fault] = []
    soft = 0
    for piece in pieces:
        soft += piece.is_soft
        if piece.fault is not None:
            faults.append(piece.fault)
    return faults, soft
