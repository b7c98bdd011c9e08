"""The sending side's part in a sync: offer, watch, and check the receipt."""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from protocol.messages.snapshots import OfferSnapshot, Receipt, SyncProgress, SyncReport
from protocol.wire.frames import Lane
from replicator.catalog.model import Snapshot
from replicator.core.errors import Stalled
from replicator.net.link import Link
from replicator.sync.receipts import check_receipt


@dataclass(frozen=True, slots=True)
class Offered:
    """An acknowledged sync. `link_bytes` is everything that left for the peer meanwhile, other talk included."""

    report: SyncReport
    receipt: Receipt
    took_s: float
    link_bytes_out: int
    link_bytes_in: int


async def offer(
    link: Link, snapshot: Snapshot, *, every_s: int, job: str, on_progress: Callable[[SyncProgress], None]
) -> Offered:
    """Bring one snapshot to a peer. Returns when the peer has signed that it holds it.

    Raises `Unreachable`, `Refused`, `Stalled`, `Untrusted`; trying again carries on.
    """
    began, before = trio.current_time(), link.statistics()
    report: SyncReport | None = None
    request = OfferSnapshot(record=snapshot.signed, every_s=every_s, job=job)
    async with link.open(request, lane=Lane.CONTROL) as stream:
        while (item := await stream.receive()) is not None:
            match item:
                case SyncProgress():
                    on_progress(item)
                case SyncReport():
                    report = item
                case Receipt() if report is not None:
                    check_receipt(item, snapshot.record, peer=link.peer)
                    after = link.statistics()
                    return Offered(
                        report=report,
                        receipt=item,
                        took_s=trio.current_time() - began,
                        link_bytes_out=after.bytes_out - before.bytes_out,
                        link_bytes_in=after.bytes_in - before.bytes_in,
                    )
                case _:
                    raise Stalled(f"{link.name} answered an offer with something else.")
    raise Stalled(f"{link.name} ended the sync without a receipt.", hint="It will be tried again.")
