"""A worker process: reads, names and packs small files for a snapshot that another process takes.

    snapshot   setup · read: keys · seal: ids · read: keys · …
    worker             files      run of sealed blocks   files  …

It gets a socket and a handle of the folder, and asks for nothing else: what it opens lies below that folder. It
keeps the bodies of one reading until the next, and ends when the socket does, whatever became of the other side.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from protocol.errors import BadBlock
from protocol.ids import BlockId, split_ids
from protocol.wire.envelope import Buffer, seal_named
from protocol.wire.hashing import Kind
from replicator.core.memory import keep_freed_memory
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import Cutter, PieceList
from replicator.ingest.reading import Content, Folders, OpenFile, read_file

LENGTH_BYTES: Final = 8
READ: Final = "read"
SEAL: Final = "seal"
GROWN: Final = "grown"
"""In the place of a file that has become too large for a batch: let the other side read it."""

Row = Sequence[Any]


def send(link: socket.socket, content: Buffer) -> None:
    """One message, its length before it."""
    link.sendall(len(content).to_bytes(LENGTH_BYTES, "big"))
    link.sendall(content)


def receive(link: socket.socket) -> bytearray | None:
    """The next message; None if the other side has gone."""
    length = _exactly(link, LENGTH_BYTES)
    return None if length is None else _exactly(link, int.from_bytes(length, "big"))


def _exactly(link: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = link.recv_into(view, 0, socket.MSG_WAITALL)
        if not got:
            return None
        view = view[got:]
    return data


class _Grown(Exception):
    pass


class _Work:
    """What one process does."""

    def __init__(self, root: int, config: IngestConfig, hole_before_ns: int) -> None:
        self._root = root
        self._config = config
        self._cutter = Cutter(config)
        self._hole_before_ns = hole_before_ns
        self._bodies: dict[BlockId, Buffer] = {}

    def read(self, keys: Sequence[bytes]) -> bytes:
        self._bodies = {}
        folders = Folders(self._root)
        try:
            packed: bytes = msgpack.packb([self._read(key, folders) for key in keys], unicode_errors="surrogateescape")
        finally:
            folders.close()
        return packed

    def _read(self, key: bytes, folders: Folders) -> Row | str:
        try:
            return _row(read_file(folders, key, self._bodies, opened=self._opened, spill=self._spill))
        except _Grown:
            return GROWN
        except OSError as error:
            return (error.errno or 0, error.strerror or str(error))

    def _opened(self, handle: int) -> OpenFile:
        return OpenFile(
            handle, self._cutter, window_bytes=self._config.batch_bytes, hole_before_ns=self._hole_before_ns
        )

    def _spill(self, size: int) -> None:
        if size > self._config.batch_bytes:
            raise _Grown

    def seal(self, names: Sequence[BlockId]) -> bytes:
        return b"".join([seal_named(Kind.DATA, self._bodies[name], name)[1] for name in names])


def _row(content: Content) -> Row:
    status, pieces = content.status, content.pieces
    return (
        tuple(status)[:7], status.st_mtime_ns, status.st_ctime_ns, status.st_blocks,
        pieces.lengths, b"".join(pieces.ids), pieces.size, pieces.zero_bytes,
        content.attributes, [_told(complaint) for complaint in content.complaints],
        content.bytes_read, content.has_changed,
    )  # fmt: skip


def _told(complaint: OSError | str) -> str | tuple[int, str]:
    return complaint if isinstance(complaint, str) else (complaint.errno or 0, complaint.strerror or str(complaint))


def content_of(row: Row) -> Content | OSError | None:
    """What `_row` says, on the other side."""
    if row == GROWN:
        return None
    if len(row) == 2:
        return OSError(*row)
    seven, mtime_ns, ctime_ns, blocks, lengths, ids, size, zero_bytes, attributes, complaints, bytes_read, changed = row
    status = os.stat_result((*seven, 0, 0, 0), {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns, "st_blocks": blocks})
    pieces = PieceList.of(list(lengths), split_ids(ids), size=size, zero_bytes=zero_bytes)
    return Content(
        status,
        pieces,
        tuple(map(tuple, attributes)),
        [one if isinstance(one, str) else OSError(*one) for one in complaints],
        bytes_read,
        changed,
    )


def main() -> None:
    """`python -m replicator.ingest.worker_process SOCKET FOLDER`, both of them open handles."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal tells the whole group; whoever started us decides.
    try:
        with socket.socket(fileno=int(sys.argv[1])) as link:
            _serve(link, int(sys.argv[2]))
    except OSError:
        pass  # The other side has gone.


def _serve(link: socket.socket, root: int) -> None:
    setup = receive(link)
    if setup is None:
        return
    config, hole_before_ns = msgpack.unpackb(setup)
    work = _Work(root, IngestConfig(**config), hole_before_ns)
    while (request := receive(link)) is not None:
        task, what = msgpack.unpackb(request)
        if task == READ:
            send(link, work.read(what))
            continue
        try:
            sealed = work.seal(split_ids(what))
        except BadBlock as error:
            send(link, str(error).encode())
            continue
        send(link, b"")
        send(link, sealed)


if __name__ == "__main__":
    main()
