"""One regular file, read while somebody may be writing it.

A file is looked at before and after; if anything differs it is read again, and after a few
times it is taken as it was last read, and said to be so.

What the file system says of holes is believed under the same condition, and not for a file
that was touched a moment ago. It saves reading, and never decides where a piece ends.
"""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import block_id
from replicator.catalog.manifest.entries import SEPARATOR
from replicator.ingest.attributes import Attributes, Complaint, read_attributes
from replicator.ingest.cutter import Cutter, Piece, PieceList
from replicator.ingest.still import stamp

ATTEMPTS_MAX: Final = 3
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK, a file that was replaced by a pipe would hold up its thread for ever."""


@dataclass(slots=True)
class Content:
    """What a file held, and what it looked like while it was read."""

    status: os.stat_result
    pieces: PieceList
    attributes: Attributes
    complaints: list[Complaint]
    """What could not be read of its attributes."""
    bytes_read: int
    has_changed: bool


class Folders:
    """The open folders along one path. Paths that come in key order share most of them."""

    def __init__(self, root_handle: int) -> None:
        self._root_handle = root_handle
        self._open: list[tuple[bytes, int]] = []

    def open(self, parts: Sequence[bytes]) -> int:
        """The folder of that path below the root, with no link on the way. It is ours: do not close it."""
        shared = 0
        while shared < min(len(parts), len(self._open)) and self._open[shared][0] == parts[shared]:
            shared += 1
        self._close_from(shared)
        for part in parts[shared:]:
            above = self._open[-1][1] if self._open else self._root_handle
            self._open.append((part, os.open(part, _FOLDER, dir_fd=above)))
        return self._open[-1][1] if self._open else self._root_handle

    def _close_from(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def close(self) -> None:
        self._close_from(0)


class OpenFile:
    """One file, read and cut window by window. Blocking."""

    def __init__(self, handle: int, cutter: Cutter, *, window_bytes: int, hole_before_ns: int) -> None:
        self.handle = handle
        self._cutter = cutter
        self._window_bytes = window_bytes
        self.before = os.fstat(handle)
        if not stat.S_ISREG(self.before.st_mode):
            raise FileNotFoundError("is no longer a regular file")
        size = self.before.st_size
        has_holes = self.before.st_blocks * 512 < size
        self._trusts_holes = has_holes and stamp(self.before).newest_ns < hole_before_ns
        self._end = size
        self._at = 0
        self.bytes_read = 0

    def next_window(self) -> list[Piece] | None:
        """The next pieces; None at the end."""
        if self._at >= self._end:
            return None
        if self._trusts_holes and self._at % self._cutter.cell_bytes == 0 and (hole := self._hole_bytes()):
            self._at += hole
            return [(hole, None)]
        wanted = min(self._window_bytes - self._at % self._cutter.cell_bytes, self._end - self._at)
        data = _read(self.handle, wanted, self._at)
        self.bytes_read += len(data)
        if len(data) < wanted:
            self._end = self._at + len(data)  # It became shorter: `held_still` will say so.
        pieces = self._cutter.cut(data, at=self._at, is_end=self._at + len(data) == self._end)
        self._at += sum(length for length, _ in pieces)
        return pieces

    def _hole_bytes(self) -> int:
        try:
            data_at = os.lseek(self.handle, self._at, os.SEEK_DATA)
        except OSError:
            return self._end - self._at  # ENXIO: nothing but a hole from here on.
        data_at = min(data_at, self._end)
        return max(data_at - data_at % self._cutter.cell_bytes - self._at, 0)

    def held_still(self) -> bool:
        return stamp(os.fstat(self.handle)) == stamp(self.before)


def open_file(folders: Folders, key: bytes) -> int:
    """A handle of the regular file of that key. Raises `OSError`."""
    *parents, name = key.split(SEPARATOR)
    return os.open(name, _FILE, dir_fd=folders.open(parents))


def read_file(
    folders: Folders,
    key: bytes,
    bodies: dict[BlockId, Buffer],
    *,
    opened: Callable[[int], OpenFile],
    spill: Callable[[int], None],
) -> Content:
    """Read one file to its end. Its pieces come into `bodies`. Raises `OSError`.

    `spill` is told after each window how much of this file is in `bodies`, and may take it out.
    """
    for attempt in range(1, ATTEMPTS_MAX + 1):
        handle = open_file(folders, key)
        try:
            content = _read_open(opened(handle), bodies, spill)
        finally:
            os.close(handle)
        if not content.has_changed or attempt == ATTEMPTS_MAX:
            break
    return content


def _read_open(file: OpenFile, bodies: dict[BlockId, Buffer], spill: Callable[[int], None]) -> Content:
    pieces = PieceList()
    while (window := file.next_window()) is not None:
        for length, block in named(window, bodies):
            pieces.add(length, block)
        spill(pieces.size)
    return ended(file, pieces)


def ended(file: OpenFile, pieces: PieceList) -> Content:
    """What became of a file of which all windows have been read."""
    attributes, complaints = read_attributes(file.handle)
    return Content(file.before, pieces, attributes, complaints, file.bytes_read, not file.held_still())


def named(window: Sequence[Piece], bodies: dict[BlockId, Buffer]) -> list[tuple[int, BlockId]]:
    named: list[tuple[int, BlockId]] = []
    for length, body in window:
        if body is None:
            named.append((length, ZERO_BLOCK))
        else:
            name = block_id(0, body)
            bodies[name] = body
            named.append((length, name))
    return named


def _read(handle: int, size: int, offset: int) -> bytes:
    """`pread` until `size` bytes or the end of the file: a short read is legal."""
    data = os.pread(handle, size, offset)
    while data and len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
        data += more
    return data
