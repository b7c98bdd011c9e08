"""A run: many rows in the order of their ids, in a file that is written once and never changed.

    header    64 bytes of a page of 4096: magic, version, rows, head of the first id, checksums
    rests     40 bytes a row
    heads      8 bytes a row
    sums       4 bytes a stretch of 16,384 rows, for the rests and then for the heads: CRC-32

The heads are read into memory when a run is opened, and checked. A rest is read from the file
when its head matches: one small read, by `pread`. (A memory map would do without the call, but a
bad sector under it kills the process, and its pages count as ours.)

A run is whole or not there: it gets its name only when all of it is on the disk.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from mmap import mmap
from pathlib import Path
from typing import Final
from weakref import finalize
from zlib import crc32

import numpy as np
import numpy.typing as npt

from replicator.core.errors import StoreError
from replicator.core.files import sync_directory
from replicator.store.ledger.errors import LedgerDamaged, failure
from replicator.store.ledger.rows import HEAD_BYTES, REST_BYTES, TAIL_BYTES, Answer, Heads, Rests

MAGIC: Final = b"\x89RRUN\r\n\x1a"
_HEADER: Final = struct.Struct("<8sIIQII28xI")
assert _HEADER.size == 64
_PAGE: Final = 4096
STRETCH_ROWS: Final = 16_384
"""Rows read, checked and merged at once: with those of the other runs, some 3 MiB, which a cache holds."""
SUFFIX: Final = ".run"


class Run:
    """An open run. Immutable, so any thread may read it; the file is closed when nobody refers to the run any more."""

    def __init__(self, path: Path, *, level: int, first_head: int = 0) -> None:
        """Raises `LedgerDamaged`, or `StoreError` if the disk does not answer."""
        self.path = path
        self.level = level
        self.first_head = first_head
        """For a part of the base: every id of this part and of no part before it has at least this head."""
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise LedgerDamaged(f"{path} is gone.") from error
        except OSError as error:
            raise failure(f"Opening {path}", error) from error
        finalize(self, os.close, self._handle)
        self.rows, self._rest_sums, self._head_sums = self._read_header()
        self.heads: Heads = self._read_heads()

    @property
    def number(self) -> int:
        return int(self.path.name.removesuffix(SUFFIX))

    def _read_header(self) -> tuple[int, npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        raw = self._read(_HEADER.size, 0)
        if len(raw) < _HEADER.size:
            raise LedgerDamaged(f"{self.path} is cut short.")
        magic, version, stretches, rows, sums_crc, _, crc = _HEADER.unpack(raw)
        if magic != MAGIC or version != 1 or crc != crc32(raw[: _HEADER.size - 4]):
            raise LedgerDamaged(f"{self.path} does not begin as a run does.")
        sums = self._read(8 * stretches, _PAGE + rows * (REST_BYTES + HEAD_BYTES))
        if crc32(sums) != sums_crc or stretches != -(-rows // STRETCH_ROWS):
            raise LedgerDamaged(f"{self.path} is cut short, or its checksums are damaged.")
        both = np.frombuffer(sums, "<u4")
        return rows, both[:stretches], both[stretches:]

    def _read_heads(self) -> Heads:
        if not self.rows:
            return np.empty(0, np.uint64)
        # Memory of its own, which goes back to the system with the run: from the allocator's pool it would not.
        heads = np.frombuffer(mmap(-1, self.rows * HEAD_BYTES), np.uint64)
        start = _PAGE + self.rows * REST_BYTES
        for stretch, at in enumerate(range(0, self.rows, STRETCH_ROWS)):
            part = heads[at : at + STRETCH_ROWS]
            raw = self._read(part.nbytes, start + at * HEAD_BYTES)
            if len(raw) != part.nbytes or crc32(raw) != self._head_sums[stretch]:
                raise LedgerDamaged(f"{self.path} has damaged heads.")
            part[:] = np.frombuffer(raw, "<u8")
        return heads

    def _read(self, size: int, offset: int) -> bytes:
        try:
            parts: list[bytes] = []
            have = 0
            while have < size and (data := os.pread(self._handle, size - have, offset + have)):
                parts.append(data)
                have += len(data)
        except OSError as error:
            raise failure(f"Reading {self.path}", error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def records(self, positions: npt.NDArray[np.intp], tails: npt.NDArray[np.uint8]) -> Answer:
        """The record of each id whose head was found at `positions`, if the tail that lies there is its own."""
        pread, handle = os.pread, self._handle
        try:
            # A system call a key, and nothing else a key: what is done with them is done with all at once.
            raw = [pread(handle, REST_BYTES, at) for at in (_PAGE + positions * REST_BYTES).tolist()]
        except OSError as error:
            raise failure(f"Reading {self.path}", error) from error
        packed = b"".join(raw)
        if len(packed) != len(raw) * REST_BYTES:
            raise StoreError(f"{self.path} has become shorter.", hint="Restart the node: it makes its ledger anew.")
        rests = np.frombuffer(packed, np.uint8).reshape(-1, REST_BYTES)
        known = (rests[:, :TAIL_BYTES] == tails).all(axis=1)
        records = rests[:, TAIL_BYTES:]
        if not known.all():
            records = records.copy()
            for at in np.flatnonzero(~known).tolist():
                record = self._further(int(positions[at]), tails[at].tobytes())
                if record is not None:
                    known[at], records[at] = True, np.frombuffer(record, np.uint8)
        return Answer(known, records)

    def _further(self, at: int, tail: bytes) -> bytes | None:
        """A head may stand several times: the rows behind the first are looked at as long as it does."""
        head = self.heads[at]
        while (at := at + 1) < self.rows and self.heads[at] == head:
            rest = self._read(REST_BYTES, _PAGE + at * REST_BYTES)
            if rest[:TAIL_BYTES] == tail:
                return rest[TAIL_BYTES:]
        return None

    def rests(self, start: int, end: int) -> Rests:
        """Rows `start` to `end` as they lie; unchecked, for what checks in another way or cannot do harm."""
        raw = self._read((end - start) * REST_BYTES, _PAGE + start * REST_BYTES)
        if len(raw) != (end - start) * REST_BYTES:
            raise LedgerDamaged(f"{self.path} has become shorter.")
        return np.frombuffer(raw, np.uint8).reshape(-1, REST_BYTES)

    def stretch(self, number: int) -> tuple[Heads, Rests]:
        """One stretch of rows, checked. Raises `LedgerDamaged`, `StoreError`."""
        start = number * STRETCH_ROWS
        end = min(start + STRETCH_ROWS, self.rows)
        rests = self.rests(start, end)
        if crc32(rests.data) != self._rest_sums[number]:
            raise LedgerDamaged(f"{self.path} has damaged rows.")
        return self.heads[start:end], rests

    @property
    def stretches_count(self) -> int:
        return len(self._rest_sums)


def write_run(path: Path, pieces: Iterable[tuple[Heads, Rests]]) -> int:
    """Write rows that come in order, durably, and only then under `path`. Returns how many.

    Raises `StoreFull`, `StoreReadOnly`, `StoreError`; then nothing is left behind.
    """
    beside = path.with_name(path.name + ".new")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rows = _write(handle, pieces)
            os.fdatasync(handle)
        finally:
            os.close(handle)
        os.rename(beside, path)
        sync_directory(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise failure(f"Writing {path}", error) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return rows


def _write(handle: int, pieces: Iterable[tuple[Heads, Rests]]) -> int:
    heads: list[Heads] = []
    rest_sums: list[int] = []
    rows = 0
    for part_heads, part_rests in _in_stretches(pieces):
        heads.append(part_heads)
        rest_sums.append(crc32(np.ascontiguousarray(part_rests).data))
        _write_all(handle, part_rests, _PAGE + rows * REST_BYTES)
        rows += len(part_heads)
    at = _PAGE + rows * REST_BYTES
    head_sums: list[int] = []
    for part_heads in heads:
        raw = part_heads.astype("<u8").tobytes()
        head_sums.append(crc32(raw))
        _write_all(handle, raw, at)
        at += len(raw)
    sums = np.array(rest_sums + head_sums, "<u4").tobytes()
    _write_all(handle, sums, at)
    fields = _HEADER.pack(MAGIC, 1, len(rest_sums), rows, crc32(sums), 0, 0)[:-4]
    _write_all(handle, fields + struct.pack("<I", crc32(fields)), 0)
    return rows


def _in_stretches(pieces: Iterable[tuple[Heads, Rests]]) -> Iterator[tuple[Heads, Rests]]:
    """The same rows, cut anew into stretches that are all full but the last."""
    held: list[tuple[Heads, Rests]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece[0])
        while count >= STRETCH_ROWS:
            heads, rests = _joined(held)
            yield heads[:STRETCH_ROWS], rests[:STRETCH_ROWS]
            held = [(heads[STRETCH_ROWS:], rests[STRETCH_ROWS:])]
            count -= STRETCH_ROWS
    if count:
        yield _joined(held)


def _joined(held: Sequence[tuple[Heads, Rests]]) -> tuple[Heads, Rests]:
    if len(held) == 1:
        return held[0]
    return np.concatenate([heads for heads, _ in held]), np.concatenate([rests for _, rests in held])


def _write_all(handle: int, data: bytes | Rests, offset: int) -> None:
    view = np.ascontiguousarray(data).data.cast("B") if isinstance(data, np.ndarray) else memoryview(data)
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count
