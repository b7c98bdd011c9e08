"""What the mesh must know about trust, from whoever remembers it."""

from collections.abc import Sequence
from typing import Protocol

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.session import PairJoin


class PeerBook(Protocol):
    """The pinned sites and the open invites. `app` makes one from the catalogue."""

    def peer_ids(self) -> Sequence[SiteId]: ...

    def invite_ids(self) -> Sequence[bytes]: ...

    def addresses_of(self, site_id: SiteId) -> Sequence[str]: ...

    def name_of(self, site_id: SiteId) -> str: ...

    def recognise(self, site_id: SiteId) -> bool:
        """A key has been proven. Returns whether it takes the place of a peer's old one just now."""
        ...

    def note_seen(self, site_id: SiteId) -> None: ...

    def note_incarnation(self, site_id: SiteId, incarnation: bytes) -> None:
        """A site that has lost state comes with a new incarnation: what it once signed for proves nothing now."""
        ...

    def admit(self, request: PairJoin, proof: bytes) -> ErrorCode:
        """Check the proof (over the bytes `proof`) and the secret; on OK the site is a peer, durably."""
        ...
