"""Taking a tree: walk, read what changed, and build the map of paths in key order.

    scan and memo  →  batches of files  →  worker threads: read, cut, hash, seal  →  in order: the map

Many small files make one batch; a large file is several, cut one after the other and sealed
side by side. A file that the memo vouches for is not opened, provided the store still has
every block of it; if one is gone, or known to be damaged, the file is read, and so heals it.
"""

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Final

from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK, BlockId, split_ids
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.entries import blocks_of
from replicator.catalog.manifest.nodes import Shape, decode_node
from replicator.core.errors import ManifestDamaged
from replicator.core.ports import Offload, WallClock
from replicator.core.progress import Progress
from replicator.ingest.build import Answer, NotAsRemembered, TreeBuilder
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import PieceList
from replicator.ingest.files import FileRead, FileReader, is_unread
from replicator.ingest.flow import run_in_order
from replicator.ingest.memo import Folder, MemoReader, MemoWriter
from replicator.ingest.reading import ATTEMPTS_MAX
from replicator.ingest.scan import Found, Same, Scan, Step
from replicator.ingest.sealer import Ahead, Sealer
from replicator.ingest.sources import Taken, TreeSource
from replicator.ingest.still import RACY_NS
from replicator.ingest.witness import holds_nodes
from replicator.ingest.workers import Workers
from replicator.store.ports import BlockStore, Lease

_SCAN_PATHS: Final = 1024
"""Paths that one trip of the scan brings, or one folder that has not changed: some milliseconds."""
_IDS_BYTES: Final = 4096 * BLOCK_ID_BYTES
"""Of these ids each is an object while the store is asked for them."""


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
    ahead: Ahead | None = None,
) -> Taken:
    """Put a tree into the store. Raises `SourceError`, `StoreError`."""
    take = partial(
        _take_once,
        source,
        store=store,
        lease=lease,
        offload=offload,
        progress=progress,
        began_ns=clock.now_ns(),
        memo=memo,
        config=config,
        ahead=ahead,
    )
    try:
        return await take(may_build_upon=True)
    except ManifestDamaged:  # `NotAsRemembered` is one.
        # A block has been lost since, or the last map cannot be read: put everything, and so mend it.
        return await take(may_build_upon=False)


async def _take_once(
    source: TreeSource,
    *,
    store: BlockStore,
    lease: Lease,
    offload: Offload,
    progress: Progress,
    began_ns: int,
    memo: Path | None,
    config: IngestConfig,
    ahead: Ahead | None,
    may_build_upon: bool,
) -> Taken:
    sealer = Sealer(store, lease, commit_bytes=config.commit_bytes, ahead=ahead)
    known = await offload.run(MemoReader, memo, config, source)
    base = known.root if may_build_upon else None
    if base is not None and not await offload.run(holds_nodes, store, lease, base, Shape.NAMES):
        base = None
    scan = await offload.run(partial(Scan, source, known, is_base=base is not None))
    remember = MemoWriter(memo, config, source, incomplete=scan.incomplete)
    workers = Workers(scan.handle, config, hole_before_ns=began_ns - RACY_NS)
    try:
        paths = _Paths(scan, store, sealer)
        reader = FileReader(scan, sealer, config, began_ns=began_ns, workers=workers)
        builder = TreeBuilder(
            reader,
            sealer,
            remember,
            offload=offload,
            progress=progress,
            config=config,
            began_ns=began_ns,
            base=None if base is None else (base, _Nodes(store, offload)),
        )
        progress.begin("reading")
        await run_in_order(
            _batches(paths, reader, offload=offload, config=config),
            builder.take,
            offload=offload,
            in_flight_max=config.batches_of_files_in_flight,
            sealer=sealer,
        )
        known.end()
        if base is not None and known.has_skipped:
            raise NotAsRemembered
        taken = await builder.finish(scan.skipped)
        await offload.run(remember.save, taken.root)
    finally:
        await offload.run(_leave, workers, scan, known, remember)
    return taken


def _leave(workers: Workers, scan: Scan, known: MemoReader, remember: MemoWriter) -> None:
    workers.close()
    scan.close()
    known.close()
    remember.discard()


class _Nodes:
    """Where the map that is built upon is read. A node that is broken makes us begin anew."""

    def __init__(self, store: BlockStore, offload: Offload) -> None:
        self._store = store
        self._offload = offload

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        bodies = await self._offload.run(self._store.read, ids)
        if bodies.faults:
            raise ManifestDamaged("A node of the last map is gone.")
        return bodies.sound


class _Paths:
    """The scan, with what the memo knows. Blocking."""

    def __init__(self, scan: Scan, store: BlockStore, sealer: Sealer) -> None:
        self._walk: Iterator[Step] = scan.walk()
        self._store = store
        self._sealer = sealer

    def next_paths(self) -> list[Step]:
        found: list[Step] = []
        paths = 0
        while paths < _SCAN_PATHS and (step := next(self._walk, None)) is not None:
            found.append(step)
            paths += step.known.paths if isinstance(step, Same) else 1
        self._check_unchanged([step.known for step in found if isinstance(step, Same)])
        self._remember([step for step in found if isinstance(step, Found) and step.remembered])
        return found

    def _check_unchanged(self, folders: list[Folder]) -> None:
        """Raise `NotAsRemembered` if a block that an unchanged folder needs is not here any more."""
        packed = b"".join([folder.ids for folder in folders])
        for at in range(0, len(packed), _IDS_BYTES):
            self._check_here(split_ids(packed[at : at + _IDS_BYTES]))
        for root in split_ids(b"".join([folder.roots for folder in folders])):
            below = self._blocks([], root)
            if below is None:
                raise NotAsRemembered
            self._check_here(below)

    def _check_here(self, ids: list[BlockId]) -> None:
        if ids and not self._sealer.have(ids).issuperset(ids):
            raise NotAsRemembered

    def _remember(self, files: list[Found]) -> None:
        known: list[tuple[Found, list[BlockId]]] = []
        for file in files:
            blocks = self._blocks(*blocks_of(file.remembered))
            if blocks is not None:
                known.append((file, blocks))
        here = self._sealer.have([block for _, blocks in known for block in blocks]) if known else set()
        for file, blocks in known:
            if here.issuperset(blocks):
                file.packed, file.is_remembered = file.remembered, True

    def _blocks(self, blocks: list[BlockId], pieces_root: bytes) -> list[BlockId] | None:
        """Every block that a file needs, or None if the map of its pieces cannot be read."""
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
    small: list[Step] = []
    small_bytes = 0
    while found := await offload.run(paths.next_paths):
        for one in found:
            coming = one.status.st_size if is_unread(one) else 0
            if small and (small_bytes + coming > config.batch_bytes or len(small) >= config.batch_files):
                yield partial(reader.read_batch, small)
                small, small_bytes = [], 0
            if coming > config.batch_bytes and is_unread(one):
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
