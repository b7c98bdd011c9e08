"""Receives whose other side has gone in the middle: the others finish them, and the receipt is kept until it is back.

What was offered is signed by its origin, so the right to bring it was settled when it was offered; what is left to do
is to find the blocks, and any site may have those. An orphan is tried while its offerer is away. If the
offerer comes back first and offers again, that goes before: it has everything, and nobody can be sure of the others.

Orphans are in memory. After a restart of ours the offerer offers again, or somebody else who holds the snapshot does.
A receipt that could not be handed over is kept here too; one that is lost is made again with the next offer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import ProtocolError
from protocol.ids import SiteId, SnapshotId
from protocol.messages.mesh import HandReceipt
from protocol.messages.snapshots import Receipt
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import open_record
from replicator.core.errors import PeerError, ReplicatorError
from replicator.core.logging import get_logger
from replicator.core.workers import Busy, Idle, Outcome
from replicator.net.link import Link
from replicator.sync.receive import Receiver

ORPHANS_MAX: Final = 64
"""As many as one peer can have under way with us. The oldest gives way: its blocks stay, and it is offered again."""
OWED_MAX: Final = 1024
_TRY_AGAIN_S: Final = 15.0
"""Somebody who had too little a moment ago may be receiving the same snapshot just now."""
_GIVE_UP_S: Final = 3600.0
_HAND_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class Orphan:
    """A receive that lost its other side."""

    signed: bytes
    offerer: SiteId
    job: str
    settle: Callable[[], None]
    """What remains to be done once the snapshot is here: the offerer's wishes, the promise that was made with it."""
    since: float
    try_at: float


class Orphans:
    """The worker that finishes them, and hands over receipts that are owed."""

    name = "orphans"

    def __init__(
        self,
        receiver: Receiver,
        *,
        catalog: Catalog,
        link_to: Callable[[SiteId], Link | None],
        wake: Callable[[], None],
    ) -> None:
        self._receiver = receiver
        self._catalog = catalog
        self._link_to = link_to
        self._wake = wake
        self._waiting: dict[SnapshotId, Orphan] = {}
        self._owed: dict[tuple[SnapshotId, SiteId], Receipt] = {}
        self._under_way: tuple[SnapshotId, trio.CancelScope] | None = None

    # -- what is told ---------------------------------------------------------------------

    def note(self, signed: bytes, *, offerer: SiteId, job: str, settle: Callable[[], None]) -> None:
        """A receive has just lost its other side."""
        now = trio.current_time()
        name = open_record(signed).snapshot_id
        self._waiting.pop(name, None)
        while len(self._waiting) >= ORPHANS_MAX:
            self._waiting.pop(next(iter(self._waiting)))
        self._waiting[name] = Orphan(signed=signed, offerer=offerer, job=job, settle=settle, since=now, try_at=now)
        self._wake()

    def give_way(self, snapshot_id: SnapshotId) -> None:
        """Somebody offers this one: what has come of it is in the store, and the offer goes on from there."""
        self._waiting.pop(snapshot_id, None)
        if self._under_way is not None and self._under_way[0] == snapshot_id:
            self._under_way[1].cancel()

    def owe(self, receipt: Receipt, site: SiteId) -> None:
        """A receipt that is to be handed to a site, now if it is there."""
        while len(self._owed) >= OWED_MAX:
            self._owed.pop(next(iter(self._owed)))
        self._owed[SnapshotId(receipt.snapshot_id), site] = receipt
        self._wake()

    # -- the worker -----------------------------------------------------------------------

    async def step(self) -> Outcome:
        await self._hand_over()
        now = trio.current_time()
        due = [(name, one) for name, one in self._waiting.items() if one.try_at <= now]
        if due:
            await self._finish(*due[0])
            return Busy()
        waits = [one.try_at - now for one in self._waiting.values()]
        return Idle(min([_TRY_AGAIN_S, *waits]))

    async def _finish(self, name: SnapshotId, orphan: Orphan) -> None:
        known = {self._catalog.current_key(peer.site_id) for peer in self._catalog.peers.all()}
        if self._catalog.current_key(orphan.offerer) not in known:
            del self._waiting[name]  # Whoever is no peer any more has nothing brought here either.
            return
        now = trio.current_time()
        try:
            with trio.CancelScope() as scope:
                self._under_way = (name, scope)
                _, receipt = await self._receiver.complete(orphan.signed, without=orphan.offerer, job=orphan.job)
        except (ReplicatorError, ProtocolError) as error:
            get_logger().info("orphan.not_finished", snapshot=name.hex()[:12], error=str(error))
            orphan.try_at = trio.current_time() + _TRY_AGAIN_S
            if now - orphan.since > _GIVE_UP_S:
                self._waiting.pop(name, None)
            return
        finally:
            self._under_way = None
        if scope.cancelled_caught:
            return
        self._waiting.pop(name, None)
        orphan.settle()
        self.owe(receipt, orphan.offerer)

    async def _hand_over(self) -> None:
        for (name, site), receipt in list(self._owed.items()):
            link = self._link_to(site)
            if link is None:
                continue
            self._owed.pop((name, site), None)
            try:
                with trio.fail_after(_HAND_S):
                    await hand_receipt(link, receipt)
            except trio.TooSlowError:
                self._owed[name, site] = receipt
            except (PeerError, ProtocolError) as error:
                if isinstance(error, PeerError) and error.retryable:
                    self._owed[name, site] = receipt
                get_logger().info("receipt.not_handed", peer=link.name, error=str(error))


async def hand_receipt(link: Link, receipt: Receipt) -> None:
    """Prove to a site that we hold what it did not see us finish. Raises `PeerError`."""
    if not link.speaks(HandReceipt):
        return
    hand = HandReceipt(
        snapshot_id=receipt.snapshot_id,
        root=receipt.root,
        site_id=receipt.site_id,
        received_at_ns=receipt.received_at_ns,
        signature=receipt.signature,
    )
    async with link.open(hand, lane=Lane.CONTROL) as stream:
        await stream.receive()


__all__ = ["ORPHANS_MAX", "Orphan", "Orphans", "hand_receipt"]
