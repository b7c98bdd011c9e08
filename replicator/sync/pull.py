"""The destination's own part in a pull: what is new there, get it, and hand over a receipt.

A pull needs nothing but the right to read. The site that has the data needs no schedule, no
address of ours and no right here; it could be taken over, and would still not be able to make
us keep or drop anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from protocol.errors import Unexpected
from protocol.ids import SiteId
from protocol.messages.registry import Message
from protocol.messages.snapshots import ListSnapshots, SnapshotList, SyncProgress, SyncReport
from protocol.wire.frames import Lane
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.catalog.terms import SyncTerms
from replicator.core.errors import Stalled, Unreachable
from replicator.net.link import Link
from replicator.sync.incoming import PaceKeeper
from replicator.sync.orphans import Orphans, hand_receipt
from replicator.sync.receive import Receiver
from replicator.sync.told import Told

_LISTED_MAX = 100_000
"""Records of one list: a snapshot a minute for two months. A longer one has no end."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A snapshot that a peer lets us read."""

    record: SnapshotRecord
    signed: bytes


async def list_remote(link: Link) -> list[Remote]:
    """What the peer lets us read, oldest first. Records are checked: each is signed by its origin.

    Raises `PeerError`, `Untrusted`.
    """
    found: list[Remote] = []
    async with link.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
        while (item := await stream.receive()) is not None:
            if not isinstance(item, SnapshotList):
                raise Unexpected("a list of snapshots holds something else")
            for signed in item.records:
                found.append(Remote(open_record(signed), signed))
                await trio.lowlevel.checkpoint()
            if len(found) > _LISTED_MAX:
                raise Unexpected("a list of snapshots that does not end")
    return found


def plan_pull(
    remote: Sequence[Remote], *, terms: SyncTerms, is_ours: Callable[[SiteId], bool], have: Callable[[bytes], bool]
) -> list[Remote]:
    """What to fetch, newest first: what the terms want and is not here. Our own comes back only if it is named.

    `is_ours` knows every key that this site has ever had: a record names the one that signed it.
    """
    return [
        one
        for one in sorted(remote, key=lambda one: (one.record.taken_ns, one.record.sequence), reverse=True)
        if terms.wants(one.record)
        and terms.wants_volume(one.record)
        and (terms.volume or not is_ours(one.record.origin))
        and not have(one.record.snapshot_id)
    ]


@dataclass(frozen=True, slots=True)
class Pulled:
    """A snapshot that is here now. `link_bytes` is everything that passed the link meanwhile."""

    report: SyncReport
    took_s: float
    link_bytes_out: int
    link_bytes_in: int


@dataclass(frozen=True, slots=True)
class _Asker:
    """`Teller` for a receive that nobody offered."""

    link: Link
    on_progress: Callable[[SyncProgress], None]

    @property
    def peer(self) -> SiteId:
        return self.link.peer

    async def send(self, message: Message) -> None:
        assert isinstance(message, SyncProgress)
        self.on_progress(message)


async def pull(
    link: Link,
    remote: Remote,
    *,
    receiver: Receiver,
    pace: PaceKeeper,
    orphans: Orphans,
    job: str,
    on_progress: Callable[[SyncProgress], None],
    on_told: Callable[[Told], None],
) -> Pulled:
    """Fetch one snapshot, and prove to the peer that we hold it. If the peer goes, others may finish it.

    `on_told` hears what it will take, as soon as that is known.

    Raises what a receive raises; trying again carries on.
    """
    began, before = trio.current_time(), link.statistics()
    async with pace.receiving(link.peer):
        try:
            report, receipt = await receiver.pull(_Asker(link, on_progress), remote.signed, job=job, on_told=on_told)
        except Unreachable:
            report, receipt = await receiver.complete(remote.signed, without=link.peer, job=job)
    try:
        await hand_receipt(link, receipt)
    except (Unreachable, Stalled):
        orphans.owe(receipt, link.peer)
    after = link.statistics()
    return Pulled(
        report=report,
        took_s=trio.current_time() - began,
        link_bytes_out=after.bytes_out - before.bytes_out,
        link_bytes_in=after.bytes_in - before.bytes_in,
    )
