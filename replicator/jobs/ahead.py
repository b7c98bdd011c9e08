"""Who gets the blocks of a snapshot while it is being taken: the peers of the syncs that will bring it over at once."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Final

import trio

from protocol.ids import SiteId, SnapshotId
from replicator.catalog.model import Volume
from replicator.core.nursery import open_work_nursery
from replicator.jobs.due import ships_at_once
from replicator.jobs.parts import Parts
from replicator.net.pacing import OUT
from replicator.store.ports import SealedBlock
from replicator.sync.early import EarlySender

PEERS_MAX: Final = 2
"""Each has a queue of its own in memory; further peers get everything with the ordinary offer."""


class SendingAhead:
    """For the length of one snapshot job."""

    def __init__(self, parts: Parts, nursery: trio.Nursery) -> None:
        self._parts = parts
        self._nursery = nursery
        self._senders: list[EarlySender] = []

    def of(self, volume: Volume, snapshot_id: SnapshotId, tags: Sequence[str]) -> "SendingAhead":
        """What comes from now on belongs to a snapshot of this volume."""
        self.end()
        parts, mesh = self._parts, self._parts.mesh
        rates: dict[SiteId, int] = {}
        for sync in parts.catalog.syncs():
            if ships_at_once(sync, volume, tags, parts.clock.now_ns()):
                rates.setdefault(sync.peer, sync.terms.rate_bytes)
        for site, rate in list(rates.items())[:PEERS_MAX]:
            if mesh is not None and (link := mesh.link_to(site)) is not None:
                pace: Callable[[], AbstractContextManager[None]] = partial(mesh.pacing.job, site, OUT, rate)
                sender = EarlySender(
                    link=link,
                    volume_id=volume.volume_id,
                    snapshot_id=snapshot_id,
                    pace=pace,
                    from_bytes=mesh.config.ahead_from_bytes,
                )
                self._senders.append(sender)
                self._nursery.start_soon(sender.run)
        return self

    def add(self, blocks: Sequence[SealedBlock]) -> None:
        for sender in self._senders:
            sender.add(blocks)

    def wake(self) -> None:
        for sender in self._senders:
            sender.wake()

    @property
    def is_taking(self) -> bool:
        return any(sender.is_sending for sender in self._senders)

    def end(self) -> None:
        """No more blocks come. What is under way still goes, unless a sync wants the line."""
        for sender in self._senders:
            sender.end()
        self._senders = []


@asynccontextmanager
async def sending_ahead(parts: Parts) -> AsyncIterator[SendingAhead]:
    """Publish the snapshot inside the block, so that nobody waits for what is still under way."""
    async with open_work_nursery() as nursery:
        sending = SendingAhead(parts, nursery)
        try:
            yield sending
        finally:
            sending.end()


__all__ = ["SendingAhead", "sending_ahead"]
