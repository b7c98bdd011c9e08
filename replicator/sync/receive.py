"""The receiving side: it drives.

A snapshot arrives as an offer, or is fetched because we want it. What is missing of it is
brought here (`intake.py`), made durable and entered in the catalogue, and only then do we sign a
receipt. A receive that is cut at any point leaves blocks that the next one finds here; nothing
else has to be remembered.

If the site that offers goes in the middle, others may have what is left: `Receiver.complete` goes on with
them alone.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from protocol.ids import SiteId, SnapshotId
from protocol.messages.registry import Message
from protocol.messages.snapshots import OfferSnapshot, Receipt, SyncProgress, SyncReport
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.core.errors import Unreachable
from replicator.core.logging import get_logger
from replicator.core.nursery import open_work_nursery
from replicator.net.link import Link, Stream
from replicator.sync.bases import Bases
from replicator.sync.intake import Intake, ReceiverPorts
from replicator.sync.receipts import sign_receipt
from replicator.sync.told import Told

_PROGRESS_S: Final = 0.25


class Receiver:
    """Takes in offered snapshots."""

    def __init__(self, ports: ReceiverPorts) -> None:
        self._ports = ports
        self._bases = Bases(ports.store, ports.offload)
        self._locks: dict[SnapshotId, trio.Lock] = {}

    async def offered(self, stream: Stream, request: Message) -> None:
        """Answer an `OfferSnapshot`."""
        assert isinstance(request, OfferSnapshot)
        record = open_record(request.record)
        self._ports.catalog.check_owner(record)
        async with self._turn(record.snapshot_id):
            report = await self.obtain(stream, record, request, on_told=None)
        self._ports.catalog.expect(record.volume_id, stream.peer, every_s=request.every_s)
        await stream.send(report)
        await stream.send(self._receipt(record), end=True)

    async def pull(
        self, teller: "Teller", signed: bytes, *, job: str, on_told: Callable[[Told], None]
    ) -> tuple[SyncReport, Receipt]:
        """Get a snapshot that nobody has offered: the same, but that the wish is ours. Raises as `offered` does.

        `on_told` hears what it will take, once the difference has been told; never, if the peer falls silent before.
        """
        record = open_record(signed)
        self._ports.catalog.check_owner(record)
        async with self._turn(record.snapshot_id):
            request = OfferSnapshot(record=signed, every_s=0, job=job)
            report = await self.obtain(teller, record, request, on_told=on_told)
        return report, self._receipt(record)

    async def complete(self, signed: bytes, *, without: SiteId, job: str) -> tuple[SyncReport, Receipt]:
        """Go on with a receive whose other side is gone, from all others that hold something of the volume.

        Raises `Unreachable` if there are none or they go too, `BlockMissing` if together they do not have all of it.
        """
        ports, record = self._ports, open_record(signed)
        ports.catalog.check_owner(record)
        async with self._turn(record.snapshot_id):
            others = [link for link in ports.holders(record.volume_id) if link.peer != without]
            if not others and not ports.catalog.has_snapshot(record.snapshot_id):
                raise Unreachable(f"No other site that is linked holds anything of {record.volume_name}.")
            report = await self._receive(None, others, record, signed, job=job, tell=None, on_told=None)
        return report, self._receipt(record)

    @asynccontextmanager
    async def _turn(self, snapshot_id: SnapshotId) -> AsyncIterator[None]:
        """One receive of a snapshot at a time, however it ends."""
        lock = self._locks.setdefault(snapshot_id, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(snapshot_id, None)

    def _receipt(self, record: SnapshotRecord) -> Receipt:
        received_ns = self._ports.catalog.snapshot(record.snapshot_id).received_ns
        return sign_receipt(record, site_id=self._ports.site_id, received_at_ns=received_ns, sign=self._ports.sign)

    async def obtain(
        self,
        stream: "Teller",
        record: SnapshotRecord,
        request: OfferSnapshot,
        *,
        on_told: Callable[[Told], None] | None,
    ) -> SyncReport:
        """Fetch what is missing of a snapshot over the teller's link, and enter it."""
        others = [one for one in self._ports.holders(record.volume_id) if one.peer != stream.peer]
        return await self._receive(
            stream.link, others, record, request.record, job=request.job, tell=stream, on_told=on_told
        )

    async def _receive(
        self,
        sender: Link | None,
        others: Sequence[Link],
        record: SnapshotRecord,
        signed: bytes,
        *,
        job: str,
        tell: "Teller | None",
        on_told: Callable[[Told], None] | None,
    ) -> SyncReport:
        ports = self._ports
        who = "other sites" if sender is None else sender.name
        lease = ports.store.begin(f"receive {record.volume_name} from {who}")
        began = trio.current_time()
        try:
            session = Intake(sender, others, record, ports=ports, bases=self._bases, lease=lease, on_told=on_told)
            if ports.catalog.has_snapshot(record.snapshot_id):
                await session.check_if_damaged()
                return session.report()
            async with open_work_nursery() as nursery:
                if tell is not None:
                    nursery.start_soon(_tell_progress, tell, session)
                nursery.start_soon(session.fetcher.run)
                nursery.start_soon(session.watch)
                await (session.receive() if sender is not None else session.complete())
                nursery.cancel_scope.cancel()
            await session.publish(signed)
            snapshot = ports.catalog.snapshot(record.snapshot_id)
        finally:
            ports.store.end(lease)
        report = session.report()
        get_logger().info(
            "snapshot.received",
            job=job,
            peer=who,
            volume=record.volume_name,
            snapshot=record.snapshot_id.hex()[:12],
            blocks=report.blocks_received,
            block_bytes=report.block_bytes,
            diff_bytes=report.diff_bytes,
            took_s=round(trio.current_time() - began, 3),
        )
        ports.on_received(snapshot, record.origin if sender is None else sender.peer)
        return report


class Teller(Protocol):
    """Whom a receive tells how far it is: the stream of an offer, or whoever pulls."""

    @property
    def peer(self) -> SiteId: ...

    @property
    def link(self) -> Link: ...

    async def send(self, message: Message) -> None: ...


async def _tell_progress(stream: Teller, session: Intake) -> None:
    while True:
        await trio.sleep(_PROGRESS_S)
        counts = session.fetcher.counts
        await stream.send(
            SyncProgress(
                blocks_done=counts.received,
                blocks_known=counts.wanted,
                bytes_done=counts.sealed_bytes,
                body_bytes_done=counts.body_bytes,
                plan_is_complete=session.plan_is_complete,
            )
        )


__all__ = ["Receiver", "Teller"]
