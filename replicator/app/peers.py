"""The mesh's `PeerBook`, from the catalogue."""

from collections.abc import Callable, Sequence

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.session import PairJoin
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import verify_signature
from replicator.core.errors import NotFound, Untrusted
from replicator.core.logging import get_logger
from replicator.sync.neighbours import pinned_keys


class CataloguedPeers:
    """Who is pinned, who may join, and what is remembered of them."""

    def __init__(self, catalog: Catalog, *, site_id: SiteId) -> None:
        self._catalog = catalog
        self._site_id = site_id
        self.on_proven: Callable[[SiteId], bool] = lambda _: False
        """Told of each key that was proven in a handshake; says whether it has just taken the place of another."""

    def peer_ids(self) -> Sequence[SiteId]:
        return pinned_keys(self._catalog)

    def invite_ids(self) -> Sequence[bytes]:
        return self._catalog.peers.invites()

    def addresses_of(self, site_id: SiteId) -> Sequence[str]:
        try:
            return self._catalog.peers.get(site_id).addresses
        except NotFound:
            return ()

    def name_of(self, site_id: SiteId) -> str:
        return self._catalog.peers.name_of(site_id)

    def recognise(self, site_id: SiteId) -> bool:
        return self.on_proven(site_id)

    def note_seen(self, site_id: SiteId) -> None:
        self._catalog.peers.note_seen(site_id)

    def note_incarnation(self, site_id: SiteId, incarnation: bytes) -> None:
        if self._catalog.peers.note_incarnation(site_id, incarnation):
            forgotten = self._catalog.forget_receipts(site_id)
            get_logger().warning("peer.reborn", peer=self.name_of(site_id), receipts_forgotten=forgotten)

    def admit(self, request: PairJoin, proof: bytes) -> ErrorCode:
        try:
            verify_signature(request.site_id, proof, request.proof)
        except Untrusted:
            return ErrorCode.FORBIDDEN
        if request.site_id == self._site_id:
            return ErrorCode.FORBIDDEN
        verdict = self._catalog.peers.redeem(request.invite_id, request.secret, by=request.site_id)
        if verdict is ErrorCode.OK:
            self._catalog.peers.add(request.site_id, name=request.name[:63], addresses=request.addresses[:8])
        return verdict
