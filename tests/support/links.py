"""Connections that a test can hold, slow and cut: a relay before a real port, and a wire in memory."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from protocol.ids import SiteId
from protocol.messages.session import Hello
from protocol.wire.envelope import Buffer
from replicator.core.errors import Unreachable
from replicator.core.ports import SystemEntropy
from replicator.core.throttle import TokenBucket
from replicator.net.address import split_address
from replicator.net.link import Handlers, Link, Pace


class Relay:
    """Passes TCP connections on to `target`, until it is told to cut them."""

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self.address = ""
        self.connections_count = 0
        self.bytes_left: int | None = None
        """How many more bytes pass before everything is cut once; None for no end."""
        self._scopes: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._pass_on, [listener])

    def cut(self) -> None:
        for scope in list(self._scopes):
            scope.cancel()

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self.connections_count += 1
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                far = await trio.open_tcp_stream(*split_address(self._target()))
                async with near, far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, scope)
                    nursery.start_soon(self._pump, far, near, scope)
            except OSError:
                await trio.aclose_forcefully(near)
            finally:
                self._scopes.discard(scope)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(16 * 1024):
                if self.bytes_left is not None:
                    self.bytes_left -= len(data)
                    if self.bytes_left <= 0:
                        self.bytes_left = None
                        self.cut()
                        return
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def a_relay(target: Callable[[], str]) -> AsyncIterator[Relay]:
    relay = Relay(target)
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        yield relay
        nursery.cancel_scope.cancel()


class WireEnd:
    """`Transport` in memory: a few chunks of buffer, as a socket has, and no time of its own."""

    def __init__(self, out: trio.MemorySendChannel[bytes], into: trio.MemoryReceiveChannel[bytes]) -> None:
        self._out = out
        self._into = into

    async def send(self, parts: Sequence[Buffer]) -> None:
        try:
            await self._out.send(b"".join(parts))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable("the wire is cut") from error

    async def receive(self) -> bytes:
        try:
            return await self._into.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return b""

    async def close(self) -> None:
        self._out.close()
        self._into.close()


def a_wire() -> tuple[WireEnd, WireEnd]:
    ab_send, ab_receive = trio.open_memory_channel[bytes](4)
    ba_send, ba_receive = trio.open_memory_channel[bytes](4)
    return WireEnd(ab_send, ba_receive), WireEnd(ba_send, ab_receive)


DIALER, LISTENER = SiteId(b"d" * 32), SiteId(b"l" * 32)


def make_link(
    transport: WireEnd,
    *,
    is_dialer: bool,
    handlers: Handlers | None = None,
    outgoing: TokenBucket | None = None,
    incoming: TokenBucket | None = None,
) -> Link:
    ours, peer = (DIALER, LISTENER) if is_dialer else (LISTENER, DIALER)
    return Link(
        transport,
        peer=peer,
        name="listener" if is_dialer else "dialer",
        is_dialer=is_dialer,
        hello=Hello(version_min=1, version_max=1, site_id=ours, incarnation=bytes(16), name="one"),
        handlers=handlers or {},
        pace=Pace((outgoing,) if outgoing else (), (incoming,) if incoming else ()),
        address="memory",
        entropy=SystemEntropy(),
    )


@asynccontextmanager
async def linked(dialer: Link, listener: Link) -> AsyncIterator[None]:
    """Both ends running and greeted."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.run)
        nursery.start_soon(listener.run)
        await dialer.ready.wait()
        await listener.ready.wait()
        yield
        nursery.cancel_scope.cancel()
