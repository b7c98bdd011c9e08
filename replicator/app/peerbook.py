"""Whom the mesh trusts: the catalogue, as the mesh wants to ask it."""

from collections.abc import Sequence

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.session import PairJoin
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import verify_signature
from replicator.core.errors import NotFound, Untrusted
from replicator.core.logging import get_logger


class CataloguedPeers:
    """The mesh's `PeerBook`, from the catalogue. Kept in memory: it is asked at every handshake and dial."""

    def __init__(self, catalog: Catalog, *, site_id: SiteId) -> None:
        self._catalog = catalog
        self._site_id = site_id

    def peer_ids(self) -> Sequence[SiteId]:
        return [peer.site_id for peer in self._catalog.peers.all()]

    def invite_ids(self) -> Sequence[bytes]:
        return self._catalog.peers.invites()

    def addresses_of(self, site_id: SiteId) -> Sequence[str]:
        try:
            return self._catalog.peers.get(site_id).addresses
        except NotFound:
            return ()

    def name_of(self, site_id: SiteId) -> str:
        return self._catalog.peers.name_of(site_id)

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
