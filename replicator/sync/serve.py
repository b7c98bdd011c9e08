"""The sending side's answers: differences, blocks, lists.

Sealed blocks go out as they lie: read in disk order, proven, and handed to the link in the
piece of memory they were read into. What turns out to be broken here is healed first, if a
peer has it, so a rotten block is not a failed sync.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Final

from protocol.errors import ErrorCode
from protocol.ids import BlockId, split_ids
from protocol.messages.blocks import BlocksSent, WantBlocks
from protocol.messages.registry import Message
from protocol.messages.snapshots import DiffBase, ListSnapshots, SnapshotList, WantDiff
from protocol.wire.envelope import Buffer, walk
from replicator.catalog.catalog import Catalog
from replicator.core.errors import BlockMissing
from replicator.core.ports import Offload
from replicator.net.link import Stream
from replicator.store.ports import BlockStore, Fault, SealedRuns
from replicator.sync.bases import Bases
from replicator.sync.difference import to_messages
from replicator.sync.walks import Walks

Heal = Callable[[Sequence[Fault]], Awaitable[None]]
"""Try to get sound copies of broken blocks from other peers."""

_READ_BATCH: Final = 64
"""Blocks read from disk at once: some 4 MiB, so that the disk, the hash and the link overlap."""
_LIST_BATCH: Final = 100


class Server:
    """Answers what a receiver asks."""

    def __init__(self, *, store: BlockStore, catalog: Catalog, walks: Walks, offload: Offload, heal: Heal) -> None:
        self._store = store
        self._catalog = catalog
        self._walks = walks
        self._offload = offload
        self._heal = heal
        self._bases = Bases(store, offload)

    async def want_diff(self, stream: Stream, request: Message) -> None:
        """From the first of the receiver's roots that we know too, or from nothing."""
        assert isinstance(request, WantDiff)
        if not self._catalog.has_snapshot(request.snapshot_id):
            stream.reset(ErrorCode.NOT_FOUND, "that snapshot is not here")
            return
        record = self._catalog.snapshot(request.snapshot_id).record
        ours = {snapshot.record.root for snapshot in self._catalog.snapshots(record.volume_id)}
        shared = [root for root in split_ids(request.have_roots) if root in ours]
        unfit = await self._bases.unfit(shared)
        base = next((root for root in shared if root not in unfit), None)
        await stream.send(DiffBase(base_root=base or b""))
        try:
            async for message in to_messages(self._walks.changes(record, base), record.shape):
                await stream.send(message)
        except BlockMissing as error:
            if base is not None:
                self._bases.note(base, error.block_id)
            raise
        await stream.send(DiffBase(base_root=record.root), end=True)

    async def want_blocks(self, stream: Stream, request: Message) -> None:
        assert isinstance(request, WantBlocks)
        await send_blocks(stream, split_ids(request.ids), store=self._store, offload=self._offload, heal=self._heal)

    async def list_snapshots(self, stream: Stream, request: Message) -> None:
        assert isinstance(request, ListSnapshots)
        found = [snapshot.signed for snapshot in self._catalog.snapshots(request.volume_id or None)]
        for at in range(0, len(found), _LIST_BATCH):
            await stream.send(SnapshotList(records=tuple(found[at : at + _LIST_BATCH])))
        await stream.send(SnapshotList(records=()), end=True)


async def send_blocks(
    stream: Stream, ids: Sequence[BlockId], *, store: BlockStore, offload: Offload, heal: Heal | None
) -> int:
    """Send what can be had of `ids`, and say at the end what could not. Returns how many blocks were sent."""
    missing: list[BlockId] = []
    sent = 0
    for at in range(0, len(ids), _READ_BATCH):
        part = ids[at : at + _READ_BATCH]
        answer = await offload.run(store.read_sealed, part)
        sent += await _send_runs(stream, answer)
        if answer.faults and heal is not None:
            await heal(answer.faults)
            again = await offload.run(store.read_sealed, [fault.block_id for fault in answer.faults])
            sent += await _send_runs(stream, again)
            missing += [fault.block_id for fault in again.faults]
        else:
            missing += [fault.block_id for fault in answer.faults]
    await stream.send(BlocksSent(missing=b"".join(missing)), end=True)
    return sent


async def _send_runs(stream: Stream, answer: SealedRuns) -> int:
    goal = stream.link.frame_goal_bytes()
    for run in answer.runs:
        for frame in _frames(run, goal):
            await stream.send_blocks([frame])
    return answer.blocks_count


def _frames(run: Buffer, goal: int) -> list[Buffer]:
    """Cut a run at block borders into frames of about `goal` bytes."""
    if len(run) <= goal:
        return [run]
    view = memoryview(run)
    cuts = [0]
    end = 0
    for at, header in walk(run):
        end = at + header.sealed_bytes
        if end - cuts[-1] >= goal:
            cuts.append(end)
    if cuts[-1] != end:
        cuts.append(end)
    return [view[a:b] for a, b in pairwise(cuts)]


__all__ = ["Heal", "Server", "send_blocks"]
