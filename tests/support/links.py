"""Links over a wire in memory. (Between real ports there is `proxy.py`.)"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from protocol.ids import SiteId
from protocol.messages.session import Hello
from protocol.messages.versions import CURRENT, OLDEST
from protocol.wire.envelope import Buffer
from replicator.core.errors import Unreachable
from replicator.core.ports import SystemEntropy
from replicator.core.throttle import TokenBucket
from replicator.net.link import Handlers, Link, Pace


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
        hello=Hello(version_min=OLDEST, version_max=CURRENT, site_id=ours, incarnation=bytes(16), name="one"),
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
