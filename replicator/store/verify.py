"""Reading blocks back and proving them, in disk order and in big reads."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.limits import BLOCKS_FRAME_GOAL
from protocol.wire.envelope import Buffer, unseal
from replicator.store.ports import Cause, Fault, Place
from replicator.store.reading import SegmentReader
from replicator.store.segments import SegmentFiles

Wanted = tuple[BlockId, Place, int]
"""What to read: a block, where it should be, and its kind."""

_GAP_MAX: Final = 32 * 1024
"""Reading on over a gap of this size costs less than a second read (measured: 24 µs a call, 3 GB/s cold)."""


_PAGE: Final = 4096
_NOTHING: Final = memoryview(b"")


class Piece(NamedTuple):
    """One block of a run that was read: sound, with its sealed bytes and body, or a fault."""

    wanted: Wanted
    sealed: Buffer
    body: Buffer
    fault: Fault | None
    run: memoryview = _NOTHING
    """All bytes of the run that it was read with."""
    is_soft: bool = False
    """Set on one piece of a run whose first read the disk refused, though all of it can be read."""


@contextmanager
def closing_handle(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)


def drop_cached(files: SegmentFiles, places: Sequence[Place]) -> None:
    """Make the next read of these places come from the disk: wrong bytes may be in memory only (restic#4774).

    Whole pages: the kernel ignores a request for part of one.
    """
    by_segment: dict[int, list[Place]] = {}
    for place in places:
        by_segment.setdefault(place.segment, []).append(place)
    for number, inside in by_segment.items():
        try:
            handle = files.open_to_read(number)
        except OSError:
            continue
        with closing_handle(handle):
            for place in inside:
                start = place.offset // _PAGE * _PAGE
                end = -(-(place.offset + place.length) // _PAGE) * _PAGE
                os.posix_fadvise(handle, start, end - start, os.POSIX_FADV_DONTNEED)


def read_pieces(files: SegmentFiles, wanted: Sequence[Wanted]) -> Iterator[list[Piece]]:
    """Read and prove blocks, a run of neighbours at a time, in the order they lie."""
    ordered = sorted(wanted, key=lambda item: (item[1].segment, item[1].offset))
    at = 0
    while at < len(ordered):
        segment = ordered[at][1].segment
        end = at
        while end < len(ordered) and ordered[end][1].segment == segment:
            end += 1
        yield from _read_segment(files, segment, ordered[at:end])
        at = end


def _read_segment(files: SegmentFiles, segment: int, wanted: Sequence[Wanted]) -> Iterator[list[Piece]]:
    try:
        reader = SegmentReader(files, segment)
    except FileNotFoundError:
        yield [_broken(item, Cause.MISSING) for item in wanted]
        return
    except OSError:
        yield [_broken(item, Cause.UNREADABLE) for item in wanted]
        return
    with reader:
        for run in runs_of(wanted):
            yield _read_run(reader, run)


def runs_of(wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """Cut blocks of one segment, in the order they lie, into runs that are read at once."""
    start = 0
    for at in range(1, len(wanted) + 1):
        if at < len(wanted):
            first, last, following = wanted[start][1], wanted[at - 1][1], wanted[at][1]
            near = following.offset - (last.offset + last.length) <= _GAP_MAX
            small = following.offset + following.length - first.offset <= BLOCKS_FRAME_GOAL
            if near and small:
                continue
        yield wanted[start:at]
        start = at


def extent(run: Sequence[Wanted]) -> tuple[int, int]:
    """Where a run begins, and how many bytes it is long."""
    first, last = run[0][1], run[-1][1]
    return first.offset, last.offset + last.length - first.offset


def _read_run(reader: SegmentReader, run: Sequence[Wanted]) -> list[Piece]:
    offset, size = extent(run)
    try:
        data = reader.read(size, offset)
    except OSError:
        return read_alone(reader, run)
    return judge(run, data)


def read_alone(reader: SegmentReader, run: Sequence[Wanted]) -> list[Piece]:
    """After a read that the disk refused, block by block: one bad sector must not condemn its neighbours."""
    if len(run) == 1:
        return [_broken(run[0], Cause.UNREADABLE)]
    alone = [piece for item in run for piece in _read_run(reader, [item])]
    if all(piece.fault is None for piece in alone):
        alone[0] = alone[0]._replace(is_soft=True)
    return alone


def judge(run: Sequence[Wanted], data: memoryview) -> list[Piece]:
    """Prove what was read of a run: less than all of it, if the file is shorter."""
    first = run[0][1].offset
    pieces: list[Piece] = []
    for item in run:
        block, place, _ = item
        start = place.offset - first
        sealed = data[start : start + place.length]
        if not sealed:
            pieces.append(_broken(item, Cause.MISSING))
            continue
        try:
            header, body = unseal(sealed)
        except ProtocolError:
            cut_short = len(sealed) < place.length
            pieces.append(_broken(item, Cause.MISSING if cut_short else Cause.CORRUPT))
            continue
        if header.block_id != block or header.sealed_bytes != place.length:
            pieces.append(_broken(item, Cause.CORRUPT))
        else:
            pieces.append(Piece(item, sealed, body, None, data))
    return pieces


def _broken(item: Wanted, cause: Cause) -> Piece:
    return Piece(item, b"", b"", Fault(item[0], item[2], cause, item[1]))
