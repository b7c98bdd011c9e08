"""Snapshots on a disk that travels: what the first sync over a slow line would take weeks for.

A seed is a folder of files `blocks-N` (runs of sealed blocks, as they lie in a store and cross the
wire) and one file `snapshots`: each signed record behind a u32 of its length. That one is
written last, so a seed without it was never finished.

Nothing in a seed is believed. Each block is opened and hashed, each record's signature is checked,
and a snapshot is entered only when a walk of its manifest has found every block here, as with a
sync. Importing twice is harmless, and an import that was cut goes on: what is here is not written
again. The bytes are those of the store: compressed, and not encrypted.
"""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import ProtocolError
from protocol.ids import BLOCK_ID_BYTES, BlockId, SnapshotId, split_ids
from protocol.limits import BLOCK_BODY_MAX, SNAPSHOT_RECORD_MAX
from protocol.wire.envelope import HEADER_BYTES, parse_header, unseal
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.walk import closure
from replicator.catalog.model import Snapshot
from replicator.catalog.records import open_record
from replicator.core.errors import BlockMissing, SourceError, UsageError
from replicator.core.files import sync_directory, write_durably
from replicator.core.ports import Offload
from replicator.core.progress import Progress
from replicator.store.ports import BlockReader, BlockStore, Lease, SealedBlock
from replicator.sync.publish import store_record

_INDEX: Final = "snapshots"
_FILE_BYTES: Final = 1024**3
"""A new file about so often: any file system takes it."""
_BATCH: Final = 64
_READ_BYTES: Final = 8 * 1024 * 1024
_COMMIT_BYTES: Final = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Seeded:
    """What went out to a seed, or came in from one."""

    snapshots: list[SnapshotId]
    blocks: int
    blocks_new: int
    sealed_bytes: int


class Seeder:
    """Writes seeds and takes them in."""

    def __init__(self, *, store: BlockStore, catalog: Catalog, reader: BlockReader, offload: Offload) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload

    async def export(self, snapshots: list[Snapshot], folder: Path, progress: Progress) -> Seeded:
        """Write a seed. Raises `UsageError` if one is there already, `BlockMissing`, `OSError`."""
        writer = await self._offload.run(_begin, folder)
        progress.begin(f"writing a seed to {folder}", unit="blocks")
        seen: set[BlockId] = set()
        try:
            for snapshot in snapshots:
                async for ids in self._needed(snapshot, seen):
                    for at in range(0, len(ids), _BATCH):
                        await self._offload.run(self._write, writer, ids[at : at + _BATCH])
                        progress.set_done(writer.blocks)
        finally:
            await self._offload.run(writer.close)
        index = b"".join(len(one.signed).to_bytes(4, "big") + one.signed for one in snapshots)
        await self._offload.run(write_durably, folder / _INDEX, index)
        return Seeded([one.snapshot_id for one in snapshots], writer.blocks, writer.blocks, writer.sealed_bytes)

    async def _needed(self, snapshot: Snapshot, seen: set[BlockId]) -> AsyncIterator[list[BlockId]]:
        nodes: set[BlockId] = set()
        async for _, packed in closure(self._reader, snapshot.record.root, snapshot.record.shape, seen=nodes):
            fresh = [block for block in dict.fromkeys(split_ids(packed)) if block not in seen]
            seen.update(fresh)
            yield fresh

    def _write(self, writer: "_Writer", ids: list[BlockId]) -> None:
        answer = self._store.read_sealed(ids)
        if answer.faults:
            raise BlockMissing(answer.faults[0].block_id, hint="Run `replicator repair`, then export again.")
        for run in answer.runs:
            writer.write(run)
        writer.blocks += answer.blocks_count

    async def take_in(self, folder: Path, progress: Progress) -> Seeded:
        """Import a seed. Raises `SourceError` if it is none or is damaged, `Untrusted`, `BlockMissing`."""
        signed = await self._offload.run(_read_index, folder)
        for one in signed:
            self._catalog.check_owner(open_record(one))
        progress.begin(f"reading a seed from {folder}", unit="blocks")
        lease = self._store.begin("seed")
        blocks = new = size = since_commit = 0
        try:
            batches = _batches(folder)
            while batch := await self._offload.run(next, batches, None):
                fresh = await self._offload.run(self._store.append, lease, batch)
                blocks, new = blocks + len(batch), new + fresh
                gained = sum(len(block.sealed) for block in batch)
                size, since_commit = size + gained, since_commit + gained
                if since_commit >= _COMMIT_BYTES:
                    since_commit = 0
                    await self._offload.run(self._store.commit, lease)
                progress.set_done(blocks)
            await self._offload.run(self._store.commit, lease)
            for one in signed:
                await self._enter(one, lease)
        finally:
            self._store.end(lease)
        return Seeded([open_record(one).snapshot_id for one in signed], blocks, new, size)

    async def _enter(self, signed: bytes, lease: Lease) -> None:
        """Everything is here and durable: then, and only then, the snapshot is ours."""
        record = open_record(signed)
        if self._catalog.has_snapshot(record.snapshot_id):
            return
        async for _, packed in closure(self._reader, record.root, record.shape):
            ids = split_ids(packed)
            here = await self._offload.run(self._store.have, lease, ids)
            missing = [block for block in ids if block not in here]
            if missing:
                raise BlockMissing(missing[0], hint="The seed is not whole: export it again, or sync over the wire.")
        name = await self._offload.run(store_record, self._store, lease, signed)
        self._catalog.add_snapshot(signed, name)


