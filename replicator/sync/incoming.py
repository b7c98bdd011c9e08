"""What comes in, seen from the door: offers with wishes, receipts for what was fetched from us, probes, and pace.

The receiving itself is `sync/receive.py`. Here is what surrounds it: who sends to us just now
(so that they share our bandwidth), what the sender would like of its copies, and what it may
know beforehand. An offer ends with its link; the receive need not (`orphans.py`).
"""

from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import asynccontextmanager
from typing import Final

import trio

from protocol.errors import ProtocolError, Unexpected
from protocol.ids import BlockId, SiteId, split_ids
from protocol.messages.mesh import HandReceipt, Noted, OfferCopy, PaceNotice, ProbeAnswer, ProbeBlocks
from protocol.messages.registry import Message, encode
from protocol.messages.snapshots import OfferSnapshot, Receipt
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import open_record
from replicator.core.errors import PeerError, ReplicatorError, Unreachable
from replicator.core.logging import get_logger
from replicator.core.ports import Offload, WallClock
from replicator.net.link import Link, Stream
from replicator.net.pacing import Pacing, Told, links_to_tell
from replicator.store.ports import BlockStore
from replicator.sync.orphans import Orphans
from replicator.sync.receipts import check_receipt
from replicator.sync.receive import Receiver

_TELL_S: Final = 10.0
"""How long a peer may take to note a pace. One that does not is slowed by credit alone."""


class PaceKeeper:
    """Tells the sites that send to us how fast they may, and is told."""

    def __init__(self, pacing: Pacing, *, links: Callable[[], Sequence[Link]], clock: WallClock) -> None:
        self._pacing = pacing
        self._links = links
        self._clock = clock
        self._told: dict[int, Told] = {}
        self._turn = trio.Lock()

    async def noted(self, stream: Stream, request: Message) -> None:
        """Answer a `PaceNotice`."""
        assert isinstance(request, PaceNotice)
        self._pacing.told(stream.peer, request.rate_bytes)
        await stream.send(Noted(), end=True)

    async def look(self) -> None:
        """Once a second: the hour's rates, what each sender uses, and whom to tell what."""
        self._pacing.apply(self._clock.now_ns())
        self._pacing.measure()
        await self.tell()

    async def tell(self) -> None:
        """Let every sender know its share. Those who get less hear it first, so that the sum never exceeds the rule."""
        if not self._turn.locked() and not self._todo():
            return  # The usual case, each second of a node's life.
        async with self._turn:
            todo = self._todo()
            less = [(link, rate) for link, rate in todo if rate]
            await self._tell_all(sorted(less, key=lambda one: one[1]))
            await self._tell_all([one for one in todo if not one[1]])

    def _todo(self) -> list[tuple[Link, int]]:
        """Whom to tell what."""
        links = [link for link in self._links() if link.speaks(PaceNotice)]
        self._told = {id(link): self._told.get(id(link), Told()) for link in links}
        return links_to_tell(links, self._pacing.shares(), self._told, now=trio.current_time())

    async def _tell_all(self, todo: Sequence[tuple[Link, int]]) -> None:
        if not todo:
            return
        async with trio.open_nursery() as nursery:
            for link, rate in todo:
                nursery.start_soon(self._tell_one, link, rate)

    async def _tell_one(self, link: Link, rate: int) -> None:
        try:
            with trio.fail_after(_TELL_S):
                async with link.open(PaceNotice(rate_bytes=rate), lane=Lane.CONTROL) as stream:
                    await stream.receive()
            self._told[id(link)] = Told(rate, trio.current_time())
        except (PeerError, trio.TooSlowError) as error:
            get_logger().info("pace.not_noted", peer=link.name, error=str(error) or "too slow")

    @asynccontextmanager
    async def receiving(self, site: SiteId) -> AsyncIterator[None]:
        """Around a receive: its sender is told its share before it sends anything."""
        with self._pacing.receiving(site):
            await self.tell()
            yield


