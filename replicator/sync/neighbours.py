"""Who is who in the mesh: introductions, and keys that take the place of others.

Introductions. A member that knows both asks one for its record, made for the other to read,
and hands it over with its voucher. Whether that makes a peer, and what such a peer may do, is
decided by the reader alone: by what it has granted to the introducer, which is nothing unless
somebody said so. A site that was revoked does not come back by being introduced.

New keys. A site tells each peer over a link of the old key, in a statement that both keys
have signed. For the named span both count. The first link of the new key ends the old one;
so does the end of the span. Sites that merely keep its snapshots learn of it from those that
were told: the statement proves itself.
"""

from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.mesh import Introduce, NewKey, Noted, SiteRecord, WantSiteRecord
from protocol.messages.registry import Message
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Snapshot, Succession
from replicator.catalog.rights import Rights
from replicator.core.errors import PeerError, Refused, Untrusted, UsageError
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock
from replicator.net.link import Link, Stream
from replicator.net.site_record import (
    Sign,
    check_signature,
    check_voucher,
    new_key_statement,
    open_card,
    sign_card,
    sign_voucher,
)

_OVERLAP_S_MAX: Final = 366 * 86_400.0
_TELL_AGAIN_S: Final = 30.0
"""After a peer has not noted a key: it may not have heard of it from the one whose key it is, and takes nobody else's
word."""


