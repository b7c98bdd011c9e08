"""The sending side's part in a sync: offer, watch, and check the receipt."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from protocol.messages.mesh import OfferCopy
from protocol.messages.registry import Message
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What we would like of the copy. A peer of an older release is not told."""

    keep: str = ""
    prefix: str = ""
    is_passive: bool = False


NO_WISHES: Final = Wishes()


async def offer(
    link: Link,
    snapshot: Snapshot,
    *,
    every_s: int,
    job: str,
    on_progress: Callable[[SyncProgress], None],
    wishes: Wishes = NO_WISHES,
) -> Offered:
    """Bring one snapshot to a peer. Returns when the peer has signed that it holds it.

    Raises `Unreachable`, `Refused`, `Stalled`, `Untrusted`; trying again carries on.
    """
    request: Message = OfferSnapshot(record=snapshot.signed, every_s=every_s, job=job)
    if wishes != NO_WISHES and link.speaks(OfferCopy):
        request = OfferCopy(
            record=snapshot.signed,
            every_s=every_s,
            job=job,
            keep=wishes.keep,
            prefix=wishes.prefix,
            is_passive=wishes.is_passive,
        )
    with _offering(link, snapshot):
        return await _follow(link, request, snapshot, on_progress=on_progress)


async def _follow(
    link: Link, request: Message, snapshot: Snapshot, *, on_progress: Callable[[SyncProgress], None]
) -> Offered:
    began, before = trio.current_time(), link.statistics()
    report: SyncReport | None = None
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


@contextmanager
def _offering(link: Link, snapshot: Snapshot) -> Iterator[None]:
    """While it is on offer, the peer may read it."""
    link.offered.add(snapshot.snapshot_id)
    try:
        yield
    finally:
        link.offered.discard(snapshot.snapshot_id)
