"""Reading the regular files of a snapshot: many small ones a batch, large ones window by window.

A path that is gone or forbidden by the time we come to it is an answer, not a failure.

Small files cost more in the interpreter than in the calls it makes, and threads of one interpreter take turns.
So a batch of small ones goes to a worker process, if there is one (`workers.py`), and is read here if that fails.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeGuard

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import Kind
from replicator.core.logging import get_logger
from replicator.ingest.attributes import Attributes
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import Cutter, Piece, PieceList
from replicator.ingest.reading import Content, Folders, OpenFile, ended, named, open_file, read_file
from replicator.ingest.scan import Found, Scan, Step, reason
from replicator.ingest.sealer import Sealer
from replicator.ingest.still import RACY_NS
from replicator.ingest.workers import WorkerGone, Workers


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


class FileReader:
    """Reads files for one snapshot. Blocking; several threads may use it at once."""

    def __init__(
        self, scan: Scan, sealer: Sealer, config: IngestConfig, *, began_ns: int, workers: Workers | None = None
    ) -> None:
        self._scan = scan
        self._sealer = sealer
        self._config = config
        self._cutter = Cutter(config)
        self._hole_before_ns = began_ns - RACY_NS
        self._workers = workers

    def read_batch(self, batch: Sequence[Step]) -> list[Step | FileRead]:
        """Read those that have no entry yet, and put their pieces into the store."""
        unread = [step for step in batch if is_unread(step)]
        if self._workers is not None and self._workers.are_worth(unread):
            try:
                return self._read_by(self._workers, batch, unread)
            except WorkerGone as error:
                get_logger().warning("worker.gone", why=str(error))
        return self._read_here(batch)

    def _read_here(self, batch: Sequence[Step]) -> list[Step | FileRead]:
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

    def _read_by(self, workers: Workers, batch: Sequence[Step], unread: Sequence[Found]) -> list[Step | FileRead]:
        with ExitStack() as claimed:
            with workers.one() as worker:
                contents = worker.read([found.key for found in unread])
                mine = claimed.enter_context(self._sealer.claim(_names(contents)))
                blocks = worker.seal(mine)
            self._sealer.put(Kind.DATA, blocks)
        read = iter([self._answer(found, content) for found, content in zip(unread, contents, strict=True)])
        return [next(read) if is_unread(step) else step for step in batch]

    def _answer(self, found: Found, content: Content | OSError | None) -> FileRead:
        match content:
            case Content():
                return self._file_read(found, content)
            case None:  # It has grown since the scan.
                return self.read_alone(found)
            case error:
                return self.skipped(found, error)

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
        spilled = 0

        def spill(size: int) -> None:
            nonlocal spilled
            if size - spilled > self._config.batch_bytes:  # It has grown since the scan.
                self._sealer.add(Kind.DATA, bodies)
                bodies.clear()
                spilled = size

        try:
            return self._file_read(found, read_file(folders, found.key, bodies, opened=self._file, spill=spill))
        except OSError as error:
            return self.skipped(found, error)

    def _file_read(self, found: Found, content: Content) -> FileRead:
        self._scan.complain(found.key, content.complaints)
        return FileRead(
            found, content.status, content.pieces, content.attributes, content.bytes_read, content.has_changed
        )

    # -- large files: one step a call, so that cutting runs ahead of sealing --------------

    def open_large(self, found: Found) -> OpenFile | FileRead:
        folders = Folders(self._scan.handle)
        try:
            handle = open_file(folders, found.key)
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
        blocks = named(window, bodies)
        self._sealer.add(Kind.DATA, bodies)
        return Window(pieces, blocks)

    def ended(self, found: Found, file: OpenFile, pieces: PieceList) -> FileRead:
        return self._file_read(found, ended(file, pieces))

    def skipped(self, found: Found, error: OSError) -> FileRead:
        return FileRead(found, found.status, skipped=reason(error, self._scan.root))

    def _file(self, handle: int) -> OpenFile:
        return OpenFile(
            handle, self._cutter, window_bytes=self._config.batch_bytes, hole_before_ns=self._hole_before_ns
        )


def _names(contents: Sequence[Content | OSError | None]) -> list[BlockId]:
    names = dict.fromkeys(block for content in contents if isinstance(content, Content) for block in content.pieces.ids)
    names.pop(ZERO_BLOCK, None)
    return list(names)
