"""Sending blocks ahead: while a snapshot is still being taken, its new blocks are on their way to where it will go.

Taking a snapshot and bringing it over are each bound by the processor or a disk for some of their
time and wait for the rest, so one after the other they take longer than side by side. And what has just
been packed and proven lies in memory: sent from there, it is not read and proven once more.

These are hints. Nobody relies on them: what did not go ahead, because the line was slow or broke, goes
with the ordinary offer, which finds the rest there. So nothing here is tried again, written down, or
waited for, and the snapshot itself is never held up.

    sender    EarlyBlocks · Probe · Probe · blocks … · Probe · blocks … · Noted (end)
    receiver                Answer · Answer · Answer …                    · Noted (end)

A probe is sent one ahead of the blocks that the last answer asked for. The receiver keeps what it has
stored under a lease for as long as the stream lasts; after that a collection may take it, which is the
same as not having sent it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Final

import trio

from protocol.errors import ProtocolError, Unexpected
from protocol.ids import BlockId, SnapshotId, VolumeId, split_ids
from protocol.limits import STREAM_CREDIT, WANT_BLOCKS_MAX
from protocol.messages.mesh import EarlyBlocks, Noted, ProbeAnswer, ProbeBlocks
from protocol.messages.registry import Message
from protocol.wire.envelope import Buffer
from protocol.wire.frames import Lane
from replicator.core.errors import PeerError
from replicator.core.logging import get_logger
from replicator.core.nursery import open_work_nursery
from replicator.core.ports import Offload
from replicator.net.link import Link, SentAhead, Stream
from replicator.store.ports import BlockStore, Lease, SealedBlock
from replicator.sync.fetch import prove_and_append
from replicator.sync.incoming import PaceKeeper, lacking_bits, lacking_ids

QUEUE_BYTES_MAX: Final = 32 * 1024 * 1024
"""What may wait for one peer: some batches of the snapshot. Beyond it, blocks are left to the ordinary offer."""
_BATCH_BYTES: Final = 4 * 1024 * 1024
_WORTH_BYTES: Final = 1024 * 1024
"""Less waits for more to come: where few blocks of a large source are new, each would be a turn of its own."""
_BATCH_IDS: Final = min(1024, WANT_BLOCKS_MAX)
_BATCH_FRAMES: Final = 8
"""On a slow line frames are small, and so is what has to leave before somebody else may have the line."""
_JOIN_BELOW: Final = 32 * 1024
"""Smaller blocks are joined before they are encrypted: a call for each costs more than copying it."""
_REPORTS_MAX: Final = 64
"""Snapshots of which a link remembers what went ahead of them."""
_LAST_S: Final = 5.0
"""How long after the snapshot the last blocks may take to leave."""
_STORE_BYTES: Final = 4 * 1024 * 1024
_STORING_MAX: Final = 2
"""Batches that are being proven and stored while more come in."""
_COMMIT_BYTES: Final = 128 * 1024 * 1024
_OPEN_IDS_MAX: Final = 8 * _BATCH_IDS
"""Ids that a sender may have been told are lacking, and has not sent: an honest one has two batches of them."""


class EarlySender:
    """Sends what one snapshot is putting into the store to one peer. One use."""

    def __init__(
        self,
        *,
        link: Link,
        volume_id: VolumeId,
        snapshot_id: SnapshotId,
        pace: Callable[[], AbstractContextManager[None]],
        from_bytes: int,
    ) -> None:
        self._link = link
        self._volume_id = volume_id
        self._snapshot_id = snapshot_id
        self._pace = pace
        self._from_bytes = from_bytes
        self._lock = threading.Lock()
        self._waiting: deque[SealedBlock] = deque()
        self._bytes = 0
        self._is_over = False
        self.is_sending = False
        """The peer takes blocks, and has fallen behind with none."""
        self._is_ended = False
        self._woken = trio.Event()
        self._scope = trio.CancelScope()
        self.report = SentAhead()
        self._asked: deque[list[SealedBlock]] = deque()
        """Batches about which the peer was asked and that are not sent yet."""

    # -- called by the snapshot -------------------------------------------------------------

    def add(self, blocks: Iterable[SealedBlock]) -> None:
        """Blocks that have just been put into our store. Called by worker threads; does not wait."""
        with self._lock:
            for block in blocks:
                if self._is_over or self._bytes >= QUEUE_BYTES_MAX:
                    self.is_sending = False
                    self._leave(block)
                    continue
                self._waiting.append(block)
                self._bytes += len(block.sealed)

    def _leave(self, block: SealedBlock) -> None:
        self.report.left_blocks += 1
        self.report.left_bytes += len(block.sealed)

    def wake(self) -> None:
        """There may be something new. On the event loop."""
        self._woken.set()

    def end(self) -> None:
        """There will be no more."""
        self._is_ended = True
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + _LAST_S)
        self.wake()

    # -- the sending ------------------------------------------------------------------------

    async def run(self) -> None:
        """Until everything has been sent, or the line is wanted by a sync, or fails."""
        try:
            with self._scope:
                await self._run()
        except (PeerError, ProtocolError) as error:
            get_logger().info("early.stopped", peer=self._link.name, why=str(error))
        finally:
            with self._lock:
                self._is_over, self.is_sending = True, False
                for block in chain(*self._asked, self._waiting):
                    self._leave(block)
                self._asked.clear()
                self._waiting.clear()
            if (sent := self.report).blocks:
                name = self._link.name
                get_logger().info("early.sent", peer=name, blocks=sent.blocks, block_bytes=sent.sealed_bytes)

    async def _run(self) -> None:
        while self._bytes < self._from_bytes:
            if self._is_ended:
                return
            await self._more()
        link = self._link
        if not link.speaks(EarlyBlocks) or link.bulk_turn.locked():
            return  # Something else is being brought over: that was there first.
        async with link.bulk_turn:
            try:
                with self._pace():
                    async with link.open(EarlyBlocks(volume_id=self._volume_id), lane=Lane.SYNC, end=False) as stream:
                        self.is_sending = True
                        await self._talk(stream)
                        await stream.send(Noted(), end=True)
                        await stream.receive()
            finally:
                # Before the turn ends: the sync that has it next says in its report what came before it.
                link.sent_ahead[self._snapshot_id] = self.report
                while len(link.sent_ahead) > _REPORTS_MAX:  # Of snapshots that were never brought over after all.
                    link.sent_ahead.pop(next(iter(link.sent_ahead)))

    async def _talk(self, stream: Stream) -> None:
        asked = self._asked
        while True:
            while len(asked) < 2 and (batch := self._next()):
                await stream.send(ProbeBlocks(ids=b"".join([block.header.block_id for block in batch])))
                asked.append(batch)
            if not asked:
                if self._is_ended or self._is_wanted:
                    return
                await self._more()
                continue
            await self._answer(stream, asked[0])
            asked.popleft()

    async def _answer(self, stream: Stream, batch: Sequence[SealedBlock]) -> None:
        answer = await stream.receive()
        if not isinstance(answer, ProbeAnswer):
            raise Unexpected("a probe is not answered")
        lacking = lacking_ids([block.header.block_id for block in batch], answer)
        goal, frame, size = stream.link.frame_goal_bytes(), list[Buffer](), 0
        for block in batch:
            if block.header.block_id not in lacking:
                self.report.there_bytes += len(block.sealed)
                continue
            if size and size + len(block.sealed) > goal:
                await _send(stream, frame)
                frame, size = [], 0
            frame.append(block.sealed)
            size += len(block.sealed)
            self.report.blocks += 1
            self.report.sealed_bytes += len(block.sealed)
        await _send(stream, frame)

    @property
    def _is_wanted(self) -> bool:
        """Whether a sync waits for the line: it is never kept waiting for a hint."""
        return bool(self._link.bulk_turn.statistics().tasks_waiting)

    def _next(self) -> list[SealedBlock]:
        """What to ask about next."""
        if self._is_wanted:
            return []
        goal = min(_BATCH_BYTES, _BATCH_FRAMES * self._link.frame_goal_bytes())
        worth = min(_WORTH_BYTES, goal, self._from_bytes)
        batch: list[SealedBlock] = []
        size = 0
        with self._lock:
            if self._bytes < worth and not self._is_ended:
                return []
            while self._waiting and size < goal and len(batch) < _BATCH_IDS:
                block = self._waiting.popleft()
                batch.append(block)
                size += len(block.sealed)
            self._bytes -= size
        return batch

    async def _more(self) -> None:
        self._woken = trio.Event()
        await self._woken.wait()


async def _send(stream: Stream, frame: list[Buffer]) -> None:
    if frame:
        is_small = sum(map(len, frame)) < _JOIN_BELOW * len(frame)
        await stream.send_blocks([b"".join(frame)] if is_small else frame)


class EarlyReceiver:
    """Takes in what is sent ahead."""

    def __init__(self, *, store: BlockStore, offload: Offload, pace: PaceKeeper) -> None:
        self._store = store
        self._offload = offload
        self._pace = pace

    async def asked(self, stream: Stream, request: Message) -> None:
        """Answer an `EarlyBlocks`."""
        assert isinstance(request, EarlyBlocks)
        lease = self._store.begin(f"blocks sent ahead by {stream.link.name}")
        taking = _Taking(stream, store=self._store, lease=lease, offload=self._offload)
        try:
            async with self._pace.receiving(stream.peer):
                await taking.run()
            await stream.send(Noted(), end=True)
            await taking.commit()
        finally:
            self._store.end(lease)


class _Taking:
    """One stream of early blocks."""

    def __init__(self, stream: Stream, *, store: BlockStore, lease: Lease, offload: Offload) -> None:
        self._stream = stream
        self._store = store
        self._lease = lease
        self._offload = offload
        self._expected: set[BlockId] = set()
        self._runs: list[bytes] = []
        self._size = self._since_commit = 0
        self._room = trio.Semaphore(_STORING_MAX)

    async def run(self) -> None:
        async with open_work_nursery() as nursery:
            try:
                while (item := await self._stream.receive()) is not None:
                    if isinstance(item, ProbeBlocks):
                        await self._probed(split_ids(item.ids))
                    elif isinstance(item, bytes):
                        await self._take(item, nursery)
                    elif not isinstance(item, Noted):
                        raise Unexpected(f"{type(item).__name__} among blocks that are sent ahead")
            except PeerError:
                # The line was cut. What has come need not come again.
                self._runs += self._stream.arrived_blocks()
            with trio.CancelScope(shield=True):
                await self._store_some(self._take_runs())

    async def _probed(self, ids: list[BlockId]) -> None:
        here = await self._offload.run(self._store.have, self._lease, ids)
        lacking = {block for block in ids if block not in here and block not in self._expected}
        self._expected |= lacking
        if len(self._expected) > _OPEN_IDS_MAX:
            raise Unexpected("more is announced than is sent")
        await self._stream.send(ProbeAnswer(lacking=lacking_bits(ids, lacking)))

    async def _take(self, run: bytes, nursery: trio.Nursery) -> None:
        self._runs.append(run)
        self._size += len(run)
        if self._size >= _STORE_BYTES:
            await self._room.acquire()
            nursery.start_soon(self._store_beside, self._take_runs())

    def _take_runs(self) -> list[bytes]:
        runs, self._runs, self._size = self._runs, [], 0
        return runs

    async def _store_beside(self, runs: list[bytes]) -> None:
        try:
            await self._store_some(runs)
        finally:
            self._room.release()

    async def _store_some(self, runs: list[bytes]) -> None:
        if not runs:
            return
        name = self._stream.link.name
        await self._offload.run(prove_and_append, self._store, self._lease, runs, self._expected, name)
        self._since_commit += sum(map(len, runs))
        if self._since_commit >= _COMMIT_BYTES:
            await self.commit()

    async def commit(self) -> None:
        self._since_commit = 0
        await self._offload.run(_commit, self._store, self._lease)


def _commit(store: BlockStore, lease: Lease) -> None:
    store.commit(lease, keep_cached=False)


assert 2 * _BATCH_BYTES <= STREAM_CREDIT, "two batches fit into what a stream may have on its way"

__all__ = ["EarlyReceiver", "EarlySender"]
