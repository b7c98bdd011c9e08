"""Disk images and block devices: blocks of one size, named by their number.

A virtual disk changes in place, so a block keeps its number and cutting by content would
gain nothing. If anything may have been written, everything is read: only reading proves what
is there (`witness` says when nothing can have been). Blocks of zeros are found by comparing
bytes and are left out of the map.

What the file system says of holes may be wrong for a file that is being written. It is
believed only where nothing was written shortly before, and only if size and times are the
same afterwards; otherwise the image is read again without it. Either way the root is the
same: it depends on the content alone.
"""

import os
import stat
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.nodes import Shape, number_key
from replicator.core.errors import SourceError
from replicator.core.ports import Offload, WallClock
from replicator.core.progress import Progress
from replicator.ingest.config import IngestConfig
from replicator.ingest.flow import run_in_order
from replicator.ingest.sealer import Ahead, NodeBuffer, Sealer
from replicator.ingest.sources import ImageSource, Taken, Tally
from replicator.ingest.still import RACY_NS, Stamp, stamp
from replicator.ingest.witness import Seen, boot_id, holds_all, load_seen, save_seen, tells_every_write
from replicator.store.ports import BlockStore, Lease

_STRETCHES: Final = 64
"""Looked for in one trip to a thread. One trip each would cost a third of the time that it takes to read one."""


