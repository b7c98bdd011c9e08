"""Finding the truth again after a crash, or after the ledger was lost or set back.

Segments are the truth. For each one the ledger remembers up to which byte it has accounted
for; whatever lies beyond is walked, every block found is opened and proven, and entered. With
no ledger at all that is everything, so recovery and rebuild are the same few lines. A block
that the ledger already knows elsewhere is moved here: this copy has just been proven, and
after a ledger was set back the other one may long be gone.

A torn tail is left where it lies: new blocks go to a new segment, so nothing acknowledged is
ever near a truncation.

What the disk refuses to give is another matter than what is torn: the cable may be tight again
tomorrow. The ledger then accounts for the segment only up to there, and the next opening looks again.
And what is no block at the first look is read once more, from the disk: a bit that was wrong on its
way here would otherwise cost a good block its place in the ledger.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from protocol.errors import ProtocolError
from protocol.limits import BLOCK_BODY_MAX, MIB
from protocol.wire.envelope import HEADER_BYTES, MAGIC, Header, unseal
from replicator.core.logging import get_logger
from replicator.store.ledger import Ledger
from replicator.store.ports import Place
from replicator.store.reading import pread_all
from replicator.store.segments import SEGMENT_HEADER_BYTES, SegmentFiles

_ROWS_MAX: Final = 20_000
_LARGEST: Final = HEADER_BYTES + BLOCK_BODY_MAX
_WINDOW: Final = 32 * MIB
"""Read at once: several times the largest block, so that little is read twice."""
_SECTOR: Final = 4096


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found. `skipped_bytes` are no blocks: torn, damaged, or not given by the disk."""

    segments: int
    blocks: int
    skipped_bytes: int


def replay(files: SegmentFiles, ledger: Ledger) -> Replayed:
    """Enter every sound block that lies beyond what the ledger knows. Safe to repeat, and to be killed in."""
    known = ledger.known_segments()
    touched = found = skipped = 0
    for number in files.numbers():
        start = max(known.get(number, 0), SEGMENT_HEADER_BYTES)
        size = files.size(number)
        if size <= start and number in known:
            continue
        touched += 1
        handle = files.open_to_read(number)
        try:
            # What is entered in the ledger must be on the disk: this may be the page cache of a killed process.
            os.fdatasync(handle)
            rows: list[tuple[Header, Place]] = []
            covered = 0
            unreadable: list[int] = []
            for header, offset in sound_blocks(handle, start, size, unreadable=unreadable):
                rows.append((header, Place(number, offset, header.sealed_bytes)))
                covered += header.sealed_bytes
                if len(rows) >= _ROWS_MAX:
                    ledger.insert(rows, replace=True, accounts_to=min(unreadable, default=None))
                    found, rows = found + len(rows), []
            ledger.insert(rows, replace=True, accounts_to=min(unreadable, default=None))
            found += len(rows)
            skipped += max(0, size - start - covered)
        finally:
            os.close(handle)
        if unreadable:
            get_logger().error(
                "store.unreadable", segment=number, offset=min(unreadable), then="the next start looks again"
            )
        ledger.note_known({number: max(min(unreadable, default=size), start)})
    return Replayed(touched, found, skipped)


def sound_blocks(handle: int, start: int, size: int, *, unreadable: list[int]) -> Iterator[tuple[Header, int]]:
    """Every provable block between two offsets; after damage it looks for the next header that checks out.

    Where the disk did not give everything, the offset from which to walk again is added to `unreadable`.
    """
    at = base = seen_twice_to = start
    data = b""
    while at + HEADER_BYTES <= size:
        if base + len(data) < min(size, at + _LARGEST):
            base, data = at, _read_what_can_be_read(handle, min(_WINDOW, size - at), at, unreadable)
        here = at - base
        try:
            header, _ = unseal(data, here)
        except ProtocolError:
            if min(size, at + _LARGEST) > seen_twice_to:
                # No byte is read more than twice, however much of this only looks like the beginning of a block.
                _drop_cached(handle, at)
                base, data = at, _read_what_can_be_read(handle, min(_WINDOW, size - at), at, unreadable)
                seen_twice_to = at + len(data)
                continue
            following = data.find(MAGIC, here + 1)
            # None in this window: one may begin in its last bytes, and end in the next.
            at = base + following if following >= 0 else max(at + 1, base + len(data) - len(MAGIC) + 1)
            continue
        yield header, at
        at += header.sealed_bytes


def _drop_cached(handle: int, at: int) -> None:
    """Make the next read of a window come from the disk. Where that cannot be had, it is at least another read."""
    page = at - at % mmap.PAGESIZE
    with suppress(OSError):
        os.posix_fadvise(handle, page, _WINDOW + mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)


def _read_what_can_be_read(handle: int, count: int, at: int, unreadable: list[int]) -> bytes:
    """`count` bytes, with zeros for the sectors that the disk does not give: they must not hide the others.

    (Reading through a memory map instead, a bad sector would kill the process.)
    """
    try:
        data = pread_all(handle, count, at)
    except OSError:
        data = b""
    if len(data) == count:
        return data
    # Refused, or less than the file is long: neither says what is there.
    unreadable.append(at)
    return b"".join(
        _read_sector(handle, min(_SECTOR, at + count - begin), begin) for begin in range(at, at + count, _SECTOR)
    )


def _read_sector(handle: int, count: int, at: int) -> bytes:
    try:
        return pread_all(handle, count, at).ljust(count, b"\0")
    except OSError:
        return bytes(count)
