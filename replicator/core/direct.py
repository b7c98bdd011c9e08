"""Past the page cache: moving long runs between a file and our memory without a copy in the kernel.

A backup reads and writes each byte once, and most of it is not looked at again for days. Through the
page cache each of them costs a copy, and a page of memory that somebody else had a use for. On a
virtual machine a page that the guest has not touched for a while costs far more than the copy: the
host has to find it first (measured: 2 GiB written by `dd` took 0.2 s of system time past the cache,
0.6 s into pages that were just freed, 5.8 s into fresh ones). docs/decisions/0022.

The kernel asks for whole pages, in the file and in memory. What of a run lies in a page that it
shares with its neighbours goes through the cache, as everything does on a file system that knows
no O_DIRECT. So no page is written both ways, and Linux keeps the two ways coherent for readers.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from protocol.limits import KIB, MIB

PAGE: Final = 4096
"""What offsets, lengths and addresses are multiples of: enough for every disk with sectors of up to 4 KiB."""
LONG_RUN_BYTES: Final = 256 * KIB
"""Shorter runs are better off in the cache: a trip to the disk would take longer than all copies together."""
_ROOM_BYTES: Final = 8 * MIB
_Buffer = bytes | bytearray | memoryview
_LIBC: Final = ctypes.CDLL(None)
_REFUSALS: Final = (errno.EINVAL, errno.EOPNOTSUPP)


def open_direct(path: Path, flags: int) -> int | None:
    """A descriptor that goes past the cache; None where the file system has no such thing. Raises `OSError`."""
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno in _REFUSALS:
            return None
        raise


def aligned(size: int) -> memoryview:
    """Fresh memory that begins at the border of a page.

    From the heap, not from `mmap`: the heap keeps what was freed, and hands it out again without a page fault.
    """
    memory = bytearray(size + PAGE)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % PAGE
    return memoryview(memory)[skip : skip + size]


def read_long(handle: int, direct: int, size: int, offset: int, *, into: memoryview | None = None) -> memoryview:
    """Up to `size` bytes from `offset` on: fewer only where the file ends. Raises `OSError`.

    `direct` is `handle` opened past the cache. `into` begins at a page and has `page_span` bytes; without it the
    memory is fresh.
    """
    start = offset // PAGE * PAGE
    span = page_span(size, offset)
    view = aligned(span) if into is None else into[:span]
    have = 0
    while have < span:
        try:
            count = os.preadv(direct, [view[have:]], start + have)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            break
        have += count
        if not count or have % PAGE:
            break
    wanted = offset - start + size
    # The rest, if anything is odd: a cut in the middle of a page, or a file that was thought to be longer.
    while have < wanted and (count := os.preadv(handle, [view[have:wanted]], start + have)):
        have += count
    return view[offset - start : max(offset - start, min(have, wanted))]


class Cached:
    """Says what of an open file is in the page cache, and reads nothing to find out. Raises `OSError`, `ValueError`."""

    def __init__(self, handle: int) -> None:
        # Private and writable, because only the address of a writable map can be had; nothing ever looks into it.
        self._map = mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def holds(self, size: int, offset: int) -> bool:
        """Whether bytes are there, judged by some of their pages: to ask about each costs as much as reading them."""
        first, last = offset // PAGE, (min(offset + size, len(self._map)) - 1) // PAGE
        return all(self._is_here(first + (last - first) * part // _SAMPLES) for part in range(_SAMPLES + 1))

    def _is_here(self, page: int) -> bool:
        if not 0 <= page * PAGE < len(self._map):
            return False
        answer = ctypes.c_ubyte()
        if _LIBC.mincore(ctypes.c_void_p(self._address + page * PAGE), ctypes.c_size_t(PAGE), ctypes.byref(answer)):
            return False
        return bool(answer.value & 1)


_SAMPLES: Final = 3


def page_span(size: int, offset: int) -> int:
    """How long the whole pages around a run are."""
    return -(-(offset + size) // PAGE) * PAGE - offset // PAGE * PAGE


class LongWriter:
    """Writes runs to the file that is open, whole pages of long ones past the cache. Not thread-safe.

    One for many files, one after the other, for its memory is used again and again.
    """

    def __init__(self, *, long_run_bytes: int = LONG_RUN_BYTES) -> None:
        self._long_run_bytes = long_run_bytes
        self._room: memoryview | None = None

    def write(
        self,
        handle: int,
        direct: int | None,
        run: Sequence[_Buffer],
        offset: int,
        *,
        tell: Callable[[_Buffer], object] | None = None,
    ) -> None:
        """Write all of `run` at `offset`. A short write is legal, and is carried on. Raises `OSError`.

        `tell` is called with everything that is written, in order, in as few parts as there are.
        """
        total = sum(map(len, run))
        whole_pages = (offset + total) // PAGE * PAGE - -(-offset // PAGE) * PAGE
        if direct is None or whole_pages < self._long_run_bytes:
            if tell is not None:
                for piece in run:
                    tell(piece)
            write_all(handle, run, offset)
            return
        if self._room is None:
            self._room = memoryview(mmap.mmap(-1, _ROOM_BYTES))
        room = self._room
        begin = filled = offset % PAGE
        at = offset - begin  # Where the first byte of `room` belongs in the file.
        for piece in run:
            rest = memoryview(piece)
            while rest:
                count = min(len(rest), len(room) - filled)
                room[filled : filled + count] = rest[:count]
                filled += count
                rest = rest[count:]
                if filled == len(room):
                    if tell is not None:
                        tell(room[begin:filled])
                    self._put(handle, direct, room[begin:filled], at + begin)
                    at, begin, filled = at + filled, 0, 0
        if filled > begin:
            if tell is not None:
                tell(room[begin:filled])
            self._put(handle, direct, room[begin:filled], at + begin)

    def _put(self, handle: int, direct: int, data: memoryview, offset: int) -> None:
        head = min(-offset % PAGE, len(data))
        end = head + (len(data) - head) // PAGE * PAGE
        done = head
        while done < end:
            try:
                count = os.pwrite(direct, data[done:end], offset + done)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                break
            done += count
            if not count or count % PAGE:
                break
        if head:
            write_all(handle, [data[:head]], offset)
        if done < len(data):
            write_all(handle, [data[done:]], offset + done)


def write_all(handle: int, run: Sequence[_Buffer], offset: int) -> None:
    """`pwritev` until every byte is written: a short write is legal and happens near a full disk."""
    total = sum(map(len, run))
    written = os.pwritev(handle, run, offset)
    if written == total:
        return
    rest = memoryview(b"".join(run))[written:]
    while rest:
        count = os.pwrite(handle, rest, offset + total - len(rest))
        rest = rest[count:]