async def take_image(
    source: ImageSource,
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
    """Put an image into the store. Raises `SourceError`, `StoreError`."""
    began_ns = clock.now_ns()
    image = await offload.run(partial(_Image, source, config))
    try:
        racy_ns = began_ns - RACY_NS
        if image.before.newest_ns < racy_ns:
            seen = await offload.run(image.unchanged_since, memo, store, lease)
            if seen is not None:
                return _not_read(image, seen, progress)
        tells = await offload.run(image.settle)
        holds_still = image.is_regular and image.before.newest_ns < racy_ns
        image.trusts_holes = holds_still
        sealer = Sealer(store, lease, commit_bytes=config.commit_bytes, ahead=ahead)
        taken = await _take_once(image, sealer, offload=offload, progress=progress, config=config)
        if image.trusts_holes and not image.held_still():
            image.trusts_holes = False
            taken = await _take_once(image, sealer, offload=offload, progress=progress, config=config)
        if memo is not None and tells and holds_still:
            await offload.run(save_seen, memo, image.seen(taken))
        return taken
    finally:
        image.close()


def _not_read(image: "_Image", seen: Seen, progress: Progress) -> Taken:
    progress.begin("unchanged", total=image.size_bytes)
    progress.set_done(image.size_bytes)
    return Taken(
        root=seen.root,
        size_bytes=image.size_bytes,
        entries=seen.entries,
        blocks_new=0,
        bytes_new=0,
        bytes_read=0,
        bytes_unchanged=image.size_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    """The blocks of one stretch of the image that are not zeros."""

    end: int
    bytes_read: int
    bytes_zero: int
    blocks: list[tuple[int, BlockId]]


class _Image:
    """An open image. The methods block."""

    def __init__(self, source: ImageSource, config: IngestConfig) -> None:
        self.path = source.path
        self._block_bytes = config.image_block_bytes
        self._batch_bytes = max(config.image_batch_bytes // config.image_block_bytes, 1) * config.image_block_bytes
        self._zeros: Final = bytes(config.image_block_bytes)
        self._buffers: SimpleQueue[bytearray] = SimpleQueue()
        self.trusts_holes = False
        try:
            # Without O_NONBLOCK, opening a pipe by mistake would wait for ever.
            self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(
                f"{self.path} cannot be opened: {error.strerror}.",
                hint="Check the path, and that this user may read it.",
            ) from error
        status = os.fstat(self._handle)
        self.is_regular = stat.S_ISREG(status.st_mode)
        if not self.is_regular and not stat.S_ISBLK(status.st_mode):
            os.close(self._handle)
            raise SourceError(f"{self.path} is neither a file nor a block device.", hint="Protect a folder as a tree.")
        self.before: Stamp = stamp(status)
        self.size_bytes = os.lseek(self._handle, 0, os.SEEK_END)

    def unchanged_since(self, memo: Path | None, store: BlockStore, lease: Lease) -> Seen | None:
        """The last look at this image, if it was not written since, and the store still has all of it."""
        seen = load_seen(memo) if self.is_regular else None
        if seen is None or seen.stamp != self.before or seen.block_bytes != self._block_bytes:
            return None
        if not seen.boot_id or seen.boot_id != boot_id():
            return None
        return seen if holds_all(store, lease, seen.root) else None

    def settle(self) -> bool:
        """Flush what others have dirty in their memory maps, and look at the times only then.

        Returns whether a later write is sure to show in the times.
        """
        if not self.is_regular or not tells_every_write(self.before.device):
            return False
        try:
            os.fsync(self._handle)
        except OSError:
            return False
        self.before = stamp(os.fstat(self._handle))
        return True

    def seen(self, taken: Taken) -> Seen:
        return Seen(
            boot_id=boot_id(),
            stamp=self.before,
            block_bytes=self._block_bytes,
            root=taken.root,
            entries=taken.entries,
        )

    def held_still(self) -> bool:
        return stamp(os.fstat(self._handle)) == self.before

    def close(self) -> None:
        os.close(self._handle)

    def next_stretches(self, at: int) -> list[tuple[int, int]]:
        """Where to read next from `at` on: starts and ends, on the borders of blocks. None of them at the end."""
        found: list[tuple[int, int]] = []
        while len(found) < _STRETCHES:
            at = self._data_from(at)
            if at >= self.size_bytes:
                break
            end = min(at + self._batch_bytes, self.size_bytes)
            found.append((at, end))
            at = end
        return found

    def _data_from(self, at: int) -> int:
        if not self.trusts_holes or at >= self.size_bytes:
            return at
        try:
            data_at = os.lseek(self._handle, at, os.SEEK_DATA)
        except OSError:
            return self.size_bytes  # ENXIO: nothing but a hole from here on.
        return max(at, data_at - data_at % self._block_bytes)

    def read(self, start: int, end: int, sealer: Sealer) -> _Batch:
        """Read a stretch, and put its blocks into the store."""
        try:
            buffer = self._buffers.get_nowait()
        except Empty:
            buffer = bytearray(self._batch_bytes)
        with memoryview(buffer) as view:
            self._fill(view[: end - start], start)
            batch, bodies = self._cut(buffer, view, start, end)
            sealer.add(Kind.DATA, bodies)
        self._buffers.put(buffer)
        return batch

    def _fill(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._handle, [view[done:]], start + done)
            except OSError as error:
                raise SourceError(
                    f"Reading {self.path} at byte {start + done} failed: {error.strerror}.", hint="Check the disk."
                ) from error
            if count == 0:
                raise SourceError(f"{self.path} became shorter while it was read.", hint="Take the snapshot again.")
            done += count

    def _cut(self, buffer: bytearray, view: memoryview, start: int, end: int) -> tuple[_Batch, dict[BlockId, Buffer]]:
        size, zeros = self._block_bytes, self._zeros
        blocks: list[tuple[int, BlockId]] = []
        bodies: dict[BlockId, Buffer] = {}
        bytes_zero = 0
        for at in range(0, end - start, size):
            length = min(size, end - start - at)
            # `startswith` compares in place; a slice would be a copy.
            if buffer.startswith(zeros if length == size else zeros[:length], at):
                bytes_zero += length
                continue
            body = view[at : at + length]
            name = block_id(0, body)
            bodies[name] = body
            blocks.append(((start + at) // size, name))
        return _Batch(end, end - start, bytes_zero, blocks), bodies


async def _take_once(
    image: _Image,
    sealer: Sealer,
    *,
    offload: Offload,
    progress: Progress,
    config: IngestConfig,
) -> Taken:
    nodes = NodeBuffer(bytes_max=config.batch_bytes)
    # No base: what is put is looked up anyway, and nodes that did not change come out the same.
    editor = MapEditor(Shape.NUMBERS, nodes, reader=None, base=None)
    tally = Tally(size_bytes=image.size_bytes)
    progress.begin("reading", total=image.size_bytes)

    async def batches() -> AsyncGenerator[Callable[[], _Batch], None]:
        at = 0
        while stretches := await offload.run(image.next_stretches, at):
            for start, end in stretches:
                yield partial(image.read, start, end, sealer)
            _, at = stretches[-1]

    async def take(batch: _Batch) -> None:
        for number, name in batch.blocks:
            await editor.put(number_key(number), name)
        tally.entries += len(batch.blocks)
        tally.bytes_read += batch.bytes_read
        tally.bytes_data += batch.bytes_read - batch.bytes_zero
        progress.set_done(batch.end)
        if nodes.is_full:
            await offload.run(sealer.add, Kind.NODE, nodes.take())

    await run_in_order(batches(), take, offload=offload, in_flight_max=config.batches_in_flight, sealer=sealer)
    root = await editor.finish()
    await offload.run(sealer.add, Kind.NODE, nodes.take())
    await offload.run(sealer.commit)
    progress.set_done(image.size_bytes)
    return Taken(
        root=root,
        size_bytes=image.size_bytes,
        entries=tally.entries,
        blocks_new=sealer.counts.blocks,
        bytes_new=sealer.counts.sealed_bytes,
        bytes_read=tally.bytes_read,
        bytes_unchanged=max(tally.bytes_data - sealer.counts.data_bytes, 0),
        changed_while_read=() if image.held_still() else (os.fsencode(image.path),),
    )
