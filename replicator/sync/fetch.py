"""Fetching missing blocks: several requests under way, each answer proven and stored in batches.

A request names a few hundred blocks; the sender answers in its own disk order. While one
batch is hashed and written by a worker thread, the next ones are on the wire, so the link,
two cores and the disk are busy at once. At most `REQUESTS` times one stream's credit is in memory.

Nothing is asked for twice: what is under way is remembered until it is in the store, and
what is in the store is not wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from protocol.errors import BadBlock, Unexpected
from protocol.ids import BlockId, split_ids
from protocol.messages.blocks import BlocksSent, WantBlocks
from protocol.wire.envelope import unseal
from protocol.wire.frames import Lane
from replicator.core.errors import BlockMissing, PeerError
from replicator.core.nursery import open_work_nursery
from replicator.core.ports import Offload
from replicator.net.link import Link
from replicator.store.ports import BlockStore, Lease, SealedBlock

REQUESTS: Final = 6
_REQUEST_IDS: Final = 128
"""8 MiB of image blocks: as much as a stream's credit lets through without waiting."""
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

    def __init__(self, link: Link, *, store: BlockStore, lease: Lease, offload: Offload, lane: Lane) -> None:
        self._link = link
        self._store = store
        self._lease = lease
        self._offload = offload
        self._lane = lane
        self._send, self._receive = trio.open_memory_channel[list[BlockId]](REQUESTS)
        self._queued: list[BlockId] = []
        self._under_way: set[BlockId] = set()
        self._idle = trio.Event()
        self._open_batches = 0
        self._since_commit = 0
        self.counts = Fetched()
        self.missing_there: list[BlockId] = []

    async def want(self, ids: Sequence[BlockId]) -> int:
        """Fetch those of `ids` that are not here. Returns how many are here already (or under way)."""
        fresh = [block for block in dict.fromkeys(ids) if block not in self._under_way]
        here = await self._offload.run(self._store.have, self._lease, fresh)
        missing = [block for block in fresh if block not in here and block not in self._under_way]
        self._under_way.update(missing)
        self.counts.wanted += len(missing)
        self._queued += missing
        while len(self._queued) >= _REQUEST_IDS:
            batch, self._queued = self._queued[:_REQUEST_IDS], self._queued[_REQUEST_IDS:]
            await self._hand_out(batch)
        return len(ids) - len(missing)

    async def _hand_out(self, batch: list[BlockId]) -> None:
        self._open_batches += 1
        await self._send.send(batch)

    async def drain(self) -> None:
        """Wait until everything wanted so far is in the store (not yet durable).

        Raises `BlockMissing` if the sender does not have it either.
        """
        if self._queued:
            batch, self._queued = self._queued, []
            await self._hand_out(batch)
        while self._open_batches:
            self._idle = trio.Event()
            await self._idle.wait()
        if self.missing_there:
            raise BlockMissing(
                self.missing_there[0],
                hint=f"{self._link.name} lacks {len(self.missing_there)} blocks of what it offers: repair it first.",
            )

    async def run(self) -> None:
        """Keep `REQUESTS` requests under way until cancelled."""
        async with open_work_nursery() as nursery:
            for _ in range(REQUESTS):
                nursery.start_soon(self._work, self._receive.clone())

    async def _work(self, batches: trio.MemoryReceiveChannel[list[BlockId]]) -> None:
        async with batches:
            async for batch in batches:
                await self._fetch(batch)
                self._open_batches -= 1
                self._idle.set()

    async def _fetch(self, batch: list[BlockId]) -> None:
        waiting = set(batch)
        runs: list[bytes] = []
        size = 0
        async with self._link.open(WantBlocks(ids=b"".join(batch)), lane=self._lane) as stream:
            try:
                while (item := await stream.receive()) is not None:
                    if isinstance(item, bytes):
                        runs.append(item)
                        size += len(item)
                        if size >= _STORE_BYTES:
                            some, runs, size = runs, [], 0
                            await self._keep(some, waiting)
                    elif isinstance(item, BlocksSent):
                        self.missing_there += split_ids(item.missing)
                        waiting.difference_update(split_ids(item.missing))
                    else:
                        raise Unexpected(f"{type(item).__name__} among blocks")
            except (PeerError, trio.Cancelled):
                # The link was cut, here or under another request. What has arrived need not be sent again.
                runs += stream.arrived_blocks()
                with trio.CancelScope(shield=True):
                    await self._keep(runs, waiting)
                raise
        await self._keep(runs, waiting)
        self._under_way.difference_update(batch)
        if waiting:
            raise PeerError(f"{self._link.name} did not answer for {len(waiting)} blocks.", hint="Try again.")
        if self._since_commit >= _COMMIT_BYTES:
            self._since_commit = 0
            await self._offload.run(partial(self._store.commit, self._lease, keep_cached=False))

    async def _keep(self, runs: list[bytes], waiting: set[BlockId]) -> None:
        if not runs:
            return
        blocks, new, body_bytes = await self._offload.run(self._prove_and_append, runs, waiting)
        sealed = sum(map(len, runs))
        self._since_commit += sealed
        self.counts.received += blocks
        self.counts.received_twice += blocks - new
        self.counts.sealed_bytes += sealed
        self.counts.body_bytes += body_bytes

    def _prove_and_append(self, runs: list[bytes], waiting: set[BlockId]) -> tuple[int, int, int]:
        """In a worker thread: open every block, check that it is one that we asked for, and write it."""
        blocks: list[SealedBlock] = []
        body_bytes = 0
        for run in runs:
            view, at = memoryview(run), 0
            while at < len(view):
                header, body = unseal(view, at)
                if header.block_id not in waiting:
                    raise BadBlock(f"{self._link.name} sent a block that nobody asked for")
                waiting.discard(header.block_id)
                body_bytes += len(body)
                end = at + header.sealed_bytes
                blocks.append(SealedBlock(header, view[at:end]))
                at = end
        return len(blocks), self._store.append(self._lease, blocks), body_bytes
