"""Proving all blocks of a segment, as a scrub does: one thread reads ahead, the other opens and hashes.

Why not two threads that do both: a hash of 64 KiB lets go of the interpreter and wants it back ten
microseconds later. Two threads that do so wait for each other more than they work, and took twice
as long together as one of them alone (measured). The reader is away for a whole mebibyte at a
time, and what it reads lies in two buffers that are used again and again.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, wait
from itertools import groupby
from typing import Final

from replicator.core.direct import aligned, page_span
from replicator.store.ports import Fault
from replicator.store.reading import SegmentReader
from replicator.store.segments import SegmentFiles
from replicator.store.verify import Piece, Wanted, extent, judge, read_alone, read_pieces, runs_of

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
            reader = SegmentReader(files, number)
        except OSError:
            found = _found(piece for run in read_pieces(files, inside) for piece in run)
        else:
            with reader:
                found = _prove_segment(reader, list(runs_of(inside)), threads=threads)
        faults += found[0]
        soft += found[1]
    return faults, soft


def _prove_segment(
    reader: SegmentReader, runs: Sequence[Sequence[Wanted]], *, threads: Executor
) -> tuple[list[Fault], int]:
    room = max(page_span(size, offset) for offset, size in map(extent, runs))
    mine, ahead = aligned(room), aligned(room)

    def read(run: Sequence[Wanted], into: memoryview) -> memoryview:
        offset, size = extent(run)
        return reader.read(size, offset, into=into)

    faults: list[Fault] = []
    soft = 0
    reading = threads.submit(read, runs[0], ahead)
    try:
        for number, run in enumerate(runs):
            mine, ahead = ahead, mine
            try:
                data: memoryview | None = reading.result()
            except OSError:
                data = None
            if data is None:
                # In this thread, before the next one is read: a reader does one thing at a time.
                pieces = read_alone(reader, run)
            if number + 1 < len(runs):
                reading = threads.submit(read, runs[number + 1], ahead)
            if data is not None:
                pieces = judge(run, data)
            found = _found(pieces)
            faults += found[0]
            soft += found[1]
    finally:
        wait([reading])  # It reads from a descriptor that is closed next.
    return faults, soft


def _found(pieces: Iterable[Piece]) -> tuple[list[Fault], int]:
    faults: list[Fault] = []
    soft = 0
    for piece in pieces:
        soft += piece.is_soft
        if piece.fault is not None:
            faults.append(piece.fault)
    return faults, soft
