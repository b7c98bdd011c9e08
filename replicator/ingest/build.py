"""From what was read, in key order, to the map of a tree, its memo and its counts."""

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.limits import KIB, MIB
from protocol.wire.hashing import Kind
from replicator.catalog.manifest.editor import MapEditor, NodeReader
from replicator.catalog.manifest.entries import (
    PIECES_INLINE_MAX,
    blocks_of,
    decode_entry,
    encode_entry,
    encode_file,
    key_path,
)
from replicator.catalog.manifest.nodes import Shape, ends_after, number_key
from replicator.core.errors import ManifestDamaged
from replicator.core.ports import Offload
from replicator.core.progress import Progress
from replicator.ingest.config import IngestConfig
from replicator.ingest.cutter import PieceList
from replicator.ingest.files import FileRead, FileReader, Window
from replicator.ingest.memo import NEVER, MemoWriter
from replicator.ingest.scan import Found, Gone, Same, Step
from replicator.ingest.sealer import NodeBuffer, Sealer
from replicator.ingest.sources import Skipped, Taken, Tally
from replicator.ingest.still import RACY_NS, is_racy, packed_stamp

_LARGE_ENTRY: Final = 8 * KIB
"""Below this, an entry is mostly its pieces; hundreds of those fit into a node, and it has 32 on average."""
_LEAF_BYTES_MAX: Final = 3 * MIB
"""What entries of one node may take before attributes are left out. The rest is for the keys."""

_EXPECTED_MAX: Final = 1024
"""Changes whose nodes of the old map are read together: some megabytes, if each is in a node of its own."""

_FEW_GONE: Final = 8
"""Names of one folder that has gone, up to which they are read for with the rest of their batch."""

Answer = list[Step | FileRead] | FileRead | Window


class NotAsRemembered(ManifestDamaged):
    """The last map cannot be built upon after all: every path has to be put."""

    def __init__(self) -> None:
        super().__init__("The last map of this tree is not as it was remembered.")


