"""Who holds the same as we do: roots that travel with each heartbeat.

Every few seconds one of two linked sites tells the other eight bytes: a digest over the roots of
all scopes (`index/roots.py`). If the other's digest is the same, it says so with an empty
frame. If not, it answers with its own digest; and the roots themselves are told once, when they
have changed. So two sites at rest spend some fifty bytes a heartbeat, however many volumes they
have, and read nothing: roots are made again only when the catalogue or the quarantine changed.

Nobody acts on a root alone. Unequal ones say where a session is worth its bytes; equal ones say
that one session with a site of that class speaks for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import ProtocolError, Unexpected
from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from protocol.limits import HEARTBEAT_S, ROOTS_MAX
from protocol.messages.registry import Message
from protocol.messages.summary import StandingRoots
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.core.errors import PeerError
from replicator.core.logging import get_logger
from replicator.core.workers import Idle, Outcome
from replicator.index.roots import (
    HOLES,
    ScopeRoot,
    classes,
    digest_of,
    holes_root,
    pack_roots,
    unpack_roots,
    volume_root,
)
from replicator.net.link import Link, Stream
from replicator.store.ports import BlockStore

_ANSWER_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a peer said last."""

    digest: bytes
    roots: tuple[ScopeRoot, ...]
    at: float
    """`trio.current_time()` of the last word, changed or not."""


class Standing:
    """Keeps our roots, tells them, and remembers those of the peers."""

    name = "standing"

    def __init__(
        self, *, site_id: SiteId, catalog: Catalog, store: BlockStore, links: Callable[[], Sequence[Link]]
    ) -> None:
        self._site_id = site_id
        self._catalog = catalog
        self._store = store
        self._links = links
        self._made_from: tuple[int, frozenset[BlockId]] | None = None
        self._packed = b""
        self._digest = b""
        self._told: dict[SiteId, tuple[Link, bytes]] = {}
        self.heard: dict[SiteId, Heard] = {}

    # -- our own --------------------------------------------------------------------------

    def roots(self) -> tuple[ScopeRoot, ...]:
        self._refresh()
        return unpack_roots(self._packed)

    @property
    def digest(self) -> bytes:
        """All our roots in eight bytes."""
        self._refresh()
        return self._digest

    def roots_of(self, site: SiteId) -> tuple[ScopeRoot, ...]:
        """Ours, or what a peer said last; nothing of one that has said nothing."""
        if site == self._site_id:
            return self.roots()
        heard = self.heard.get(site)
        return () if heard is None else heard.roots

    def _refresh(self) -> None:
        holes = frozenset(fault.block_id for fault in self._store.broken())
        made_from = (self._catalog.db.changes_count, holes)
        if made_from == self._made_from:
            return
        held: dict[VolumeId, list[tuple[SnapshotId, BlockId]]] = {}
        for snapshot in self._catalog.snapshots():
            record = snapshot.record
            held.setdefault(record.volume_id, []).append((record.snapshot_id, record.root))
        roots = [volume_root(volume, pairs) for volume, pairs in sorted(held.items())[: ROOTS_MAX - 1]]
        self._packed = pack_roots([holes_root(sorted(holes)), *roots])
        self._digest = digest_of(self._packed)
        self._made_from = made_from

    # -- the exchange ---------------------------------------------------------------------

    async def step(self) -> Outcome:
        """One heartbeat with every peer whose turn it is ours to ask."""
        async with trio.open_nursery() as nursery:
            for link in self._links():
                if self._site_id < link.peer:  # One of the two asks; both learn.
                    nursery.start_soon(self._beat, link)
        return Idle(HEARTBEAT_S)

    async def _beat(self, link: Link) -> None:
        word = self._word(link)
        try:
            with trio.fail_after(_ANSWER_S):
                async with link.open(word, lane=Lane.CONTROL) as stream:
                    answer = await stream.receive()
            if answer == b"":
                answer = StandingRoots(digest=word.digest, roots=b"")
            if not isinstance(answer, StandingRoots):
                raise Unexpected("roots are not answered with roots")
            self._note(link, answer)
        except (PeerError, ProtocolError, trio.TooSlowError) as error:
            self._told.pop(link.peer, None)  # We cannot know what arrived: next time everything is told again.
            get_logger().info("roots.not_heard", peer=link.name, error=str(error) or "too slow")

    async def asked(self, stream: Stream, request: Message) -> None:
        """Answer a `StandingRoots`."""
        assert isinstance(request, StandingRoots)
        self._note(stream.link, request)
        if request.roots:
            self._told.pop(stream.peer, None)  # Who tells everything wants to hear everything.
        word = self._word(stream.link)
        if word.digest == request.digest:
            await stream.send_blocks([], end=True)
        else:
            await stream.send(word, end=True)

    def _word(self, link: Link) -> StandingRoots:
        """Our roots, if they are news on this link; else the digest alone."""
        self._refresh()
        is_news = self._told.get(link.peer) != (link, self._digest)
        self._told[link.peer] = (link, self._digest)
        return StandingRoots(digest=self._digest, roots=self._packed if is_news else b"")

    def _note(self, link: Link, word: StandingRoots) -> None:
        self._refresh()
        known = self.heard.get(link.peer)
        if word.roots:
            roots = unpack_roots(word.roots)
            if digest_of(word.roots) != word.digest:
                raise Unexpected("a digest is not that of its roots")
        elif word.digest == self._digest:
            roots = unpack_roots(self._packed)
        elif known is not None and known.digest == word.digest:
            roots = known.roots
        else:
            raise Unexpected("a digest without the roots that it stands for")
        self.heard[link.peer] = Heard(word.digest, roots, trio.current_time())

    # -- what it tells --------------------------------------------------------------------

    def holders_of(self, volume: VolumeId) -> list[SiteId]:
        """Peers that hold some snapshot of a volume, as far as we have heard."""
        return [site for site, heard in self.heard.items() if _of(heard.roots, volume) is not None]

    def classes_of(self, volume: VolumeId) -> list[list[SiteId]]:
        """Sites, ours included, that hold the same of a volume and know of no hole. Others stand alone."""
        ours = self.roots()
        said = {self._site_id: ours, **{site: heard.roots for site, heard in self.heard.items()}}
        whole = {site: roots for site, roots in said.items() if (holes := _of(roots, HOLES)) and not holes.count}
        doubtful = [[site] for site in said if site not in whole]
        return [*classes({site: _of(roots, volume) for site, roots in whole.items()}), *doubtful]


def _of(roots: Sequence[ScopeRoot], scope: VolumeId) -> ScopeRoot | None:
    return next((root for root in roots if root.scope == scope), None)


__all__ = ["Heard", "Standing"]
