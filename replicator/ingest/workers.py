"""Worker processes that read small files for one snapshot.

Of a file of ten kilobytes, reading, naming and packing take 40 µs in native code and as much in the interpreter, in
a dozen calls that each give the interpreter's lock away and want it back. Two threads that do this hinder each
other more than they help. So a process of its own does it, and what it hands over are runs of sealed blocks
(docs/decisions/0025).

A process that does not start, or dies, is no loss: its batch is read here, and so is the rest.
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

import msgpack

from protocol.errors import Malformed
from protocol.ids import BlockId
from protocol.limits import KIB
from protocol.wire.envelope import parse_header
from replicator.ingest.config import IngestConfig
from replicator.ingest.reading import Content
from replicator.ingest.scan import Found
from replicator.ingest.sealer import not_survived
from replicator.ingest.worker_process import READ, SEAL, content_of, receive, send
from replicator.store.ports import SealedBlock

_SMALL_BYTES: Final = 64 * KIB
"""Of files that are larger on average, native code does most, and threads share it well."""
_FEW: Final = 16
_END_S: Final = 5.0
"""How long a process may take to end once nobody speaks to it: it may be in a read of a slow disk."""


class WorkerGone(Exception):
    """A worker process could not be started, or has died."""


class Worker:
    """One process. One thread at a time. Blocking."""

    def __init__(self, root: int, config: IngestConfig, *, hole_before_ns: int) -> None:
        """`root`: a handle of the folder. Raises `WorkerGone`."""
        self._link, theirs = socket.socketpair()
        try:
            with theirs:
                handles = str(theirs.fileno()), str(root)
                command = [sys.executable, "-P", "-m", "replicator.ingest.worker_process", *handles]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(), root)
                )
            self._tell([asdict(config), hole_before_ns])
        except (OSError, WorkerGone) as error:
            self._link.close()
            raise WorkerGone(f"it could not be started: {error}") from error

    def read(self, keys: Sequence[bytes]) -> list[Content | OSError | None]:
        """Each file as it was read, why it was not, or None if it has become too large for this."""
        self._tell([READ, keys])
        rows = msgpack.unpackb(self._hear(), use_list=False, unicode_errors="surrogateescape")
        return [content_of(row) for row in rows]

    def seal(self, names: Sequence[BlockId]) -> list[SealedBlock]:
        """Blocks of the files that were read last. Raises `StoreError` if one did not survive its packing."""
        if not names:
            return []
        self._tell([SEAL, b"".join(names)])
        if trouble := self._hear():
            raise not_survived(trouble.decode())
        run = memoryview(self._hear())
        blocks: list[SealedBlock] = []
        at = 0
        for name in names:
            try:
                header = parse_header(run, at)
            except Malformed as error:
                raise not_survived(error) from error
            if header.block_id != name:
                raise not_survived("another came back")
            blocks.append(SealedBlock(header, run[at : at + header.sealed_bytes]))
            at += header.sealed_bytes
        return blocks

    def _tell(self, message: list[Any]) -> None:
        try:
            send(self._link, msgpack.packb(message))
        except OSError as error:
            raise WorkerGone(f"it has ended: {error}") from error

    def _hear(self) -> bytearray:
        try:
            message = receive(self._link)
        except OSError as error:
            raise WorkerGone(f"it has ended: {error}") from error
        if message is None:
            raise WorkerGone("it has ended")
        return message

    def end(self) -> None:
        """Let it go, and wait for its end."""
        self._link.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Workers:
    """The processes of one snapshot. None is started before enough small files have been seen."""

    def __init__(self, root: int, config: IngestConfig, *, hole_before_ns: int) -> None:
        self._root = root
        self._config = config
        self._hole_before_ns = hole_before_ns
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self._count = 0
        self._seen = 0
        self._is_given_up = config.workers_max == 0

    def are_worth(self, unread: Sequence[Found]) -> bool:
        """Whether a batch is one for a worker."""
        if self._is_given_up or len(unread) < _FEW:
            return False
        with self._changed:
            self._seen += len(unread)
            return self._seen >= self._config.worker_from_files and (
                sum(found.status.st_size for found in unread) <= _SMALL_BYTES * len(unread)
            )

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """A process for one batch; waits until one is free. After a `WorkerGone` no more are started."""
        try:
            worker = self._take()
            try:
                yield worker
            except WorkerGone:
                worker.end()
                raise
        except WorkerGone:
            with self._changed:
                self._is_given_up = True
                self._changed.notify_all()
            raise
        except BaseException:
            self._put_back(worker)
            raise
        self._put_back(worker)

    def _take(self) -> Worker:
        with self._changed:
            while not self._idle and self._count >= self._config.workers_max and not self._is_given_up:
                self._changed.wait()
            if self._idle:
                return self._idle.pop()
            if self._is_given_up:
                raise WorkerGone("another has died")
            self._count += 1
        return Worker(self._root, self._config, hole_before_ns=self._hole_before_ns)

    def _put_back(self, worker: Worker) -> None:
        with self._changed:
            self._idle.append(worker)
            self._changed.notify()

    def close(self) -> None:
        """End all of them. Blocking; nobody may be using one."""
        for worker in self._idle:
            worker.end()
        self._idle = []
