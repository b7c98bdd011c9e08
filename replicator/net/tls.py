"""The encrypted byte stream of a link: TLS 1.3 and nothing older, both sides by pinned keys.

Trio's own `SSLStream` moves 0.5-0.7 GB/s here, this pump 1.3 (measured on loopback): it reads
half a mebibyte from the socket at a time, hands the engine whole frames, and never copies in between.

No session tickets: a resumed session would skip the certificate, and with it a revocation.
"""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, cast
from weakref import WeakKeyDictionary

import trio

from protocol.ids import SiteId
from protocol.wire.envelope import Buffer
from replicator.core.errors import ConfigError, Unreachable, Untrusted
from replicator.net.address import split_address
from replicator.net.identity import Identity, site_of_leaf, trust_anchor
from replicator.net.ports import Credentials, Line, Listener

ALPN: Final = "replicator/1"
_CHUNK: Final = 512 * 1024
_UNSENT_MAX: Final = 256 * 1024
"""What lies in the kernel cannot be overtaken by a repair: a quarter of the largest frame that could be in its way."""
_RECORD: Final = 16 * 1024


def make_context(identity: Identity, pins: Iterable[SiteId], *, is_server: bool) -> ssl.SSLContext:
    """A context that shows `identity` and accepts exactly the sites in `pins`.

    A context cannot forget an anchor: after a revocation the caller makes a new one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN])
    if is_server:
        context.num_tickets = 0
    handle = identity.leaf_file()
    try:
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    anchors = "".join(trust_anchor(site) for site in pins)
    if anchors:
        context.load_verify_locations(cadata=anchors)
    return context


class TlsTransport:
    """A `Line` over a Trio stream."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._cipher = memoryview(bytearray(_CHUNK))
        self._plain = memoryview(bytearray(_CHUNK + _RECORD))
        self._is_over = False
        self._sending = trio.Lock()
        # Trio asks the kernel to take 16 KiB more than it can send, which is nine sends and wake-ups a mebibyte.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_MAX)

    @property
    def remote(self) -> str:
        try:
            host, port = self._stream.socket.getpeername()[:2]
        except OSError:
            return "unknown"
        return f"{host}:{port}"

    async def handshake(self) -> SiteId:
        """Prove both sides to each other. Returns who the other one is.

        Raises `Untrusted` if it is not one of the pinned sites, `Unreachable` if the connection breaks.
        """
        while True:
            try:
                self._engine.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError as error:
                await self._try_flush()
                raise Untrusted(f"TLS refused the other side: {error.reason or error}.") from error
            await self._flush()
            if done:
                break
            await self._fill()
        if self._engine.selected_alpn_protocol() != ALPN:
            raise Untrusted("The other side speaks TLS, but not our protocol.")
        return site_of_leaf(self._engine.getpeercert(binary_form=True))

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Raises `Unreachable`."""
        async with self._sending:
            for part in parts:
                view = memoryview(part)
                for at in range(0, len(view), _CHUNK):
                    self._engine.write(view[at : at + _CHUNK])
                    if self._outgoing.pending >= _CHUNK:
                        await self._flush()
            await self._flush()

    async def receive(self) -> bytes:
        """Raises `Unreachable`, `Untrusted`."""
        while True:
            size = self._decrypt()
            if size:
                return bytes(self._plain[:size])
            if self._is_over or not await self._fill():
                return b""

    def _decrypt(self) -> int:
        """All that is here, or as much as there is room for. OpenSSL gives out one record of 16 KiB a call."""
        read, plain, incoming = self._engine.read, self._plain, self._incoming
        size = 0
        try:
            while size <= _CHUNK:
                size += cast(int, read(_RECORD, plain[size:]))
                if not incoming.pending and not self._engine.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._is_over = True
        except ssl.SSLError as error:
            raise Untrusted(f"TLS refused the other side: {error.reason or error}.") from error
        return size

    async def _fill(self) -> bool:
        try:
            # Past the stream, into memory that is there already: `receive_some` would take a fresh piece each time.
            count = await self._stream.socket.recv_into(self._cipher)
        except (OSError, trio.ClosedResourceError) as error:
            raise Unreachable(f"The connection broke: {error}.") from error
        if not count:
            self._incoming.write_eof()
            return False
        self._incoming.write(self._cipher[:count])
        return True

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Unreachable(f"The connection broke: {error.__cause__ or error}.") from error

    async def _try_flush(self) -> None:
        """So that the other side learns from an alert why it was turned away."""
        try:
            await self._flush()
        except Unreachable:
            return

    async def close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.aclose_forcefully(self._stream)


class TlsNetwork:
    """`Network` over TCP."""

    def __init__(self) -> None:
        # Making a context costs a millisecond and more, and all lines of one moment share it.
        self._contexts: WeakKeyDictionary[Credentials, ssl.SSLContext] = WeakKeyDictionary()

    def context(self, credentials: Credentials) -> ssl.SSLContext:
        made = self._contexts.get(credentials)
        if made is None:
            made = make_context(credentials.identity, credentials.pins, is_server=credentials.is_server)
            self._contexts[credentials] = made
        return made

    async def listen(self, address: str) -> Listener:
        host, port = split_address(address)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=128)
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {address}: {error.strerror or error}.",
                hint="Another program has it, or it is not this machine's address: change `listen` in config.toml.",
            ) from error
        return _TlsListener(self, listeners, host=address.rpartition(":")[0])

    async def dial(self, address: str, credentials: Credentials) -> Line:
        host, port = split_address(address)
        stream = await trio.open_tcp_stream(host, port)
        return TlsTransport(stream, self.context(credentials), is_server=False)


class _TlsListener:
    def __init__(self, network: TlsNetwork, listeners: list[trio.SocketListener], *, host: str) -> None:
        self._network = network
        self._listeners = listeners
        self.address = f"{host}:{listeners[0].socket.getsockname()[1]}"

    async def serve(self, accept: Callable[[Line], Awaitable[None]], credentials: Callable[[], Credentials]) -> None:
        async def take(stream: trio.SocketStream) -> None:
            await accept(TlsTransport(stream, self._network.context(credentials()), is_server=True))

        await trio.serve_listeners(take, self._listeners)

    def close(self) -> None:
        for listener in self._listeners:
            listener.socket.close()
