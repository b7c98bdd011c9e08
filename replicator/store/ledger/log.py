"""The log: what has been entered since the last run was written, in the order in which it was.

    file      magic, number of the log                                   16 bytes
    batch     magic, rows, notes, checksum of all that follows it        16 bytes
              48 bytes a row, 16 bytes a note (`SegmentNote`)

A batch that is not whole was never acknowledged, and ends the log. After a crash a new log is begun:
nothing is written behind a torn batch.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from replicator.core.errors import StoreReadOnly
from replicator.core.files import sync_directory
from replicator.store.ledger.errors import LedgerDamaged, failure
from replicator.store.ledger.rows import LOG_ROW_BYTES

MAGIC: Final = b"\x89RLOG\r\n\x1a"
_FILE: Final = struct.Struct("<8sQ")
_BATCH_MAGIC: Final = 0x48435442
_BATCH: Final = struct.Struct("<IIII")
_NOTE: Final = struct.Struct("<IIq")
SUFFIX: Final = ".log"

FORGET: Final = -2
"""In a note: the segment is gone, and with it all that was known of it."""
UNCHANGED: Final = -1
"""In a note: says nothing of when the segment was verified."""


class SegmentNote(NamedTuple):
    """What has become known of a segment: how far its bytes are accounted for, and when it was proven."""

    segment: int
    known_bytes: int
    verified_ns: int = UNCHANGED


class Batch(NamedTuple):
    """One entry of the log: rows as they are packed, and notes."""

    rows: bytes
    notes: Sequence[SegmentNote]


class Log:
    """The log that is being written. Not thread-safe: the table holds its lock around it."""

    def __init__(self, folder: Path, number: int) -> None:
        """Begin a new one, with its name on the disk. Raises `StoreError`."""
        self.number = number
        self.path = log_path(folder, number)
        self._poisoned = ""
        try:
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                sync_directory(folder)
            except BaseException:
                os.close(self._handle)
                raise
        except OSError as error:
            raise failure(f"Beginning {self.path}", error) from error
        self._end = 0

    def append(self, batch: Batch) -> None:
        """Durable when it returns. A failed flush is final: nothing is appended to this log any more.

        Raises `StoreFull` (then nothing has happened), `StoreReadOnly`, `StoreError`.
        """
        if self._poisoned:
            raise StoreReadOnly(self._poisoned, hint="Check the disk, then restart the node.")
        body = batch.rows + b"".join(_NOTE.pack(*note) for note in batch.notes)
        head = _BATCH.pack(_BATCH_MAGIC, len(batch.rows) // LOG_ROW_BYTES, len(batch.notes), crc32(body))
        if not self._end:
            head = _FILE.pack(MAGIC, self.number) + head
        try:
            _write_all(self._handle, head + body, self._end)
        except OSError as error:
            raise failure(f"Writing {self.path}", error) from error
        try:
            os.fdatasync(self._handle)
        except OSError as error:
            self._poisoned = f"The disk failed to flush {self.path}: {error.strerror}."
            raise StoreReadOnly(self._poisoned, hint="Check the disk, then restart the node.") from error
        self._end += len(head) + len(body)

    def poison(self, why: str) -> None:
        """Take nothing more: what is on the disk cannot be known any longer."""
        self._poisoned = why

    def close(self) -> None:
        os.close(self._handle)


def log_path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}{SUFFIX}"


def read_log(path: Path) -> Iterator[Batch]:
    """All whole batches of a log. Raises `LedgerDamaged` if it is not one, `StoreError` if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise failure(f"Reading {path}", error) from error
    first = data[: _FILE.size + _BATCH.size]
    if len(first) < _FILE.size + _BATCH.size or not any(first):
        return  # Its name is durable before its first batch: nothing has been acknowledged.
    if data[:8] != MAGIC:
        raise LedgerDamaged(f"{path} does not begin as a log does.")
    at = _FILE.size
    while at + _BATCH.size <= len(data):
        magic, rows, notes, crc = _BATCH.unpack_from(data, at)
        start = at + _BATCH.size
        middle, end = start + rows * LOG_ROW_BYTES, start + rows * LOG_ROW_BYTES + notes * _NOTE.size
        if magic != _BATCH_MAGIC or end > len(data) or crc32(data[start:end]) != crc:
            return
        yield Batch(data[start:middle], [SegmentNote(*one) for one in _NOTE.iter_unpack(data[middle:end])])
        at = end


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count
