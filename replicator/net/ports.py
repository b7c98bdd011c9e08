"""What the mesh needs from the world: whom to trust, and a way to reach them.

A `Network` hands out lines, a line becomes a proven stream of bytes (`Transport`) by its
handshake, and a link is spoken over that. `net/tls.py` is the real one; a mesh inside one
process has another, and nothing above this port can tell them apart.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.session import PairJoin
from protocol.wire.envelope import Buffer
from replicator.net.identity import Identity


class Transport(Protocol):
    """An ordered, encrypted stream of bytes to a known site."""

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Raises `Unreachable`."""
        ...

    async def receive(self) -> bytes:
        """What has arrived, at least one byte; empty at the end. Raises `Unreachable`, `Untrusted`."""
        ...

    async def close(self) -> None: ...


class Line(Transport, Protocol):
    """A connection on which nobody has proven anything yet."""

    @property
    def remote(self) -> str:
        """Where the other end seems to be, for people."""
        ...

    async def handshake(self) -> SiteId:
        """Prove both sides to each other. Returns who the other one is.

        Raises `Untrusted` if it is not one of the pinned sites, `Unreachable` if the connection breaks. The
        dialler may be done before the listener has judged it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Credentials:
    """What one side of a handshake shows, and whom it accepts. After a revocation there are new ones."""

    identity: Identity
    pins: tuple[SiteId, ...]
    is_server: bool


class Listener(Protocol):
    """An address that is open."""

    @property
    def address(self) -> str: ...

    async def serve(self, accept: Callable[[Line], Awaitable[None]], credentials: Callable[[], Credentials]) -> None:
        """Give each line that comes in, with the credentials of that moment, to a task of its own; until cancelled."""
        ...

    def close(self) -> None: ...


class Network(Protocol):
    """How sites reach each other."""

    async def listen(self, address: str) -> Listener:
        """Raises `ConfigError` if the address is taken or not ours."""
        ...

    async def dial(self, address: str, credentials: Credentials) -> Line:
        """A line to whoever listens there. Raises `OSError`, `UsageError`."""
        ...


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