class TreeBuilder:
    """Takes answers in key order; `finish` makes everything durable."""

    def __init__(
        self,
        reader: FileReader,
        sealer: Sealer,
        remember: MemoWriter,
        *,
        offload: Offload,
        progress: Progress,
        config: IngestConfig,
        began_ns: int,
        base: tuple[BlockId, NodeReader] | None = None,
    ) -> None:
        """`base`: the map that is built upon, and where its nodes are. Without one every path is to be given."""
        self._trusted_before_ns = began_ns - RACY_NS
        self._reader = reader
        self._sealer = sealer
        self._remember = remember
        self._offload = offload
        self._progress = progress
        self._nodes = NodeBuffer(bytes_max=config.batch_bytes)
        root, nodes = base or (None, None)
        self._has_base = base is not None
        self._editor = MapEditor(Shape.NAMES, self._nodes, reader=nodes, base=root)
        self._tally = Tally()
        self._leaf_bytes = 0
        """Of the node that is being filled, once a large entry has gone into it."""
        self._moved: dict[bytes, bytes | None] = {}
        """First paths of linked files that could not be read, and the path that took their place, if one did."""

    async def take(self, answer: Answer) -> None:
        match answer:
            case Window(pieces, named):
                for length, block in named:
                    pieces.add(length, block)
                    self._progress.advance(length)
            case FileRead():
                await self._put_read(answer)
            case _:
                if self._has_base:
                    await self._editor.expect(list(_changed_keys(answer)))
                for one in answer:
                    await self._take_step(one)
        if self._nodes.is_full:
            await self._flush_nodes()
        if self._remember.is_full:
            await self._offload.run(self._remember.flush)

    async def _take_step(self, one: Step | FileRead) -> None:
        match one:
            case FileRead():
                await self._put_read(one)
                self._progress.advance(one.pieces.size)
            case Found():
                await self._put_found(one)
            case Same(known):
                self._remember.keep(known)
                self._tally.entries += known.paths
                self._count_unopened(known.size_bytes, known.files)
            case Gone(keys):
                await self._put_gone(keys)

    async def _put_gone(self, keys: list[bytes]) -> None:
        for at in range(0, len(keys), _EXPECTED_MAX):
            some = keys[at : at + _EXPECTED_MAX]
            if len(keys) > _FEW_GONE:
                await self._editor.expect(some)
            for key in some:
                await self._editor.put(key, None)

    def _count_unopened(self, size: int, files: int) -> None:
        self._tally.size_bytes += size
        self._tally.bytes_unopened += size
        self._tally.files_unopened += files
        self._progress.advance(size)

    async def finish(self, also_skipped: list[Skipped]) -> Taken:
        root = await self._editor.finish()
        await self._flush_nodes()
        await self._offload.run(self._sealer.commit)
        tally, counts = self._tally, self._sealer.counts
        return Taken(
            root=root,
            size_bytes=tally.size_bytes,
            entries=tally.entries,
            blocks_new=counts.blocks,
            bytes_new=counts.sealed_bytes,
            bytes_read=tally.bytes_read,
            bytes_unchanged=tally.bytes_unopened + max(tally.bytes_data - counts.data_bytes, 0),
            files_unopened=tally.files_unopened,
            skipped=tuple(sorted(also_skipped + tally.skipped, key=lambda skipped: skipped.path)),
            changed_while_read=tuple(tally.changed),
        )

    async def _flush_nodes(self) -> None:
        await self._offload.run(self._sealer.add, Kind.NODE, self._nodes.take())

    async def _put(self, key: bytes, packed: bytes) -> None:
        self._tally.entries += 1
        if len(packed) > _LARGE_ENTRY or self._leaf_bytes:
            if self._has_base:
                raise NotAsRemembered  # What else is in its node is not known here.
            self._remember.may_be_base = False
            packed = self._fitted(key, packed)
        await self._editor.put(key, packed)

    def _fitted(self, key: bytes, packed: bytes) -> bytes:
        """The entry, without its attributes if the node that it goes into has no room for them.

        Which paths share a node depends on their names alone, so what does not fit cannot go elsewhere.
        """
        entry = decode_entry(packed)
        if self._leaf_bytes + len(packed) > _LEAF_BYTES_MAX and entry.xattrs:
            self._tally.skipped.append(Skipped(key_path(key), "its extended attributes: its neighbours have too many"))
            packed = encode_entry(replace(entry, xattrs=()))
        self._leaf_bytes = 0 if ends_after(Shape.NAMES, 0, key, b"") else self._leaf_bytes + len(packed)
        return packed

    async def _put_found(self, found: Found) -> None:
        if found.is_remembered:
            self._count_unopened(found.status.st_size, 1)
        if found.first_key in self._moved:
            await self._put_moved_link(found)
            return
        if found.is_remembered:
            ids, root = blocks_of(found.packed)
            self._note_file(found.key, found.status, found.packed, ids=ids, root=root)
            if self._has_base:
                self._tally.entries += 1  # The map that is built upon has it, with this very entry.
                return
        elif stat.S_ISDIR(found.status.st_mode):
            self._remember.add_folder(found.key, self._stamp(found.status))
        else:
            self._remember.add(found.key, self._stamp(found.status), again=found.status.st_nlink > 1)
        await self._put(found.key, found.packed)

    def _stamp(self, status: os.stat_result) -> bytes:
        return NEVER if is_racy(status, self._trusted_before_ns) else packed_stamp(status)

    def _note_file(
        self,
        key: bytes,
        status: os.stat_result,
        packed: bytes,
        *,
        ids: list[BlockId],
        root: bytes,
        has_changed: bool = False,
    ) -> None:
        self._remember.add_file(
            key,
            NEVER if has_changed else self._stamp(status),
            packed,
            ids=[block for block in ids if block != ZERO_BLOCK],
            root=root,
            size=status.st_size,
            again=status.st_nlink > 1,
        )

    async def _put_moved_link(self, found: Found) -> None:
        """The first path of this file could not be read, so the next one that can carries the content."""
        assert found.first_key is not None
        carrier = self._moved[found.first_key]
        if carrier is not None:
            self._remember.add(found.key, NEVER)
            await self._put(found.key, encode_entry(replace(decode_entry(found.packed), target=carrier)))
            return
        read = await self._offload.run(self._reader.read_alone, found)
        if not read.skipped:
            self._moved[found.first_key] = found.key
        await self._put_read(read)

    async def _put_read(self, read: FileRead) -> None:
        key, tally = read.found.key, self._tally
        tally.bytes_read += read.bytes_read
        if read.skipped:
            tally.skipped.append(Skipped(key_path(key), read.skipped))
            if read.found.first_key is None:
                self._moved[key] = None
            if self._has_base:
                await self._editor.put(key, None)
            self._remember.note_missing(key)
            return
        pieces = read.pieces
        ids = pieces.ids if len(pieces.lengths) <= PIECES_INLINE_MAX else []
        pieces_root = b"" if ids or not pieces.lengths else await self._pieces_root(pieces)
        packed = self._packed(read, ids, pieces_root)
        tally.size_bytes += read.pieces.size
        tally.bytes_data += read.pieces.size - read.pieces.zero_bytes
        if read.has_changed:
            tally.changed.append(key_path(key))
        self._note_file(key, read.status, packed, ids=ids, root=pieces_root, has_changed=read.has_changed)
        await self._put(key, packed)

    def _packed(self, read: FileRead, ids: list[BlockId], pieces_root: bytes) -> bytes:
        status, pieces = read.status, read.pieces
        return encode_file(
            status,
            size=pieces.size,
            lengths=[] if pieces_root else pieces.lengths,
            ids=b"".join(ids),
            pieces_root=pieces_root,
            xattrs=read.attributes,
            # A file system that packs or inlines small files also reports few blocks: that is no hole.
            is_sparse=bool(pieces.zero_bytes) and status.st_blocks * 512 < pieces.size,
        )

    async def _pieces_root(self, pieces: PieceList) -> bytes:
        editor = MapEditor(Shape.PIECES, self._nodes, reader=None, base=None)
        for index, value in enumerate(pieces.values()):
            await editor.put(number_key(index), value)
        return await editor.finish()


def _changed_keys(batch: list[Step | FileRead]) -> Iterator[bytes]:
    """What of a batch goes into the map. The names in a folder that has gone may be very many: they come in turn."""
    for one in batch:
        match one:
            case FileRead():
                yield one.found.key
            case Found() if not one.is_remembered:
                yield one.key
            case Gone(keys) if len(keys) <= _FEW_GONE:
                yield from keys
            case _:
                pass
