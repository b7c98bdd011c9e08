"""ioGuardian, the serving side: answer a peer whose blocks have rotted, before any bulk traffic."""

from typing import Final

import trio

from protocol.ids import BlockId, split_ids
from protocol.messages.blocks import BlocksSent
from protocol.messages.registry import Message
from protocol.messages.repair import RepairBlocks
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import RepairLine
from replicator.core.logging import get_logger
from replicator.core.ports import Offload, WallClock
from replicator.net.link import Stream
from replicator.store.ports import BlockStore, SealedRuns

_READ_BATCH: Final = 64
"""Blocks in memory at once: a question may name thousands."""


class Guardian:
    """Serves repair requests."""

    def __init__(self, *, store: BlockStore, catalog: Catalog, offload: Offload, clock: WallClock) -> None:
        self._store = store
        self._catalog = catalog
        self._offload = offload
        self._clock = clock

    async def repair_blocks(self, stream: Stream, request: Message) -> None:
        assert isinstance(request, RepairBlocks)
        began = trio.current_time()
        ids = split_ids(request.ids)
        # Our own broken copies are our own scrub's business: asking others now could go in circles.
        lost: set[BlockId] = set()
        served = 0
        for at in range(0, len(ids), _READ_BATCH):
            answer: SealedRuns = await self._offload.run(self._store.read_sealed, ids[at : at + _READ_BATCH])
            for run in answer.runs:
                await stream.send_blocks([run])
            served += answer.blocks_count
            lost.update(fault.block_id for fault in answer.faults)
        await stream.send(BlocksSent(missing=b"".join(sorted(lost))), end=True)
        took, now = trio.current_time() - began, self._clock.now_ns()
        name = stream.link.name
        lines = [RepairLine(now, b, 0, request.cause, "served", name, "served", took) for b in ids if b not in lost]
        # Not on the loop: a peer that lost everything asks hundreds of times, and each line is flushed.
        await self._offload.run(self._catalog.add_repairs, lines)
        get_logger().info("repair.served", peer=name, blocks=served, lacking=len(lost), took_s=round(took, 3))
