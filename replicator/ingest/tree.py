"""Taking a tree: walk, read what changed, and build the map of paths in key order.

    scan and memo  →  batches of files  →  worker threads: read, cut, hash, seal  →  in order: the map

Many small files make one batch; a large file is several, cut one after the other and sealed
side by side. A file that the memo vouches for is not opened, provided the store still has
every block of it; if one is gone, or known to be damaged, the file is read, and so heals it.
"""

import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK, BlockId
from replicator.catalog.manifest.entries import blocks_of
from replicator.catalog.manifest.nodes import decode_node
from replicator.core.ports import Offload, WallClock
from replicator.core.progress import Progress
from replicator.ingest.build import Answer, TreeBuilder
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import PieceList
from replicator.ingest.files import ATTEMPTS_MAX, FileRead, FileReader
from replicator.ingest.flow import run_in_order
from replicator.ingest.memo import MemoReader, MemoWriter
from replicator.ingest.scan import Found, Scan
from replicator.ingest.sealer import Sealer
from replicator.ingest.sources import Taken, TreeSource
from replicator.ingest.still import stamp
from replicator.store.ports import BlockStore, Lease

_SCAN_PATHS: Final = 1024
"""Paths that one trip of the scan brings: some milliseconds."""


async def take_tree(
    source: TreeSource,
    *,
    store: BlockStore,
    lease: Lease,
    offload: Offload,
    progress: Progress,
    clock: WallClock,
    memo: Path | None,
    config: IngestConfig,
) -> Taken:
    """Put a tree into the store. Raises `SourceError`, `StoreError`."""
    began_ns = clock.now_ns()
    sealer = Sealer(store, lease, commit_bytes=config.commit_bytes)
    scan = await offload.run(Scan, source)
    try:
        known = await offload.run(MemoReader, memo, config)
        paths = _Paths(scan, known, store, sealer)
        reader = FileReader(scan, sealer, config, began_ns=began_ns)
        remember = MemoWriter(config, began_ns=began_ns)
        builder = TreeBuilder(reader, sealer, remember, offload=offload, progress=progress, config=config)
        progress.begin("reading")
        await run_in_order(
            _batches(paths, reader, offload=offload, config=config),
            builder.take,
            offload=offload,
            in_flight_max=config.batches_in_flight,
            sealer=sealer,
        )
        taken = await builder.finish(scan.skipped)
    finally:
        await offload.run(scan.close)
    if memo is not None:
        await offload.run(remember.save, memo)
    return taken


class _Paths:
    """The scan, with what the memo knows. Blocking."""

    def __init__(self, scan: Scan, memo: MemoReader, store: BlockStore, sealer: Sealer) -> None:
        self._walk: Iterator[Found] = scan.walk()
        self._memo = memo
        self._store = store
        self._sealer = sealer

    def next_paths(self) -> list[Found]:
        found = list(islice(self._walk, _SCAN_PATHS))
        self._remember([one for one in found if not one.packed])
        return found

    def _remember(self, files: list[Found]) -> None:
        known: list[tuple[Found, bytes, list[BlockId]]] = []
        for file in files:
            packed = self._memo.find(file.key, stamp(file.status))
            blocks = None if packed is None else self._blocks(packed)
            if packed is not None and blocks is not None:
                known.append((file, packed, blocks))
        here = self._sealer.have([block for _, _, blocks in known for block in blocks]) if known else set()
        for file, packed, blocks in known:
            if here.issuperset(blocks):
                file.packed, file.is_remembered = packed, True

    def _blocks(self, packed: bytes) -> list[BlockId] | None:
        """Every block that a file needs, or None if the map of its pieces cannot be read."""
        blocks, pieces_root = blocks_of(packed)
        todo = [BlockId(pieces_root)] if pieces_root else []
        while todo:
            blocks += todo
            bodies = self._store.read(todo)
            if bodies.faults:
                return None
            nodes = [decode_node(body) for body in bodies.sound.values()]
            todo = [BlockId(value) for node in nodes if node.level for value in node.values]
            blocks += [BlockId(value[:BLOCK_ID_BYTES]) for node in nodes if not node.level for value in node.values]
        return [block for block in blocks if block != ZERO_BLOCK]


async def _batches(
    paths: _Paths, reader: FileReader, *, offload: Offload, config: IngestConfig
) -> AsyncGenerator[Callable[[], Answer], None]:
    small: list[Found] = []
    small_bytes = 0
    while found := await offload.run(paths.next_paths):
        for one in found:
            coming = 0 if one.packed else one.status.st_size
            if small and (small_bytes + coming > config.batch_bytes or len(small) == config.batch_files):
                yield partial(reader.read_batch, small)
                small, small_bytes = [], 0
            if coming > config.batch_bytes:
                async with aclosing(_large(one, reader, offload=offload)) as parts:
                    async for part in parts:
                        yield part
            else:
                small.append(one)
                small_bytes += coming
    if small:
        yield partial(reader.read_batch, small)


async def _large(found: Found, reader: FileReader, *, offload: Offload) -> AsyncGenerator[Callable[[], Answer], None]:
    """The windows of one file, and its end. A file that changed is begun again, with a new list of pieces."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        file = await offload.run(reader.open_large, found)
        if isinstance(file, FileRead):
            yield partial(_same, file)
            return
        pieces = PieceList()
        try:
            while True:
                window = await offload.run(file.next_window)
                if window is None:
                    break
                yield partial(reader.seal_window, pieces, window)
            ended = await offload.run(reader.ended, found, file, pieces)
        except OSError as error:
            ended = reader.skipped(found, error)
        finally:
            os.close(file.handle)
        if not ended.has_changed or attempt == ATTEMPTS_MAX:
            yield partial(_same, ended)
            return


def _same(answer: FileRead) -> Answer:
    return answer
