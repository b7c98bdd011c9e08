"""Reading regular files while somebody may be writing them.

A file is looked at before and after; if anything differs it is read again, and after a few
times it is stored as it was last read, and named. A path that is gone or forbidden by the
time we come to it is an answer, not a failure.

What the file system says of holes is believed under the same condition, and not for a file
that was touched a moment ago. It saves reading, and never decides where a piece ends.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeGuard

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.entries import SEPARATOR
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import Cutter, Piece, PieceList
from replicator.ingest.scan import Found, Scan, Step, reason
from replicator.ingest.sealer import Sealer
from replicator.ingest.still import RACY_NS, stamp

ATTEMPTS_MAX: Final = 3
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK, a file that was replaced by a pipe would hold up its thread for ever."""

Attributes = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class FileRead:
    """One regular file as it was read, or why it was not."""

    found: Found
    status: os.stat_result
    pieces: PieceList = field(default_factory=PieceList)
    attributes: Attributes = ()
    bytes_read: int = 0
    has_changed: bool = False
    skipped: str = ""


@dataclass(slots=True)
class Window:
    """Some pieces of a large file, which has a `FileRead` of its own at its end."""

    pieces: PieceList
    named: list[tuple[int, BlockId]]


def is_unread(step: Step) -> TypeGuard[Found]:
    return isinstance(step, Found) and not step.packed


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


class FileReader:
    """Reads files for one snapshot. Blocking; several threads may use it at once."""

    def __init__(self, scan: Scan, sealer: Sealer, config: IngestConfig, *, began_ns: int) -> None:
        self._scan = scan
        self._sealer = sealer
        self._config = config
        self._cutter = Cutter(config)
        self._hole_before_ns = began_ns - RACY_NS

    def read_batch(self, batch: Sequence[Step]) -> list[Step | FileRead]:
        """Read those that have no entry yet, and put their pieces into the store."""
        answers: list[Step | FileRead] = []
        bodies: dict[BlockId, Buffer] = {}
        folders = Folders(self._scan.handle)
        try:
            for step in batch:
                answers.append(self._read(step, folders, bodies) if is_unread(step) else step)
        finally:
            folders.close()
        self._sealer.add(Kind.DATA, bodies)
        return answers

    def read_alone(self, found: Found) -> FileRead:
        """Read one file, whatever its entry says."""
        folders = Folders(self._scan.handle)
        bodies: dict[BlockId, Buffer] = {}
        try:
            answer = self._read(found, folders, bodies)
        finally:
            folders.close()
        self._sealer.add(Kind.DATA, bodies)
        return answer

    def _read(self, found: Found, folders: Folders, bodies: dict[BlockId, Buffer]) -> FileRead:
        *parents, name = found.key.split(SEPARATOR)
        try:
            folder = folders.open(parents)
            for attempt in range(1, ATTEMPTS_MAX + 1):
                handle = os.open(name, _FILE, dir_fd=folder)
                try:
                    read = self._read_open(found, self._file(handle), bodies)
                finally:
                    os.close(handle)
                if not read.has_changed or attempt == ATTEMPTS_MAX:
                    break
        except OSError as error:
            return self.skipped(found, error)
        return read

    def _read_open(self, found: Found, file: OpenFile, bodies: dict[BlockId, Buffer]) -> FileRead:
        pieces = PieceList()
        pending = 0
        while (window := file.next_window()) is not None:
            for length, block in _named(window, bodies):
                pieces.add(length, block)
                pending += length
            if pending > self._config.batch_bytes:  # It has grown since the scan.
                self._sealer.add(Kind.DATA, bodies)
                bodies.clear()
                pending = 0
        return self.ended(found, file, pieces)

    # -- large files: one step a call, so that cutting runs ahead of sealing --------------

    def open_large(self, found: Found) -> OpenFile | FileRead:
        *parents, name = found.key.split(SEPARATOR)
        folders = Folders(self._scan.handle)
        try:
            handle = os.open(name, _FILE, dir_fd=folders.open(parents))
            try:
                return self._file(handle)
            except BaseException:
                os.close(handle)
                raise
        except OSError as error:
            return self.skipped(found, error)
        finally:
            folders.close()

    def seal_window(self, pieces: PieceList, window: list[Piece]) -> Window:
        bodies: dict[BlockId, Buffer] = {}
        named = _named(window, bodies)
        self._sealer.add(Kind.DATA, bodies)
        return Window(pieces, named)

    def ended(self, found: Found, file: OpenFile, pieces: PieceList) -> FileRead:
        attributes = self._scan.attributes(found.key, file.handle)
        changed = not file.held_still()
        return FileRead(found, file.before, pieces, attributes, file.bytes_read, changed)

    def skipped(self, found: Found, error: OSError) -> FileRead:
        return FileRead(found, found.status, skipped=reason(error, self._scan.root))

    def _file(self, handle: int) -> OpenFile:
        return OpenFile(
            handle, self._cutter, window_bytes=self._config.batch_bytes, hole_before_ns=self._hole_before_ns
        )


def _named(window: Sequence[Piece], bodies: dict[BlockId, Buffer]) -> list[tuple[int, BlockId]]:
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
