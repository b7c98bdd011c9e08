"""Proving all blocks of a segment, as a scrub does: one thread reads ahead, the other opens and hashes.

Why not two threads that do both: a hash of 64 KiB lets go of the interpreter and wants it back ten
microseconds later. Two threads that do so wait for each other more than they work, and took twice
as long together as one of them alone (measured). The reader is away for a whole mebibyte at a
time, and what it reads lies in two buffers that are used again and again.

Stretches that have a sum (`sums`) are hashed as a whole. What does not have its sum is proven block by
block, and what is proven that way gets one.
"""

from bisect import bisect_left
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, wait
from contextlib import closing
from itertools import groupby, pairwise
from typing import Final, NamedTuple

from blake3 import blake3

from protocol.errors import ProtocolError
from protocol.wire.envelope import parse_header
from replicator.core.direct import aligned, page_span
from replicator.store.ports import Fault, Place
from replicator.store.reading import SegmentReader
from replicator.store.segments import STRETCH_MIN, SegmentFiles
from replicator.store.sums import Stretch
from replicator.store.verify import Piece, Wanted, drop_cached, extent, judge, read_alone, read_pieces, runs_of

_SHARED_MIN: Final = 32
"""Fewer blocks than this are proven before a second thread has begun."""
_PART_BYTES: Final = 1 << 20
"""Read and hashed at once: it is still in the processor's own memory when it is hashed."""


class Proven(NamedTuple):
    """What is not sound, and how many reads were right only at the second attempt."""

    faults: list[Fault]
    soft: int


def prove(files: SegmentFiles, wanted: Sequence[Wanted], *, threads: Executor, by_sums: bool = False) -> Proven:
    """Read and prove blocks. `by_sums`: what still has the sum of what was proven before is not opened again."""
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
                found = _Segment(files, number, reader, threads).prove(inside, by_sums=by_sums)
        faults += found.faults
        soft += found.soft
    return Proven(faults, soft)


class _Segment:
    """One that is being proven."""

    def __init__(self, files: SegmentFiles, number: int, reader: SegmentReader, threads: Executor) -> None:
        self._files = files
        self._number = number
        self._reader = reader
        self._threads = threads
        self._soft = 0

    def prove(self, rows: list[Wanted], *, by_sums: bool) -> Proven:
        known = self._files.sums.load(self._number)
        first, end = rows[0][1].offset, rows[-1][1].offset + rows[-1][1].length
        away = [one for one in known if one.start < first or end < one.end]
        agreed: list[Stretch] = []
        if by_sums and len(away) < len(known):
            agreed, rows = self._without_agreeing(rows, [one for one in known if first <= one.start and one.end <= end])
        learned: list[Stretch] = []
        found = self._each(list(runs_of(rows)), learned) if rows else Proven([], 0)
        # Far ones only: one that what was just read reaches into may be as old as what was wrong with it.
        away = [one for one in away if one.end <= first or end <= one.start]
        now = sorted([*away, *agreed, *learned])
        if now != known:
            self._files.sums.save(self._number, now)
        return Proven(found.faults, found.soft + self._soft)

    # -- by sums --------------------------------------------------------------------------

    def _without_agreeing(self, rows: list[Wanted], stretches: list[Stretch]) -> tuple[list[Stretch], list[Wanted]]:
        """The stretches that have their sum and hold what the ledger says, and the rows that lie in none of them."""
        offsets = [place.offset for _, place, _ in rows]
        inside = [
            rows[bisect_left(offsets, stretch.start) : bisect_left(offsets, stretch.end)] for stretch in stretches
        ]
        agreed: list[Stretch] = []
        proven: set[int] = set()
        # Two at a time, for these let go of the interpreter for a whole mebibyte.
        looks = self._threads.map(self._look, stretches, inside)
        for stretch, held, (agrees, is_soft) in zip(stretches, inside, looks, strict=True):
            self._soft += is_soft
            if agrees:
                agreed.append(stretch)
                proven.update(place.offset for _, place, _ in held)
        return agreed, [row for row in rows if row[1].offset not in proven]

    def _look(self, stretch: Stretch, rows: Sequence[Wanted]) -> tuple[bool, bool]:
        """Whether a stretch has its sum and holds these blocks; and whether it had only when it was read once more."""
        for is_again in (False, True):
            if is_again:
                drop_cached(self._files, [Place(self._number, stretch.start, stretch.end - stretch.start)])
            try:
                digest, holds = self._sum_up(stretch, rows)
            except OSError:
                continue
            if digest == stretch.digest:
                return holds, is_again
        return False, False

    def _sum_up(self, stretch: Stretch, rows: Sequence[Wanted]) -> tuple[bytes, bool]:
        # Cut where blocks begin, so that each header is in one part.
        edges = [stretch.start]
        for _, place, _ in rows:
            if place.offset - edges[-1] >= _PART_BYTES:
                edges.append(place.offset)
        parts = list(pairwise([*edges, stretch.end]))
        room = aligned(max(page_span(end - start, start) for start, end in parts))
        hasher, holds, at = blake3(), True, 0
        for start, end in parts:
            data = self._reader.read(end - start, start, into=room)
            hasher.update(data)
            while at < len(rows) and rows[at][1].offset < end:
                holds = holds and _holds(data, start, rows[at])
                at += 1
        return hasher.digest(), holds

    # -- block by block -------------------------------------------------------------------

    def _each(self, runs: list[Sequence[Wanted]], learned: list[Stretch]) -> Proven:
        """Open every block. Sums of runs that are sound are added to `learned`."""
        faults: list[Fault] = []
        soft = 0
        with closing(self._ahead([extent(run) for run in runs])) as reads:
            for run, data in zip(runs, reads, strict=True):
                found = _found(read_alone(self._reader, run) if data is None else judge(run, data))
                faults += found.faults
                soft += found.soft
                start, size = extent(run)
                if data is not None and not found.faults and size >= STRETCH_MIN:
                    learned.append(Stretch(start, start + size, blake3(data).digest()))
        return Proven(faults, soft)

    def _ahead(self, extents: Sequence[tuple[int, int]]) -> Generator[memoryview | None, None, None]:
        """What lies there (offset, size), the next one being read meanwhile; None where the disk refuses.

        Each is overwritten when the one after the next is asked for.
        """
        room = max(page_span(size, offset) for offset, size in extents)
        mine, ahead = aligned(room), aligned(room)

        def read(number: int, into: memoryview) -> memoryview:
            offset, size = extents[number]
            return self._reader.read(size, offset, into=into)

        reading = self._threads.submit(read, 0, ahead)
        try:
            for number in range(len(extents)):
                mine, ahead = ahead, mine
                try:
                    data: memoryview | None = reading.result()
                except OSError:
                    data = None
                if number + 1 < len(extents):
                    reading = self._threads.submit(read, number + 1, ahead)
                yield data
        finally:
            wait([reading])  # It reads from a descriptor that is closed next.


def _holds(data: memoryview, start: int, row: Wanted) -> bool:
    """Whether a block has its header where the ledger says, in bytes that begin at `start` of the segment."""
    block, place, kind = row
    try:
        header = parse_header(data, place.offset - start)
    except ProtocolError:
        return False
    is_it = (header.block_id, header.kind, header.sealed_bytes) == (block, kind, place.length)
    return is_it and place.offset - start + place.length <= len(data)


def _found(pieces: Iterable[Piece]) -> Proven:
    faults: list[Fault] = []
    soft = 0
    for piece in pieces:
        soft += piece.is_soft
        if piece.fault is not None:
            faults.append(piece.fault)
    return Proven(faults, soft)
