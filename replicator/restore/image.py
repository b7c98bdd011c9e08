"""Restoring an image to a file or to a block device.

A file is written beside its final name and renamed when it is whole and flushed; runs of
zeros stay holes. A device is written in place, zeros included: what it held before is gone,
which is why it must be asked for with `overwrite`.
"""

import os
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from blake3 import blake3

from protocol.ids import BlockId
from protocol.limits import MIB
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.nodes import Shape, key_number
from replicator.catalog.manifest.walk import entries
from replicator.core.direct import LongWriter, open_direct
from replicator.core.errors import ManifestDamaged, ReplicatorError, SourceError, TargetFull
from replicator.core.files import sync_directory
from replicator.core.ports import Offload
from replicator.core.progress import Progress
from replicator.restore.flow import BATCH_BYTES, run_ahead
from replicator.restore.tree import Restored
from replicator.restore.writer import NO_ROOM
from replicator.store.ports import BlockReader

_ZEROS: Final = bytes(1 * MIB)


_Blocks = list[tuple[int, BlockId]]
"""Some blocks in the order of the image: offset and id."""


@dataclass(slots=True)
class _Stretch:
    """The same with what is in them."""

    blocks: _Blocks
    bodies: dict[BlockId, Buffer]


async def restore_image(
    reader: BlockReader,
    root: BlockId,
    target: Path,
    *,
    size_bytes: int,
    block_bytes: int,
    overwrite: bool,
    offload: Offload,
    progress: Progress,
) -> Restored:
    """Write the image to `target`. All of it is on the disk when this returns.

    Raises `SourceError` if the target cannot be used, `TargetFull`, `BlockMissing`, `ManifestDamaged`. A file that
    was there before is untouched then; a device is not.
    """
    output = await offload.run(partial(_Output, target, size_bytes=size_bytes, overwrite=overwrite))
    progress.begin("restoring", total=size_bytes)

    async def read(blocks: _Blocks) -> _Stretch:
        return _Stretch(blocks, await reader.read(list(dict.fromkeys(block for _, block in blocks))))

    async def write(stretch: _Stretch) -> None:
        await offload.run(output.write, stretch, block_bytes)
        progress.set_done(output.at)

    try:
        await run_ahead(_stretches(reader, root, size_bytes=size_bytes, block_bytes=block_bytes), read, write)
        await offload.run(output.finish)
    finally:
        await offload.run(output.close)
    progress.set_done(size_bytes)
    return Restored(entries=1, files=1, bytes_written=output.bytes_written, kept=0, failed=())


async def _stretches(
    reader: BlockReader, root: BlockId, *, size_bytes: int, block_bytes: int
) -> AsyncGenerator[_Blocks, None]:
    blocks: _Blocks = []
    async with aclosing(_blocks(reader, root)) as found:
        async for number, block in found:
            if number * block_bytes >= size_bytes:
                raise ManifestDamaged(f"Block {number} lies behind the end of the image.")
            blocks.append((number * block_bytes, block))
            if len(blocks) * block_bytes >= BATCH_BYTES:
                yield blocks
                blocks = []
    if blocks:
        yield blocks


async def _blocks(reader: BlockReader, root: BlockId) -> AsyncGenerator[tuple[int, BlockId], None]:
    async for key, value in entries(reader, root, Shape.NUMBERS):
        yield key_number(key), BlockId(value)


class _Output:
    """Where the image goes. Blocking."""

    def __init__(self, target: Path, *, size_bytes: int, overwrite: bool) -> None:
        self._target = target
        self._size_bytes = size_bytes
        # Found again after a kill, and never a file of somebody else's.
        self._beside = target.with_name(f".replicator-{blake3(os.fsencode(target.name)).hexdigest(8)}.part")
        self._is_whole = False
        self._writer = LongWriter()
        self._direct: int | None = None
        """What is written to, opened past the page cache."""
        self.at = 0
        self.bytes_written = 0
        try:
            there = target.stat().st_mode if target.exists() else None
            self._is_device = there is not None and stat.S_ISBLK(there)
            if there is not None and not (self._is_device or stat.S_ISREG(there)):
                # Renaming a file over /dev/null, or a pipe, would be a strange kind of restore.
                raise SourceError(f"{target} is neither a file nor a block device.", hint="Name a new file.")
            if there is not None and not overwrite:
                raise SourceError(f"{target} exists.", hint="Say --overwrite to replace what it holds.")
            self._handle = self._open_device() if self._is_device else self._open_file()
            self._direct = open_direct(target if self._is_device else self._beside, os.O_WRONLY)
        except OSError as error:
            raise SourceError(
                f"{target} cannot be restored to: {error.strerror}.", hint="Check the path and its permissions."
            ) from error

    def _open_device(self) -> int:
        # O_EXCL on a device: refuse one that is mounted.
        handle = os.open(self._target, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        room = os.lseek(handle, 0, os.SEEK_END)
        if room < self._size_bytes:
            os.close(handle)
            raise SourceError(
                f"{self._target} has {room} bytes, and the image {self._size_bytes}.", hint="Name a larger device."
            )
        return handle

    def _open_file(self) -> int:
        self._beside.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self._beside, flags, 0o600)
        os.ftruncate(handle, self._size_bytes)
        return handle

    def write(self, stretch: _Stretch, block_bytes: int) -> None:
        try:
            start, run = 0, list[Buffer]()
            for offset, block in stretch.blocks:
                body = stretch.bodies[block]
                if len(body) != min(block_bytes, self._size_bytes - offset):
                    raise ManifestDamaged(f"Block {block.hex()} has {len(body)} bytes: not what belongs at {offset}.")
                if offset != self.at or not run:
                    self._write_run(run, start)
                    self._fill_until(offset)
                    start, run = offset, []
                run.append(body)
                self.at = offset + len(body)
            self._write_run(run, start)
        except OSError as error:
            raise self._failure(error) from error

    def _write_run(self, run: list[Buffer], start: int) -> None:
        """Blocks without a gap between them, at once: an image is the longest thing that there is to write."""
        if run:
            self._writer.write(self._handle, self._direct, run, start)
            self.bytes_written += sum(map(len, run))

    def _fill_until(self, offset: int) -> None:
        """A new file has zeros where nothing was written; a device has what it had."""
        while self._is_device and self.at < offset:
            self.at += os.pwrite(self._handle, memoryview(_ZEROS)[: min(len(_ZEROS), offset - self.at)], self.at)

    def finish(self) -> None:
        try:
            self._fill_until(self._size_bytes)
            os.fsync(self._handle)
            if not self._is_device:
                os.replace(self._beside, self._target)
                sync_directory(self._target.parent)
        except OSError as error:
            raise self._failure(error) from error
        self._is_whole = True

    def _failure(self, error: OSError) -> ReplicatorError:
        if error.errno in NO_ROOM:
            return TargetFull(self._target.parent)
        return SourceError(f"Writing {self._target} failed: {error.strerror}.", hint="Check that disk.")

    def close(self) -> None:
        os.close(self._handle)
        if self._direct is not None:
            os.close(self._direct)
        if not self._is_whole and not self._is_device:
            self._beside.unlink(missing_ok=True)