class Incoming:
    """Answers what a site asks that keeps copies here, or fetches them from here."""

    def __init__(
        self,
        receiver: Receiver,
        *,
        catalog: Catalog,
        store: BlockStore,
        offload: Offload,
        pace: PaceKeeper,
        orphans: Orphans,
        on_settled: Callable[[bytes], None],
    ) -> None:
        self._receiver = receiver
        self._catalog = catalog
        self._store = store
        self._offload = offload
        self._pace = pace
        self._orphans = orphans
        self._on_settled = on_settled
        """Told of a volume of which a copy has come and been signed for: only now may the keep rule let go of one."""

    async def offered(self, stream: Stream, request: Message) -> None:
        """Answer an `OfferSnapshot`."""
        assert isinstance(request, OfferSnapshot)
        volume = open_record(request.record).volume_id
        await self._receive(stream, request, lambda: self._on_settled(volume))

    async def copy_offered(self, stream: Stream, request: Message) -> None:
        """Answer an `OfferCopy`: the same, and then the wish is considered."""
        assert isinstance(request, OfferCopy)
        plain = OfferSnapshot(record=request.record, every_s=request.every_s, job=request.job)
        await self._receive(stream, plain, lambda: self._consider(request, stream.peer))

    def _consider(self, request: OfferCopy, peer: SiteId) -> None:
        volume = open_record(request.record).volume_id
        self._catalog.note_wish(
            volume,
            peer=peer,
            keep=request.keep,
            prefix=request.prefix,
            is_passive=request.is_passive,
            may_retain="retain" in self._catalog.peers.rights_of(peer).may,
        )
        self._on_settled(volume)

    async def _receive(self, stream: Stream, request: OfferSnapshot, settle: Callable[[], None]) -> None:
        record, peer = open_record(request.record), stream.peer
        self._orphans.give_way(record.snapshot_id)
        is_lost = True  # Unless we learn better: what cancels an answer is the end of its link, and that is no error.
        try:
            async with self._pace.receiving(peer):
                await self._receiver.offered(stream, request)
            is_lost = False
        except (ReplicatorError, ProtocolError, OSError) as error:
            is_lost = isinstance(error, Unreachable)
            raise
        finally:
            if is_lost:
                self._orphans.note(
                    request.record, offerer=peer, job=request.job, settle=lambda: self._finish(request, peer, settle)
                )
        settle()

    def _finish(self, request: OfferSnapshot, peer: SiteId, settle: Callable[[], None]) -> None:
        """What an answered offer would have done as well, done without the one who made it."""
        self._catalog.expect(open_record(request.record).volume_id, peer, every_s=request.every_s)
        settle()

    async def receipt_handed(self, stream: Stream, request: Message) -> None:
        """Answer a `HandReceipt`: a peer has fetched something, and now proves that it holds it."""
        assert isinstance(request, HandReceipt)
        receipt = Receipt(
            snapshot_id=request.snapshot_id,
            root=request.root,
            site_id=request.site_id,
            received_at_ns=request.received_at_ns,
            signature=request.signature,
        )
        check_receipt(receipt, self._catalog.snapshot(request.snapshot_id).record, peer=stream.peer)
        self._catalog.add_receipt(request.snapshot_id, stream.peer, encode(receipt))
        await stream.send(Noted(), end=True)

    async def probed(self, stream: Stream, request: Message) -> None:
        """Answer a `ProbeBlocks`. It tells no more than an offer would, by what we then ask for."""
        assert isinstance(request, ProbeBlocks)
        ids = split_ids(request.ids)
        lease = self._store.begin(f"a probe of {stream.link.name}")
        try:
            here = await self._offload.run(self._store.have, lease, ids)
        finally:
            self._store.end(lease)
        await stream.send(ProbeAnswer(lacking=lacking_bits(ids, set(ids) - here)), end=True)


def lacking_bits(ids: Sequence[BlockId], lacking: Set[BlockId]) -> bytes:
    """One bit for each id, as `ProbeAnswer` has them."""
    bits = bytearray((len(ids) + 7) // 8)
    for number, block in enumerate(ids):
        if block in lacking:
            bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def lacking_ids(ids: Sequence[BlockId], answer: ProbeAnswer) -> set[BlockId]:
    """Which of the ids that were asked about are lacking there. Raises `Unexpected`."""
    if len(answer.lacking) != (len(ids) + 7) // 8:
        raise Unexpected("a probe is not answered by its length in bits")
    return {block for number, block in enumerate(ids) if answer.lacking[number // 8] >> number % 8 & 1}
