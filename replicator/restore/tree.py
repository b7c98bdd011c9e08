"""Restoring a tree, or a path of one.

    entries in key order  →  what stands already  →  batches with their blocks  →  the writer

A path that cannot be restored (a block that nobody has, a file system that refuses a name) is
reported, and the others go on: what can be saved is saved. Only what makes the whole
impossible is raised.
"""

import ctypes
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.entries import Entry, check_key, path_key
from replicator.core.errors import BlockMissing, ManifestDamaged, NotFound, SourceError
from replicator.core.ports import Offload
from replicator.core.progress import Progress
from replicator.restore.flow import BATCH_BYTES, BATCH_ENTRIES, run_ahead
from replicator.restore.selection import entry_at, is_inside, pieces_of, selected
from replicator.restore.standing import Standing, look
from replicator.restore.writer import Failed, Step, TreeWriter
from replicator.store.ports import BlockReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did."""

    entries: int
    """Paths that were made. Folders that were there already count as well."""
    files: int
    bytes_written: int
    kept: int
    """Paths that stood there already as the snapshot says."""
    failed: tuple[Failed, ...]


@dataclass(slots=True)
class _Batch:
    steps: list[Step] = field(default_factory=list)
    size_bytes: int = 0
    bodies: dict[BlockId, Buffer] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= BATCH_BYTES or len(self.steps) >= BATCH_ENTRIES


async def restore_tree(
    reader: BlockReader,
    root: BlockId,
    target: Path,
    *,
    only: bytes | None,
    overwrite: bool,
    as_root: bool,
    offload: Offload,
    progress: Progress,
) -> Restored:
    """Restore into the folder `target`, which is made if need be; `only` keeps its path below it.

    Without `overwrite`, what stands there and differs is left alone and reported, and what is the
    same is not written again. With it, everything is written afresh, folders are merged, and what
    the snapshot does not name stays. `as_root` restores owners, setuid and devices.

    Raises `SourceError` if the target cannot be used, `TargetFull`, `NotFound` if `only` is not in the snapshot,
    `ManifestDamaged`, `BlockMissing` for a node of the manifest.
    """
    handle, was_empty = await offload.run(_open_target, target)
    writer = TreeWriter(handle, target, overwrite=overwrite, as_root=as_root)
    planner = _Planner(reader, root, handle, only=only, looks=not (was_empty or overwrite), offload=offload)
    progress.begin("restoring")

    async def write(batch: _Batch) -> None:
        await offload.run(writer.apply, batch.steps, batch.bodies)
        progress.advance(batch.size_bytes)

    try:
        await run_ahead(planner.batches(), planner.filled, write)
    finally:
        await offload.run(writer.finish)
        os.close(handle)
    await offload.run(_sync_file_system, target)
    return Restored(
        entries=writer.entries,
        files=writer.files,
        bytes_written=writer.bytes_written,
        kept=planner.kept,
        failed=tuple(writer.failed),
    )


def _open_target(target: Path) -> tuple[int, bool]:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with os.scandir(handle) as names:
            return handle, next(names, None) is None
    except OSError as error:
        raise SourceError(
            f"{target} cannot be restored to: {error.strerror}.", hint="Name a folder that this user may write to."
        ) from error


def _sync_file_system(target: Path) -> None:
    """One flush for all files: their renames and contents reach the disk together."""
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            number = ctypes.get_errno()
            raise SourceError(f"Flushing {target} failed: {os.strerror(number)}.", hint="Check that disk.")
    finally:
        os.close(handle)


class _Planner:
    """Turns entries into batches of steps, with the blocks they need."""

    def __init__(
        self,
        reader: BlockReader,
        root: BlockId,
        target_handle: int,
        *,
        only: bytes | None,
        looks: bool,
        offload: Offload,
    ) -> None:
        self._reader = reader
        self._root = root
        self._target_handle = target_handle
        self._only = only
        self._wanted = path_key(only or b"")
        self._looks = looks
        self._offload = offload
        self._carriers: dict[bytes, bytes] = {}
        self.kept = 0

    async def batches(self) -> AsyncGenerator[_Batch, None]:
        batch = _Batch()
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                batch.steps.append(step)
                batch.size_bytes += sum(length for length, _ in step.pieces)
                if batch.is_full:
                    yield batch
                    batch = _Batch()
        yield batch

    async def _steps(self) -> AsyncGenerator[Step, None]:
        async with aclosing(self._standing()) as paths:
            async for key, entry, standing in paths:
                if standing is Standing.DIFFERENT:
                    yield Step(key, entry, failed="something else is there already")
                elif not entry.is_file:
                    yield Step(key, entry)
                elif entry.pieces_root:
                    async with aclosing(self._large(key, entry)) as parts:
                        async for part in parts:
                            yield part
                else:
                    yield Step(key, entry, list(zip(entry.lengths, entry.block_ids(), strict=True)))

    async def _standing(self) -> AsyncGenerator[tuple[bytes, Entry, Standing], None]:
        """The selected entries that have to be made, and how each stands in the target."""
        waiting: list[tuple[bytes, Entry]] = []
        async with aclosing(selected(self._reader, self._root, only=self._only)) as paths:
            async for key, entry in paths:
                if not key and self._wanted:
                    continue
                waiting.append((key, await self._own_content(key, entry)))
                if len(waiting) == BATCH_ENTRIES:
                    for one in await self._looked(waiting):
                        yield one
                    waiting = []
        for one in await self._looked(waiting):
            yield one

    async def _looked(self, paths: list[tuple[bytes, Entry]]) -> list[tuple[bytes, Entry, Standing]]:
        if not self._looks:
            return [(key, entry, Standing.ABSENT) for key, entry in paths]
        states = await self._offload.run(look, self._target_handle, paths)
        found: list[tuple[bytes, Entry, Standing]] = []
        for (key, entry), state in zip(paths, states, strict=True):
            if state is Standing.SAME and not entry.is_directory:
                self.kept += 1
            else:
                # A folder is entered in any case, and gets its mode and times again.
                found.append((key, entry, state if not entry.is_directory else _merged(state)))
        return found

    async def _own_content(self, key: bytes, entry: Entry) -> Entry:
        """A hard link whose first path is not selected carries the content itself; further ones link to it."""
        if not entry.is_hard_link:
            return entry
        check_key(entry.target)
        if not entry.target or entry.target >= key:
            raise ManifestDamaged("A hard link in the snapshot does not point back.")
        if is_inside(entry.target, self._wanted):
            return entry
        if entry.target in self._carriers:
            return replace(entry, target=self._carriers[entry.target])
        try:
            content = await entry_at(self._reader, self._root, entry.target)
        except NotFound:
            return entry
        self._carriers[entry.target] = key
        return content

    async def _large(self, key: bytes, entry: Entry) -> AsyncGenerator[Step, None]:
        step = Step(key, entry, is_last=False)
        size = 0
        try:
            async with aclosing(pieces_of(self._reader, entry)) as pieces:
                async for length, block in pieces:
                    if size >= BATCH_BYTES:
                        yield step
                        step, size = Step(key, entry, is_first=False, is_last=False), 0
                    step.pieces.append((length, block))
                    size += length
        except (BlockMissing, ManifestDamaged) as error:
            step.failed = error.message
        step.is_last = True
        yield step

    async def filled(self, batch: _Batch) -> _Batch:
        """The batch with its blocks. If one cannot be had, its file fails, and the others are read by themselves."""
        try:
            batch.bodies = await self._read(batch.steps)
        except BlockMissing:
            for step in batch.steps:
                try:
                    batch.bodies |= await self._read([step])
                except BlockMissing as error:
                    step.failed = step.failed or error.message
        return batch

    async def _read(self, steps: list[Step]) -> dict[BlockId, Buffer]:
        wanted = dict.fromkeys(block for step in steps if not step.failed for _, block in step.pieces)
        wanted.pop(ZERO_BLOCK, None)
        return await self._reader.read(list(wanted)) if wanted else {}


def _merged(state: Standing) -> Standing:
    return Standing.ABSENT if state is Standing.SAME else state
