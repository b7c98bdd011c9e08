"""Reading one segment: long runs past the page cache unless they are in it, the rest through it."""

import os
import threading
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from protocol.limits import MIB
from replicator.core.direct import Cached, read_long
from replicator.store.segments import SegmentFiles

_WINDOW_BYTES: Final = 8 * MIB
"""Asked about at once, whether it is in the cache."""


class SegmentReader:
    """A segment, open to be read until the block is left. Opened afresh, so that a file that was replaced is noticed.

    Raises `OSError` if it cannot be opened. Two threads may read at once.
    """

    def __init__(self, files: SegmentFiles, number: int) -> None:
        self._lock = threading.Lock()
        self._files = files
        self._number = number
        self._handle = files.open_to_read(number)
        self._direct: int | None = None
        self._cached: Cached | None = None
        self._in_cache: dict[int, bool] = {}
        self._has_tried = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        if self._direct is not None:
            os.close(self._direct)

    def read(self, size: int, offset: int, *, into: memoryview | None = None) -> memoryview:
        """Up to `size` bytes from `offset` on: fewer only where the segment ends. Raises `OSError`.

        `into`, if given, is used instead of fresh memory: it begins at the border of a page, and has room for
        the whole pages around the run (`page_span`).
        """
        if size >= self._files.long_run_bytes and (direct := self._past_cache(size, offset)) is not None:
            return read_long(self._handle, direct, size, offset, into=into)
        if into is None:
            return memoryview(pread_all(self._handle, size, offset))
        have = 0
        while have < size and (count := os.preadv(self._handle, [into[have:size]], offset + have)):
            have += count
        return into[:have]

    def _past_cache(self, size: int, offset: int) -> int | None:
        """The descriptor to read a long run with. None if the run goes through the cache: it is there already."""
        with self._lock:
            if not self._has_tried:
                self._has_tried = True
                self._direct = self._files.open_past_cache(self._number)
                if self._direct is not None:
                    with suppress(OSError, ValueError):
                        self._cached = Cached(self._handle)
        if self._cached is None:
            return self._direct
        window = offset // _WINDOW_BYTES
        if window not in self._in_cache:
            self._in_cache[window] = self._cached.holds(_WINDOW_BYTES, window * _WINDOW_BYTES)
        return None if self._in_cache[window] else self._direct


def pread_all(handle: int, size: int, offset: int) -> bytes:
    """`pread` until `size` bytes or the end of the file: a short read is legal."""
    data = os.pread(handle, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    have = len(data)
    while have < size and (more := os.pread(handle, size - have, offset + have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)
