"""All links of this node: listening, dialling, and knowing who is there.

Every pinned peer with an address is dialled until there is a link, with growing, jittered
pauses; a peer behind NAT dials us instead, and either kind of link carries everything in both
directions. Revoking a peer changes the credentials and cuts its links at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import trio

from protocol.errors import ErrorCode, ProtocolError
from protocol.ids import SiteId
from protocol.limits import HANDSHAKE_S
from protocol.messages.registry import decode, encode
from protocol.messages.session import Hello, PairJoin, PairWelcome, Refusal
from protocol.messages.versions import OLDEST
from replicator.core.errors import PeerError, ReplicatorError, StoreError, Unreachable
from replicator.core.logging import get_logger
from replicator.core.ports import Entropy, fraction
from replicator.net.config import MeshConfig
from replicator.net.greeting import Greeting
from replicator.net.identity import Identity
from replicator.net.link import Handlers, Link
from replicator.net.pacing import Pacing
from replicator.net.pairing import join_proof, receive_one, send_one
from replicator.net.ports import Credentials, Line, Listener, Network, PeerBook, Transport

_DIAL_FIRST_S: Final = 0.2
_DIAL_MOST_S: Final = 30.0
_LINKS_PER_PEER_MAX: Final = 4


class Mesh:
    """The node's view of the other sites."""

    def __init__(
        self,
        config: MeshConfig,
        *,
        identity: Identity,
        name: str,
        incarnation: bytes,
        book: PeerBook,
        monotonic: Callable[[], float],
        network: Network,
        entropy: Entropy,
    ) -> None:
        self.config = config
        self.identity = identity
        self.name = name
        self._incarnation = incarnation
        self._book = book
        self.network = network
        self._entropy = entropy
        self.handlers: Handlers = {}
        self.pacing = Pacing(monotonic=monotonic, rate_out=config.rate_out_bytes, rate_in=config.rate_in_bytes)
        self._links: dict[SiteId, list[Link]] = {}
        self._changed = trio.Event()
        self._shown: tuple[Credentials, Credentials] | None = None
        self.greeting = Greeting()
        self.address = config.listen
        self.dial_errors: dict[SiteId, str] = {}
        self.replaced_by: dict[SiteId, SiteId] = {}
        """Peers at whose address another peer answers: as a rule the same site, made anew and paired under a new key.
        Only a person can tell, so the old one is dialled until it is linked again or forgotten."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where peers are told to find us."""
        return self.config.advertise or (self.address,)

    # -- who is there ---------------------------------------------------------------------

    def link_to(self, site_id: SiteId) -> Link | None:
        """A live link to the peer: the oldest, so that everybody uses the same one."""
        for link in self._links.get(site_id, ()):
            if link.is_open:
                return link
        return None

    def connected(self) -> list[Link]:
        """One live link for each peer that has any."""
        return [link for site in list(self._links) if (link := self.link_to(site)) is not None]

    async def wait_link(self, site_id: SiteId, *, seconds: float) -> Link:
        """A live link to the peer, as soon as there is one. Raises `Unreachable` after `seconds`."""
        with trio.move_on_after(seconds):
            while True:
                if (link := self.link_to(site_id)) is not None:
                    return link
                await self._changed.wait()
        why = self.dial_errors.get(site_id, "it has not dialled us, and we know no address of it that answers")
        raise Unreachable(f"{self._book.name_of(site_id)} is not reachable: {why}.", hint="Is that node up?")

    def trust_changed(self) -> None:
        """Peers or invites were added or removed: accept and refuse accordingly from now on."""
        self._shown = None
        known = set(self._book.peer_ids())
        for site, links in list(self._links.items()):
            if site not in known:
                for link in links:
                    link.close(ErrorCode.FORBIDDEN, "this site is no longer a peer")
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _credentials(self, *, is_server: bool) -> Credentials:
        if self._shown is None:
            try:
                peers = tuple(self._book.peer_ids())
                doors = [Identity.of_invite(one, self.identity.site_id).site_id for one in self._book.invite_ids()]
            except StoreError as error:
                # Nobody is let in, and nobody is dialled, until it can be read again.
                get_logger().warning("peers.unreadable", error=str(error))
                return Credentials(self.identity, (), is_server=is_server)
            self._shown = (
                Credentials(self.identity, (*peers, *doors), is_server=True),
                Credentials(self.identity, peers, is_server=False),
            )
        return self._shown[0 if is_server else 1]

    # -- life -----------------------------------------------------------------------------

    async def listen(self) -> Listener:
        """Bind. Raises `ConfigError` if the address is taken or not ours."""
        listener = await self.network.listen(self.config.listen)
        self.address = listener.address
        return listener

    async def run(self, listener: Listener) -> None:
        """Accept and dial until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, self._accept, partial(self._credentials, is_server=True))
            nursery.start_soon(self._keep_dialling, nursery)

    async def _accept(self, line: Line) -> None:
        site: SiteId | None = None
        why = "too slow"
        try:
            with self.greeting.greet(line.remote.rpartition(":")[0]):
                site = await line.handshake()
        except (PeerError, OSError) as error:
            why = str(error)
        if site is not None and not self._recognise(site):
            site, why = None, "its new key cannot be noted now"
        if site is None:
            get_logger().info("link.turned_away", error=why)
            await line.close()
            return
        try:
            if site in self._book.peer_ids():
                await self._run_link(line, site, is_dialer=False, address=line.remote)
            else:
                await self._welcome(line, site)
        except StoreError as error:
            get_logger().warning("peers.unreadable", error=str(error))
            await line.close()

    def _recognise(self, site: SiteId) -> bool:
        """A peer that shows its new key for the first time goes by that key from now on: links of the old one end.

        False if that cannot be written down: a full disk must not cost us the node, and the peer comes again.
        """
        try:
            if self._book.recognise(site):
                self.trust_changed()
        except StoreError as error:
            get_logger().warning("peer.not_noted", error=str(error))
            return False
        return True

    async def _welcome(self, transport: Transport, door: SiteId) -> None:
        """Someone came through an invite's door: one question, one answer, and the line is closed."""
        try:
            with trio.fail_after(HANDSHAKE_S):
                request = decode(await receive_one(transport))
                await send_one(transport, encode(self._judge(request, door)))
                # Closing at once could overtake the answer on its way.
                await transport.receive()
        except (ReplicatorError, ProtocolError, trio.TooSlowError, OSError) as error:
            # Any of ours: a catalogue that cannot write must not take the node down over a visitor.
            get_logger().info("pair.failed", error=str(error) or "too slow")
        finally:
            await transport.close()

    def _judge(self, request: object, door: SiteId) -> PairWelcome | Refusal:
        if not isinstance(request, PairJoin):
            return Refusal(error=ErrorCode.UNEXPECTED, reason="expected a join")
        if Identity.of_invite(request.invite_id, self.identity.site_id).site_id != door:
            return Refusal(error=ErrorCode.PAIR_CODE_WRONG, reason="that is the door of another invite")
        proof = join_proof(request.invite_id, self.identity.site_id, request.site_id)
        verdict = self._book.admit(request, proof)
        if verdict is not ErrorCode.OK:
            get_logger().warning("pair.refused", name=request.name, why=verdict.name)
            return Refusal(error=verdict, reason=verdict.name)
        get_logger().info("pair.joined", name=request.name, site=request.site_id.hex()[:12])
        self.trust_changed()
        return PairWelcome(site_id=self.identity.site_id, name=self.name, addresses=self.addresses)

    async def _run_link(self, transport: Transport, site: SiteId, *, is_dialer: bool, address: str) -> Link | None:
        """Serve a link to its end. Returns it, or None if there are enough of them already."""
        links = self._links.setdefault(site, [])
        if len(links) >= _LINKS_PER_PEER_MAX:
            await transport.close()
            return None
        hello = Hello(
            version_min=OLDEST,
            version_max=self.config.protocol_newest,
            site_id=self.identity.site_id,
            incarnation=self._incarnation,
            name=self.name,
        )
        link = Link(
            transport,
            peer=site,
            name=self._book.name_of(site),
            is_dialer=is_dialer,
            hello=hello,
            handlers=self.handlers,
            pace=self.pacing.pace_for(site, is_first=not links),
            address=address,
            entropy=self._entropy,
        )
        links.append(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, link)
                await link.run()
                nursery.cancel_scope.cancel()
            return link
        finally:
            links.remove(link)
            stats = link.statistics()
            get_logger().info(
                "link.closed",
                peer=link.name,
                why=link.why_closed,
                bytes_in=stats.bytes_in,
                bytes_out=stats.bytes_out,
                lasted_s=round(trio.current_time() - link.opened_at, 1),
            )
            self._note_seen(site)
            self._notify()

    def _note_seen(self, site: SiteId) -> None:
        """Remembering is a courtesy to the reader of `status`: a full disk must not cost us the link, or the node."""
        try:
            self._book.note_seen(site)
        except StoreError as error:
            get_logger().warning("peer.not_noted", error=str(error))

    def _note_incarnation(self, link: Link) -> None:
        """Said again every half minute, so that a disk which was full for a while is told in the end."""
        if link.peer_hello is None:
            return
        try:
            self._book.note_incarnation(link.peer, link.peer_hello.incarnation)
        except StoreError as error:
            get_logger().warning("peer.not_noted", error=str(error))

    def _forget_errors(self, site: SiteId) -> None:
        self.dial_errors.pop(site, None)
        self.replaced_by.pop(site, None)

    async def _announce(self, link: Link) -> None:
        await link.ready.wait()
        if not link.is_open:
            return
        self._forget_errors(link.peer)
        self._notify()
        while True:
            self._note_incarnation(link)
            self._note_seen(link.peer)
            await trio.sleep(30)

    # -- dialling -------------------------------------------------------------------------

    async def _keep_dialling(self, nursery: trio.Nursery) -> None:
        dialled: set[SiteId] = set()
        while True:
            for site in self._known_peers():
                if site not in dialled:
                    dialled.add(site)
                    nursery.start_soon(self._dial_for_ever, site, dialled)
            with trio.move_on_after(1):
                await self._changed.wait()

    def _known_peers(self) -> Sequence[SiteId]:
        """None for the moment, if the catalogue cannot be read: a bad sector under it must not cost us the node."""
        try:
            return self._book.peer_ids()
        except StoreError as error:
            get_logger().warning("peers.unreadable", error=str(error))
            return ()

    async def _dial_for_ever(self, site: SiteId, dialled: set[SiteId]) -> None:
        pause = _DIAL_FIRST_S
        # Two sites that learn of each other at the same moment should not both dial.
        await trio.sleep(0 if self.identity.site_id < site else 0.5 + fraction(self._entropy))
        while site in self._known_peers():
            if self._links.get(site):
                pause = _DIAL_FIRST_S
                await self._changed.wait()
                continue
            try:
                for address in self._book.addresses_of(site):
                    if await self._dial(site, address):
                        pause = _DIAL_FIRST_S
                        break
            except StoreError as error:
                get_logger().warning("peers.unreadable", error=str(error))
            await trio.sleep(pause * (0.5 + fraction(self._entropy)))
            pause = min(pause * 2, _DIAL_MOST_S)
        dialled.discard(site)
        self._forget_errors(site)

    def _note_other(self, site: SiteId, found: SiteId, address: str) -> None:
        """A peer's address is answered by another one. (Not so if that is its own new key: it goes by that by now.)"""
        if site in self._known_peers():
            self.dial_errors[site] = f"{address} is another peer, {self._book.name_of(found)}"
            self.replaced_by[site] = found

    async def _dial(self, site: SiteId, address: str) -> bool:
        """Dial and serve one link to its end. Returns whether it came about at all.

        With TLS 1.3 our side of the handshake is done before the other one judges our key: only its hello
        proves that we are welcome. Without that, a site that has revoked us would be dialled several times a second.
        """
        line: Line | None = None
        found: SiteId | None = None
        try:
            with trio.fail_after(HANDSHAKE_S):
                line = await self.network.dial(address, self._credentials(is_server=False))
                found = await line.handshake()
        except (ReplicatorError, trio.TooSlowError, OSError) as error:
            self.dial_errors[site] = f"{address}: {error or 'no answer in time'}"
        if line is None:
            return False
        if found != site:
            if found is not None:
                self._recognise(found)
                self._note_other(site, found, address)
            await line.close()
            return False
        link = await self._run_link(line, site, is_dialer=True, address=address)
        if link is not None and link.peer_hello is None:
            self.dial_errors[site] = f"{address} turned us away: {link.why_closed}"
            return False
        return True


__all__ = ["Mesh"]