class Neighbours:
    """The part of a node that knows who is who."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        site_id: SiteId,
        name: str,
        sign: Sign,
        addresses: Callable[[], Sequence[str]],
        trust_changed: Callable[[], None],
        clock: WallClock,
    ) -> None:
        self._catalog = catalog
        self._site_id = site_id
        self._name = name
        self._sign = sign
        self._addresses = addresses
        self._trust_changed = trust_changed
        self._clock = clock
        self._told_on: dict[tuple[SiteId, SiteId], Link] = {}
        self._tell_again: dict[tuple[SiteId, SiteId], float] = {}
        """By old key and peer, when to tell it once more. No more of them than keys that peers have not noted."""

    # -- introductions --------------------------------------------------------------------

    async def introduce(self, one: Link, other: Link) -> None:
        """Let two of our peers know each other. Each is told first what the other has made for it to read.

        Raises `Refused` if either of them has not given us the right to introduce, and other `PeerError`s.
        """
        for link in (one, other):
            if not link.speaks(Introduce):
                raise Refused(f"{link.name} runs an older release, which knows no introductions.", hint="Upgrade it.")
        cards = [await self._card_of(one, other.peer), await self._card_of(other, one.peer)]
        for link, card in zip((other, one), cards, strict=True):
            request = Introduce(record=card, voucher=sign_voucher(card, self._sign))
            async with link.open(request, lane=Lane.CONTROL) as stream:
                if not isinstance(await stream.receive(), Noted):
                    raise Untrusted(f"{link.name} answered an introduction with something else.")

    async def _card_of(self, link: Link, reader: SiteId) -> bytes:
        async with link.open(WantSiteRecord(reader=reader), lane=Lane.CONTROL) as stream:
            answer = await stream.receive()
        if not isinstance(answer, SiteRecord):
            raise Untrusted(f"{link.name} did not say who it is.")
        card = open_card(answer.record)
        if (card.site_id, card.reader) != (link.peer, reader):
            raise Untrusted(f"{link.name} gave the record of another site.")
        return answer.record

    async def card_wanted(self, stream: Stream, request: Message) -> None:
        """Answer a `WantSiteRecord`."""
        assert isinstance(request, WantSiteRecord)
        card = sign_card(
            self._site_id, name=self._name, addresses=self._addresses(), reader=request.reader, sign=self._sign
        )
        await stream.send(SiteRecord(record=card), end=True)

    async def introduced(self, stream: Stream, request: Message) -> None:
        """Answer an `Introduce`."""
        assert isinstance(request, Introduce)
        card = open_card(request.record)
        check_voucher(request.record, request.voucher, by=stream.peer)
        if card.reader != self._site_id or card.site_id == self._site_id:
            raise Untrusted(f"{stream.link.name} introduces a site by a record that was made for somebody else.")
        if self._catalog.peers.is_revoked(card.site_id):
            stream.reset(ErrorCode.FORBIDDEN, "that site was revoked here; it has to be paired anew")
            return
        known = {peer.site_id for peer in self._catalog.peers.all()}
        if card.site_id not in known:
            granted = self._catalog.peers.rights_of(stream.peer).introduced
            peer = self._catalog.peers.add(
                card.site_id,
                name=card.name[:63],
                addresses=card.addresses,
                rights=Rights(may=granted),
                introduced_by=stream.peer,
            )
            self._trust_changed()
            get_logger().info(
                "peer.introduced",
                peer=peer.name,
                by=stream.link.name,
                site=card.site_id.hex()[:12],
                may=sorted(granted),
            )
        await stream.send(Noted(), end=True)

    # -- keys -----------------------------------------------------------------------------

    def plan_new_key(self, new: SiteId, sign_new: Sign, *, overlap_s: float, keep: Callable[[], None]) -> Succession:
        """Sign, with both keys, that `new` takes the place of ours; `keep` makes the new key durable before anybody can
        hear of it. Raises `UsageError`."""
        if not 10.0 <= overlap_s <= _OVERLAP_S_MAX:
            raise UsageError("Both keys count for 10 seconds up to a year.", hint="Say for instance --overlap 7d.")
        if self.own_succession() is not None:
            raise UsageError("A new key is under way already.", hint="`replicator site show` says when it takes over.")
        until = self._clock.now_ns() + int(overlap_s * 1e9)
        highest = max((s.record.sequence for s in self._own_snapshots()), default=0)
        # Snapshots are taken until the key changes hands: one a second is the most that a schedule can ask for.
        sequence_max = highest + int(overlap_s) + 1000
        statement = new_key_statement(self._site_id, new, until_ns=until, sequence_max=sequence_max)
        one = Succession(self._site_id, new, until, sequence_max, self._sign(statement), sign_new(statement))
        keep()
        self._catalog.add_succession(one)
        return one

    def own_succession(self) -> Succession | None:
        """The key that is about to take our key's place."""
        return next((one for one in self._catalog.successions() if one.old == self._site_id), None)

    def _own_snapshots(self) -> list[Snapshot]:
        current_key = self._catalog.current_key
        return [one for one in self._catalog.snapshots() if current_key(one.record.origin) == self._site_id]

    async def tell_keys(self, links: Sequence[Link]) -> None:
        """Let every peer know of every succession, once on each link: it may have lost what it noted, and without it
        a site's own snapshots are a stranger's."""
        for one in self._catalog.successions():
            for link in links:
                is_told = self._told_on.get((one.old, link.peer)) is link
                if is_told or link.peer in (one.old, one.new) or not link.speaks(NewKey):
                    continue
                if trio.current_time() < self._tell_again.get((one.old, link.peer), 0.0):
                    continue
                try:
                    async with link.open(_news(one), lane=Lane.CONTROL) as stream:
                        noted = isinstance(await stream.receive(), Noted)
                except PeerError as error:
                    get_logger().warning("key.not_noted", peer=link.name, error=str(error))
                    self._tell_again[one.old, link.peer] = trio.current_time() + _TELL_AGAIN_S
                    continue
                if noted:
                    self._told_on[one.old, link.peer] = link
                    if link.peer not in one.told:
                        self._catalog.note_told(one.old, link.peer)

    async def key_told(self, stream: Stream, request: Message) -> None:
        """Answer a `NewKey`."""
        assert isinstance(request, NewKey)
        statement = new_key_statement(
            request.old, request.new, until_ns=request.until_ns, sequence_max=request.sequence_max
        )
        check_signature(request.old, statement, request.by_old)
        check_signature(request.new, statement, request.by_new)
        peers = self._catalog.peers
        is_peer = any(peer.site_id == request.old for peer in peers.all())
        if is_peer and stream.peer != request.old:
            if self._knows(request):
                # It has told us itself. Whoever else tells us need not do so again.
                await stream.send(Noted(), end=True)
                return
            # It will tell us itself, over its own link, if it is so: a stolen key alone must not be enough.
            raise Untrusted(f"{stream.link.name} tells of a new key of another peer of ours.")
        if peers.is_revoked(request.new) or request.new == self._site_id:
            raise Untrusted("That key cannot be a new key here.")
        self._catalog.add_succession(
            Succession(request.old, request.new, request.until_ns, request.sequence_max, request.by_old, request.by_new)
        )
        if not is_peer:
            self._catalog.rename_site(request.old, request.new)
        get_logger().info("key.noted", old=request.old.hex()[:12], new=request.new.hex()[:12])
        self._trust_changed()
        await stream.send(Noted(), end=True)

    def _knows(self, told: NewKey) -> bool:
        return any((one.old, one.new) == (told.old, told.new) for one in self._catalog.successions())

    def recognise(self, site: SiteId) -> bool:
        """A key has been proven in a handshake. Returns whether it has taken the place of a peer's old one just now."""
        known = {peer.site_id for peer in self._catalog.peers.all()}
        for one in self._catalog.successions():
            if one.new == site and one.old in known and site not in known:
                self._settle(one, "its new key was shown")
                return True
        return False

    def end_overlaps(self) -> bool:
        """Old keys of peers whose span is over count no more. Returns whether there were any."""
        now, known = self._clock.now_ns(), {peer.site_id for peer in self._catalog.peers.all()}
        over = [one for one in self._catalog.successions() if one.old in known and one.until_ns <= now]
        for one in over:
            self._settle(one, "the overlap is over")
        return bool(over)

    def _settle(self, one: Succession, why: str) -> None:
        self._catalog.rename_site(one.old, one.new)
        get_logger().info("key.changed", old=one.old.hex()[:12], new=one.new.hex()[:12], why=why)


def pinned_keys(catalog: Catalog) -> list[SiteId]:
    """Keys that open a link: those of the peers, and those that are to take their place."""
    known = [peer.site_id for peer in catalog.peers.all()]
    coming = [one.new for one in catalog.successions() if one.old in known and one.new not in known]
    return [*known, *coming]


def _news(one: Succession) -> NewKey:
    return NewKey(
        old=one.old,
        new=one.new,
        until_ns=one.until_ns,
        sequence_max=one.sequence_max,
        by_old=one.by_old,
        by_new=one.by_new,
    )
