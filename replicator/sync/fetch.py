"""Fetching missing blocks: several requests under way, each answer proven and stored in batches.

Blocks may come from several sites at once (`sources.py`): whoever offers a snapshot has all of
it, others that hold that volume have most of it, and no block is believed unproven anyway. A source that fails or
lies is dropped, and the others go on; only the sender's failure is the receive's.

A request names up to 128 blocks; the sender answers in its own disk order. While one
batch is hashed and written by a worker thread, the next ones are on the wire, so the link,
two cores and the disk are busy at once. All requests together ask for no more than may be lost by a kill.

Nothing is asked for twice: what is under way is remembered until it is in the store, and
what is in the store is not wanted.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from protocol.errors import BadBlock, ProtocolError, Unexpected
from protocol.ids import BlockId, SiteId, split_ids
from protocol.messages.blocks import BlocksSent, WantBlocks
from protocol.wire.envelope import unseal
from protocol.wire.frames import Lane
from replicator.core.errors import BlockMissing, PeerError
from replicator.core.logging import get_logger
from replicator.core.nursery import open_work_nursery
from replicator.core.ports import Offload
from replicator.net.link import Link
from replicator.store.ports import BlockStore, Lease, SealedBlock
from replicator.sync.sources import STEAL_AGE_S, Batch, Request, Source, Sources

REQUESTS: Final = 4
REQUESTS_SHARED: Final = 4
"""At each source, if there are several: together they fill the line."""
_REQUEST_IDS: Final = 128
_REQUEST_IDS_SHARED: Final = 32
"""Smaller pieces share out better, and less has to be taken away from a source that is slow."""
_LOST_BYTES: Final = 8 * 1024 * 1024
_LOST_SHARE: Final = 100
"""What is asked for and not in the store yet is lost if this node is killed, and sent again: at most 8 MiB, or a
hundredth of everything that is fetched. (8 MiB on their way fill a line of 300 Mbit/s at a fifth of a second.)"""
_BLOCK_BYTES: Final = 64 * 1024
"""What a block is thought to take before any has come."""
_STORE_BYTES: Final = 4 * 1024 * 1024
_COMMIT_BYTES: Final = 128 * 1024 * 1024


@dataclass(slots=True)
class Fetched:
    """Counted while it goes on."""

    wanted: int = 0
    received: int = 0
    received_twice: int = 0
    sealed_bytes: int = 0
    body_bytes: int = 0


class Fetcher:
    """Fetches blocks for one receive. Run it in a nursery with `run`; feed it with `want`; end with `finish`."""

    def __init__(
        self,
        sender: Link | None,
        *,
        others: Sequence[Link],
        store: BlockStore,
        lease: Lease,
        offload: Offload,
        lane: Lane,
        receiving: Callable[[SiteId], AbstractAsyncContextManager[None]],
    ) -> None:
        """`receiving`: around everything that a source which has offered nothing sends."""
        self._receiving = receiving
        self._sender = sender
        self._store = store
        self._lease = lease
        self._offload = offload
        self._lane = lane
        self.sources = Sources(sender, others)
        self._is_shared = len(self.sources.all) > 1
        self._queued: list[BlockId] = []
        self._under_way: set[BlockId] = set()
        self._idle = trio.Event()
        self._open_batches = 0
        self._since_commit = 0
        self.counts = Fetched()
        self.missing_there: list[BlockId] = []

    async def want(self, ids: Sequence[BlockId]) -> list[BlockId]:
        """Fetch those of `ids` that are not here, nor under way. Returns them."""
        fresh = [block for block in dict.fromkeys(ids) if block not in self._under_way]
        here = await self._offload.run(self._store.have, self._lease, fresh)
        missing = [block for block in fresh if block not in here and block not in self._under_way]
        self._under_way.update(missing)
        self.counts.wanted += len(missing)
        self._queued += missing
        while len(self._queued) >= (most := self._request_ids()):
            batch, self._queued = self._queued[:most], self._queued[most:]
            await self._hand_out(batch)
        return missing

    def _request_ids(self) -> int:
        """How many blocks to ask for at once, so that all that is asked for is no more than may be lost."""
        counts = self.counts
        block_bytes = max(1, counts.sealed_bytes // counts.received) if counts.received else _BLOCK_BYTES
        lost_max = max(_LOST_BYTES, counts.wanted * block_bytes // _LOST_SHARE)
        requests = REQUESTS_SHARED * len(self.sources.all) if self._is_shared else REQUESTS
        fit = max(1, lost_max // requests // block_bytes)
        return min(fit, _REQUEST_IDS_SHARED if self._is_shared else _REQUEST_IDS)

    async def _hand_out(self, batch: list[BlockId]) -> None:
        while self.sources.queued_count >= REQUESTS:
            await self.sources.wait_changed()
        self._put(Batch(batch))

    def _put(self, batch: Batch) -> None:
        if batch.ids:
            self._open_batches += 1
            self.sources.put(batch)

    async def drain(self) -> None:
        """Wait until everything wanted so far is in the store (not yet durable).

        Raises `BlockMissing` if the sender does not have it either.
        """
        await self._hand_out_rest()
        self.sources.is_whole = True
        while self._open_batches:
            await self._idle.wait()
        self.sources.is_whole = False
        self._check_none_is_missing()

    async def bring(self, ids: Sequence[BlockId]) -> None:
        """Fetch those of `ids` that are not here, and wait for these, whatever else is under way. As `drain` raises."""
        await self.want(ids)
        await self._hand_out_rest()
        while not self._under_way.isdisjoint(ids):
            self._check_none_is_missing()
            await self._idle.wait()

    async def _hand_out_rest(self) -> None:
        while self._queued:
            most = self._request_ids()
            batch, self._queued = self._queued[:most], self._queued[most:]
            await self._hand_out(batch)

    def _check_none_is_missing(self) -> None:
        if not self.missing_there:
            return
        count = len(self.missing_there)
        if self._sender is None:
            hint = f"None of the sites that are left has {count} blocks of it: it needs the one that offered it."
        else:
            hint = f"{self._sender.name} lacks {count} blocks of what it offers: repair it first."
        raise BlockMissing(self.missing_there[0], hint=hint)

    async def run(self) -> None:
        """Keep requests under way at every source until cancelled."""
        async with open_work_nursery() as nursery:
            for source in self.sources.all:
                nursery.start_soon(self._work_off, source)
            nursery.start_soon(self._watch)

    async def _work_off(self, source: Source) -> None:
        async with AsyncExitStack() as stack:
            if not source.is_sender:
                # Whoever offers was told when it did. The others share what may come in, and have to be told as well.
                await stack.enter_async_context(self._receiving(source.site))
            async with open_work_nursery() as nursery:
                for _ in range(REQUESTS_SHARED if self._is_shared else REQUESTS):
                    nursery.start_soon(self._work, source)

    async def _watch(self) -> None:
        """Take requests away from sources that have fallen silent."""
        while True:
            await trio.sleep(STEAL_AGE_S)
            for request in self.sources.silent():
                request.is_silent = True
                request.source.note_silent()
                request.scope.cancel()

    async def _work(self, source: Source) -> None:
        while not source.is_over:
            batch = self.sources.next_for(source)
            if batch is None:
                with trio.move_on_after(STEAL_AGE_S) as pause:
                    await self.sources.wait_changed()
                if pause.cancelled_caught and (slow := self.sources.take_over(source)) is not None:
                    slow.scope.cancel()
                continue
            try:
                await self._fetch(source, batch)
            except (PeerError, ProtocolError) as error:
                # Whoever offered is gone, and its offer with it. Any other source is replaced by those that are left.
                source.is_over = True
                if source.is_sender or not self.sources.live:
                    raise
                get_logger().warning("source.dropped", peer=source.link.name, error=str(error))
            self._open_batches -= 1
            for batch in self.sources.hopeless():
                self.missing_there += batch.ids
                self._open_batches -= 1
            self.sources.wake()
            idle, self._idle = self._idle, trio.Event()  # For everybody who waits, and they may be several.
            idle.set()

    async def _fetch(self, source: Source, batch: Batch) -> None:
        """Ask one source for a batch. What it did not bring, for whatever reason, is put back into the queue."""
        lacked: list[BlockId] = []
        with trio.CancelScope() as scope:
            request = self.sources.begin(source, batch, scope)
            try:
                await self._ask(request, batch.ids, lacked)
            finally:
                self.sources.end(request)
                self._under_way.difference_update(set(batch.ids) - request.waiting - set(lacked))
                source.blocks += len(batch.ids) - len(request.waiting) - len(lacked)
                source.lacked += len(lacked)
                # Before anybody may think that all is done. (Harmless if the whole receive ends here.)
                self._put(Batch([block for block in batch.ids if block in request.waiting], batch.lacked_by))
                if source.is_sender:
                    self.missing_there += lacked
                else:
                    self._put(Batch(lacked, batch.lacked_by | {source.site}))
        source.strikes += request.is_silent
        self.sources.retire_if_useless(source)
        if self._since_commit >= _COMMIT_BYTES:
            self._since_commit = 0
            await self._offload.run(partial(self._store.commit, self._lease, keep_cached=False))

    async def _ask(self, request: Request, ids: Sequence[BlockId], lacked: list[BlockId]) -> None:
        runs: list[bytes] = []
        size, waiting = 0, request.waiting
        ended = False
        async with request.source.link.open(WantBlocks(ids=b"".join(ids)), lane=self._lane) as stream:
            try:
                while not ended:
                    item = await stream.receive()
                    if item is None:
                        break
                    if isinstance(item, bytes):
                        runs.append(item)
                        size += len(item)
                        request.source.note_bytes(len(item))
                        if size >= _STORE_BYTES:
                            some, runs, size = runs, [], 0
                            await self._keep(some, request)
                    elif isinstance(item, BlocksSent):
                        lacked += [block for block in split_ids(item.missing) if block in waiting]
                        waiting.difference_update(lacked)
                        ended = True
                    else:
                        raise Unexpected(f"{type(item).__name__} among blocks")
            except (PeerError, trio.Cancelled):
                # The link was cut, here or under another request. What has arrived need not be sent again.
                runs += stream.arrived_blocks()
                with trio.CancelScope(shield=True):
                    await self._keep(runs, request)
                raise
        await self._keep(runs, request)
        if waiting:
            raise PeerError(f"{request.source.link.name} did not answer for {len(waiting)} blocks.", hint="Try again.")

    async def _keep(self, runs: list[bytes], request: Request) -> None:
        if not runs:
            return
        blocks, new, body_bytes = await self._offload.run(
            prove_and_append, self._store, self._lease, runs, request.waiting, request.source.link.name
        )
        sealed = sum(map(len, runs))
        self._since_commit += sealed
        self.counts.received += blocks
        self.counts.received_twice += blocks - new
        self.counts.sealed_bytes += sealed
        self.counts.body_bytes += body_bytes


def prove_and_append(
    store: BlockStore, lease: Lease, runs: Sequence[bytes], waiting: set[BlockId], name: str
) -> tuple[int, int, int]:
    """In a worker thread: open every block, check that it is one that we asked for, and write it.

    Only what is written is no longer in `waiting`: a source may lie in the middle, and what came before is asked
    of others again. Returns how many blocks came, how many were new, and what they unpack to.
    """
    blocks: list[SealedBlock] = []
    come: set[BlockId] = set()
    body_bytes = 0
    for run in runs:
        view, at = memoryview(run), 0
        while at < len(view):
            header, body = unseal(view, at)
            if header.block_id in come or header.block_id not in waiting:
                raise BadBlock(f"{name} sent a block that nobody asked for")
            come.add(header.block_id)
            body_bytes += len(body)
            end = at + header.sealed_bytes
            blocks.append(SealedBlock(header, view[at:end]))
            at = end
    new = store.append(lease, blocks)
    waiting.difference_update(come)
    return len(blocks), new, body_bytes
