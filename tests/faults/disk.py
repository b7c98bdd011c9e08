"""A disk that remembers everything: one file, served over FUSE, that logs each WRITE and each FSYNC.

    python -m tests.faults.disk IMAGE LOG MOUNTPOINT

A loop device on that file and a real ext4 on the loop device: the log then holds what the disk was told, in order,
and any power cut can be replayed from it (`power`). It speaks the kernel's protocol (include/uapi/linux/fuse.h) over
/dev/fuse itself, for one file: no library is needed, and device-mapper is not either. Root is, and so it is a process
of its own: a thread of ours that waits for the disk must never be the one that serves it.

The log is a row of records: kind (W or F), nanoseconds of the monotonic clock, offset, length, and the bytes.
"""

import ctypes
import errno
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_IN: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_RECORD: Final = struct.Struct("<cQQI")
_WRITE_MAX: Final = 1 << 20
_ROOT: Final = 1
_FILE: Final = 2
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = 20, 25, 26, 27, 28, 29, 36, 38, 42
SILENT: Final = frozenset({FORGET, INTERRUPT, BATCH_FORGET})


class Record(NamedTuple):
    """One thing that the disk was told. `data` is None for a flush."""

    at_ns: int
    offset: int
    data: bytes | None


def read_log(path: Path) -> Iterator[Record]:
    with path.open("rb") as log:
        while len(head := log.read(_RECORD.size)) == _RECORD.size:
            kind, at_ns, offset, length = _RECORD.unpack(head)
            yield Record(at_ns, offset, log.read(length) if kind == b"W" else None)


class RecordingDisk:
    """Serves one file from memory until it is unmounted."""

    def __init__(self, image: bytes, log: Path) -> None:
        self._image = bytearray(image)
        self._log = log.open("wb", buffering=0)
        self._answers = {
            INIT: self._init, LOOKUP: self._lookup, GETATTR: self._getattr, SETATTR: self._getattr, OPEN: self._open,
            OPENDIR: self._open, READ: self._read, WRITE: self._write, FSYNC: self._fsync, STATFS: self._statfs,
        }  # fmt: skip

    def serve(self, handle: int) -> None:
        while True:
            try:
                request = os.read(handle, _WRITE_MAX + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode in SILENT:
                continue
            answer = self._answer(opcode, node, memoryview(request)[_IN.size :])
            error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            os.writev(handle, [_OUT.pack(_OUT.size + len(body), error, unique), body])

    def _answer(self, opcode: int, node: int, body: memoryview) -> bytes | int:
        if opcode in (RELEASE, RELEASEDIR, FLUSH, DESTROY):
            return b""
        answer = self._answers.get(opcode)
        return errno.ENOSYS if answer is None else answer(node, body)

    def _init(self, _: int, body: memoryview) -> bytes:
        major, minor = struct.unpack_from("<II", body)
        return struct.pack("<IIIIHHIIHHII24x", major, min(minor, 31), 65536, 0, 16, 12, _WRITE_MAX, 1, 0, 0, 0, 0)

    def _attr(self, node: int) -> bytes:
        is_file = node == _FILE
        size = len(self._image) if is_file else 0
        mode = 0o100600 if is_file else 0o040700
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _lookup(self, _: int, body: memoryview) -> bytes | int:
        if bytes(body).rstrip(b"\0") != b"disk":
            return errno.ENOENT
        return struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + self._attr(_FILE)

    def _getattr(self, node: int, _: memoryview) -> bytes:
        return struct.pack("<QII", 3600, 0, 0) + self._attr(node)

    def _open(self, node: int, _: memoryview) -> bytes:
        return struct.pack("<QII", node, 0, 0)

    def _read(self, _: int, body: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self._image[offset : offset + size])

    def _write(self, _: int, body: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        data = body[40 : 40 + size]
        self._log.write(_RECORD.pack(b"W", time.monotonic_ns(), offset, size) + data)
        self._image[offset : offset + size] = data
        return struct.pack("<II", size, 0)

    def _fsync(self, _: int, __: memoryview) -> bytes:
        self._log.write(_RECORD.pack(b"F", time.monotonic_ns(), 0, 0))
        return b""

    def _statfs(self, _: int, __: memoryview) -> bytes:
        return struct.pack("<QQQQQIIII24x", 1 << 20, 1 << 19, 1 << 19, 16, 8, 4096, 255, 4096, 0)


def main() -> None:
    image, log, mountpoint = map(Path, sys.argv[1:4])
    handle = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={handle},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={_WRITE_MAX}"
    if libc.mount(b"recording", os.fsencode(mountpoint), b"fuse.recording", 0, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mount")
    print("mounted", flush=True)
    RecordingDisk(image.read_bytes(), log).serve(handle)


if __name__ == "__main__":
    main()
