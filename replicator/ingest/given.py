"""Sources that a program holds in memory: what is cut and stored is the same, only the reading is left out.

The pieces are cut by the same cutter, so content that also lies on a disk shares its blocks, and
an image has the same root. What only a file system knows (links between files, devices) is not
given, and everything belongs to user and group 0: a program that needs more protects a folder.
"""

import stat
from collections.abc import Sequence

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.entries import PIECES_INLINE_MAX, Entry, check_key, encode_entry, path_key
from replicator.catalog.manifest.nodes import Shape, number_key
from replicator.core.errors import SourceError
from replicator.core.ports import Offload
from replicator.core.progress import Progress
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import Cutter, PieceList
from replicator.ingest.sealer import Ahead, NodeBuffer, Sealer
from replicator.ingest.sources import GivenImage, GivenPath, GivenTree, Taken
from replicator.store.ports import BlockStore, Lease

_FOLDER_MODE = stat.S_IFDIR | 0o755


async def take_given_tree(
    source: GivenTree,
    *,
    store: BlockStore,
    lease: Lease,
    offload: Offload,
    progress: Progress,
    config: IngestConfig,
    ahead: Ahead | None = None,
) -> Taken:
    """Put a given tree into the store. Raises `SourceError` for a path that no snapshot may hold, `StoreError`."""
    paths = _in_key_order(source.paths())
    cutter, filler = Cutter(config), _Filler(store, lease, offload=offload, config=config, ahead=ahead)
    editor = MapEditor(Shape.NAMES, filler.nodes, reader=None, base=None)
    progress.begin("reading", total=sum(len(one.content) for _, one in paths))
    for key, one in paths:
        pieces = PieceList()
        # The cutter wants what is not the end of a file to end on its grid; in memory all of it is the end.
        for length, body in cutter.cut(one.content, at=0, is_end=True):
            pieces.add(length, ZERO_BLOCK if body is None else await filler.put(body))
        await editor.put(key, encode_entry(await _entry(one, pieces, filler)))
        progress.advance(len(one.content))
        await filler.flush_if_full()
    root = await editor.finish()
    size = sum(len(one.content) for _, one in paths)
    return await filler.finish(root, size_bytes=size, entries=len(paths))


def _in_key_order(paths: Sequence[GivenPath]) -> list[tuple[bytes, GivenPath]]:
    given = {path_key(one.path): one for one in paths}
    for key in list(given):
        check_key(key)
        parts = key.split(b"\0")
        for depth in range(len(parts)):
            above = b"\0".join(parts[:depth])
            here = given.setdefault(above, GivenPath(path=above.replace(b"\0", b"/"), mode=_FOLDER_MODE))
            if key and not stat.S_ISDIR(here.mode):
                raise SourceError(f"{key!r} lies below something that is not a folder.", hint="Leave one of them out.")
    return sorted(given.items())


async def _entry(one: GivenPath, pieces: PieceList, filler: "_Filler") -> Entry:
    is_inline = len(pieces.lengths) <= PIECES_INLINE_MAX
    pieces_root = b""
    if not is_inline:
        editor = MapEditor(Shape.PIECES, filler.nodes, reader=None, base=None)
        for index, value in enumerate(pieces.values()):
            await editor.put(number_key(index), value)
        pieces_root = await editor.finish()
    return Entry(
        mode=one.mode,
        uid=0,
        gid=0,
        mtime_ns=one.mtime_ns,
        size=pieces.size,
        lengths=tuple(pieces.lengths) if is_inline else (),
        ids=b"".join(pieces.ids) if is_inline else b"",
        pieces_root=pieces_root,
        target=one.target,
    )


async def take_given_image(
    source: GivenImage,
    *,
    store: BlockStore,
    lease: Lease,
    offload: Offload,
    progress: Progress,
    config: IngestConfig,
    ahead: Ahead | None = None,
) -> Taken:
    """Put a given image into the store. Raises `StoreError`."""
    content, size = memoryview(source.content()), config.image_block_bytes
    zeros = bytes(size)
    filler = _Filler(store, lease, offload=offload, config=config, ahead=ahead)
    editor = MapEditor(Shape.NUMBERS, filler.nodes, reader=None, base=None)
    progress.begin("reading", total=len(content))
    entries = 0
    for number, at in enumerate(range(0, len(content), size)):
        body = content[at : at + size]
        if body == zeros[: len(body)]:
            continue
        await editor.put(number_key(number), await filler.put(body))
        entries += 1
        progress.set_done(at)
        await filler.flush_if_full()
    root = await editor.finish()
    return await filler.finish(root, size_bytes=len(content), entries=entries)


class _Filler:
    """Fills the store batch by batch."""

    def __init__(
        self, store: BlockStore, lease: Lease, *, offload: Offload, config: IngestConfig, ahead: Ahead | None
    ) -> None:
        self._sealer = Sealer(store, lease, commit_bytes=config.commit_bytes, ahead=ahead)
        self._offload = offload
        self._bodies: dict[BlockId, Buffer] = {}
        self._bytes = 0
        self._bytes_max = config.batch_bytes
        self.nodes = NodeBuffer(bytes_max=config.batch_bytes)
        self._bytes_read = 0

    async def put(self, body: Buffer) -> BlockId:
        name = block_id(Kind.DATA, body)
        self._bodies[name] = body
        self._bytes += len(body)
        self._bytes_read += len(body)
        await self.flush_if_full()
        return name

    async def flush_if_full(self) -> None:
        if self._bytes >= self._bytes_max:
            await self._flush_bodies()
        if self.nodes.is_full:
            await self._offload.run(self._sealer.add, Kind.NODE, self.nodes.take())
        if self._sealer.is_commit_due:
            await self._offload.run(self._sealer.commit)

    async def _flush_bodies(self) -> None:
        bodies, self._bodies, self._bytes = self._bodies, {}, 0
        await self._offload.run(self._sealer.add, Kind.DATA, bodies)
        self._sealer.wake_ahead()

    async def finish(self, root: BlockId, *, size_bytes: int, entries: int) -> Taken:
        await self._flush_bodies()
        await self._offload.run(self._sealer.add, Kind.NODE, self.nodes.take())
        await self._offload.run(self._sealer.commit)
        counts = self._sealer.counts
        return Taken(
            root=root,
            size_bytes=size_bytes,
            entries=entries,
            blocks_new=counts.blocks,
            bytes_new=counts.sealed_bytes,
            bytes_read=self._bytes_read,
            bytes_unchanged=max(self._bytes_read - counts.data_bytes, 0),
        )