class _Writer:
    """The files of a seed, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle = -1
        self._number = self._written = 0
        self.blocks = self.sealed_bytes = 0

    def write(self, run: bytes | bytearray | memoryview) -> None:
        if self._handle < 0 or self._written >= _FILE_BYTES:
            self.close()
            path = self._folder / f"blocks-{self._number:05}"
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._number, self._written = self._number + 1, 0
        view = memoryview(run)
        while view:
            view = view[os.write(self._handle, view) :]
        self._written += len(run)
        self.sealed_bytes += len(run)

    def close(self) -> None:
        if self._handle >= 0:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1
            sync_directory(self._folder)


def _begin(folder: Path) -> _Writer:
    if (folder / _INDEX).exists():
        raise UsageError(f"{folder} holds a seed already.", hint="Give another folder, or empty this one.")
    folder.mkdir(parents=True, exist_ok=True)
    return _Writer(folder)


def _read_index(folder: Path) -> list[bytes]:
    try:
        data = (folder / _INDEX).read_bytes()
    except FileNotFoundError:
        raise SourceError(f"There is no finished seed in {folder}.", hint="Did the export end?") from None
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size > SNAPSHOT_RECORD_MAX or at + 4 + size > len(data):
            raise SourceError(f"The list of snapshots in {folder} is damaged.", hint="Export it again.")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def _batches(folder: Path) -> Iterator[list[SealedBlock]]:
    """Every block of a seed, opened and proven, some mebibytes at a time."""
    for path in sorted(folder.glob("blocks-*")):
        with path.open("rb") as file:
            rest = b""
            while data := file.read(_READ_BYTES):
                batch, rest = _proven(rest + data, path)
                if batch:
                    yield batch
            if rest:
                raise SourceError(f"{path} is cut short.", hint="Copy it again.")


def _proven(data: bytes, path: Path) -> tuple[list[SealedBlock], bytes]:
    """The whole blocks at the beginning of `data`, and what is left."""
    batch: list[SealedBlock] = []
    view, at = memoryview(data), 0
    try:
        while len(data) - at >= HEADER_BYTES:
            header = parse_header(view, at)
            end = at + header.sealed_bytes
            if end > len(data):
                break
            unseal(view[at:end])
            batch.append(SealedBlock(header, view[at:end]))
            at = end
    except ProtocolError as error:
        raise SourceError(f"{path} holds a block that is not sound: {error.why}.", hint="Copy it again.") from error
    return batch, data[at:]


assert _READ_BYTES > BLOCK_BODY_MAX + HEADER_BYTES + BLOCK_ID_BYTES, "a read holds at least one block"
__all__ = ["Seeded", "Seeder"]
