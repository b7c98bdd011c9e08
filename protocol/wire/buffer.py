"""Bytes that have arrived and are not yet parsed.

What arrives is kept as the pieces it came in, and joined only when a whole frame is there:
a frame of a mebibyte is copied once, and a half frame costs nothing until the rest arrives.
Small pieces are gathered into larger ones, or a peer that sends byte by byte would make us
keep forty bytes of objects for each of its own.
"""

from collections import deque
from typing import Final

_SMALL: Final = 1024
_GATHERED_MAX: Final = 64 * 1024


class ReceiveBuffer:
    """A queue of byte pieces that is read in exact amounts."""

    __slots__ = ("_pieces", "_size", "_start")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._size = 0
        self._start = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        if len(data) >= _SMALL:
            self._pieces.append(data)
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) < _GATHERED_MAX:
            last += data
        elif data:
            self._pieces.append(bytearray(data))

    def take(self, count: int) -> bytes | None:
        """Exactly `count` bytes, or None (and nothing is consumed) while there are fewer."""
        if count > self._size:
            return None
        parts: list[bytes | bytearray | memoryview] = []
        missing = count
        while missing:
            piece = self._pieces[0]
            rest = len(piece) - self._start
            if rest <= missing:
                parts.append(memoryview(piece)[self._start :] if self._start else piece)
                self._pieces.popleft()
                self._start = 0
                missing -= rest
            else:
                parts.append(memoryview(piece)[self._start : self._start + missing])
                self._start += missing
                missing = 0
        self._size -= count
        return b"".join(parts)
