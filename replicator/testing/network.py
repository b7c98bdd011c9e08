"""A network inside one process: lines with delay, and paths that can be blocked in either direction.

A line is what TCP is to a node: bytes arrive whole, in order and once, in pieces of any length,
or the line breaks. What a blocked path holds back arrives when it is open again, as with a
retransmission, unless somebody has lost patience before. Both directions have a path of their
own, so a cut may be one-sided: the worst kind, because one side sees nothing wrong.

The handshake shows the keys and checks them against the pins, and proves nothing: between
objects in one process there is nobody to deceive. TLS is tested where there are sockets.
"""

import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from protocol.ids import SITE_ID_BYTES, SiteId
from protocol.wire.envelope import Buffer
from replicator.core.errors import ConfigError, Unreachable, Untrusted
from replicator.net.address import split_address
from replicator.net.ports import Credentials, Line, Listener
from replicator.testing.timers import Bell

_IN_FLIGHT_MAX = 256 * 1024
"""What a line takes from a sender before the receiver has read it: the buffers of a socket."""


@dataclass(slots=True)
class Path:
    """One direction between two machines."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    is_blocked: bool = False
    """Nothing arrives; what was sent waits."""
    rate_bytes: int = 0
    """Bytes a second; 0 for no limit."""


Seen = Callable[[str, str, bytes], None]
"""Told of each write: from which machine, to which, and what."""


class MemoryNetwork:
    """All lines of a mesh."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._paths: dict[tuple[str, str], Path] = {}
        self._listeners: dict[str, MemoryListener] = {}
        self._lines: dict[MemoryLine, None] = {}
        self.on_write: Seen = lambda source, target, data: None
        self.fragment = False
        """Deliver in pieces of random length, so that every border in the stream is met somewhere."""

    def path(self, source: str, target: str) -> Path:
        """The conditions from one machine to another: change them at any time."""
        return self._paths.setdefault((source, target), Path())

    def paths(self) -> list[Path]:
        return list(self._paths.values())

    def changed(self) -> None:
        """Conditions have changed: whoever waits looks again."""
        for line in self._lines:
            line.incoming.wake()

    def at(self, host: str) -> "HostNetwork":
        return HostNetwork(self, host)

    def break_lines(self, one: str, other: str | None = None) -> int:
        """Reset every line of a machine, or of two: both ends notice at once. Returns how many there were."""
        broken = 0
        for line in list(self._lines):
            if line.host == one and other in (None, line.peer_host):
                line.reset()
                broken += 1
        return broken

    def abandon(self, host: str) -> None:
        """The machine is off: its ends of all lines are gone, and nobody is told."""
        self._listeners = {a: listener for a, listener in self._listeners.items() if listener.host != host}
        for line in list(self._lines):
            if line.host == host:
                line.is_abandoned = True

    def reject_strays(self, host: str) -> None:
        """The machine is back and knows of none of its old lines: who still speaks on one is told so."""
        for line in list(self._lines):
            if line.host == host and line.is_abandoned:
                line.reset()

    def open_lines(self) -> int:
        return len(self._lines)


class HostNetwork:
    """`Network` as one machine sees it."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    async def listen(self, address: str) -> Listener:
        split_address(address)
        if address in self._network._listeners:
            raise ConfigError(f"Cannot listen on {address}: it is taken.")
        listener = MemoryListener(self._network, self._host, address)
        self._network._listeners[address] = listener
        return listener

    async def dial(self, address: str, credentials: Credentials) -> Line:
        host, _ = split_address(address)
        for path in (self._network.path(self._host, host), self._network.path(host, self._host)):
            while path.is_blocked:  # noqa: ASYNC110  (a path has no event, and a look now and then is enough)
                # A caller has a patience of its own.
                await trio.sleep(0.5)
            await trio.sleep(path.delay_s)
        listener = self._network._listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens on {address}")
        ours, theirs = _make_lines(self._network, self._host, host, credentials)
        await listener.take(theirs)
        return ours


class MemoryListener:
    def __init__(self, network: MemoryNetwork, host: str, address: str) -> None:
        self._network = network
        self.host = host
        self.address = address
        self._send, self._receive = trio.open_memory_channel["MemoryLine"](128)

    async def take(self, line: "MemoryLine") -> None:
        try:
            await self._send.send(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            line.reset()
            raise ConnectionRefusedError(f"nobody listens on {self.address}") from None

    async def serve(self, accept: Callable[[Line], Awaitable[None]], credentials: Callable[[], Credentials]) -> None:
        async with trio.open_nursery() as nursery:
            async for line in self._receive:
                line.credentials = credentials()
                nursery.start_soon(accept, line)

    def close(self) -> None:
        self._receive.close()
        if self._network._listeners.get(self.address) is self:
            del self._network._listeners[self.address]


class _Pipe:
    """One direction of a line."""

    def __init__(self, network: MemoryNetwork, path: Path) -> None:
        self._network = network
        self._path = path
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0
        self._bytes = 0
        self._changed = Bell()
        self._room = trio.Event()
        self.is_ended = False
        self.is_broken = False

    def wake(self) -> None:
        self._changed.ring()
        self._room.set()

    async def write(self, data: bytes) -> None:
        """Raises `Unreachable`."""
        while True:
            if self.is_broken:
                raise Unreachable("The line was reset.")
            if self._bytes < _IN_FLIGHT_MAX:
                break
            self._room = trio.Event()
            await self._room.wait()
        path = self._path
        now = trio.current_time()
        delay = path.delay_s + (path.jitter_s * self._network.chance.random() if path.jitter_s else 0.0)
        if path.rate_bytes:
            delay += len(data) / path.rate_bytes
        self._last_due = max(self._last_due, now + delay) if not path.rate_bytes else max(self._last_due, now) + delay
        self._chunks.append((self._last_due, data))
        self._bytes += len(data)
        self._changed.ring()

    async def read(self, count_max: int) -> bytes:
        """At least one byte; empty at the end. Raises `Unreachable`."""
        has_waited = False
        while True:
            # What is on its way over a blocked path is as good as not sent.
            due = self._chunks[0][0] if self._chunks and not self._path.is_blocked else None
            has_ended = self.is_ended and not self._chunks and not self._path.is_blocked
            if self.is_broken or has_ended or (due is not None and due <= trio.current_time()):
                if has_waited:
                    break
                await trio.lowlevel.checkpoint()
            else:
                await self._changed.wait(math.inf if due is None else due)
            has_waited = True
        if self.is_broken:
            raise Unreachable("The line was reset.")
        return b"" if has_ended else self._take(count_max)

    def _take(self, count_max: int) -> bytes:
        due, chunk = self._chunks.popleft()
        if self._network.fragment and len(chunk) > 1 and self._network.chance.random() < 0.05:
            count_max = min(count_max, self._network.chance.randrange(1, len(chunk)))
        if len(chunk) > count_max:
            self._chunks.appendleft((due, chunk[count_max:]))
            chunk = chunk[:count_max]
        self._bytes -= len(chunk)
        self._room.set()
        return chunk


class MemoryLine:
    """One end of a line."""

    def __init__(self, network: MemoryNetwork, host: str, peer_host: str, out: _Pipe, incoming: _Pipe) -> None:
        self._network = network
        self.host = host
        self.peer_host = peer_host
        self._out = out
        self.incoming = incoming
        self.credentials: Credentials | None = None
        self.is_abandoned = False
        network._lines[self] = None

    @property
    def remote(self) -> str:
        return self.peer_host

    async def handshake(self) -> SiteId:
        assert self.credentials is not None
        await self._out.write(self.credentials.identity.site_id)
        shown = b""
        while len(shown) < SITE_ID_BYTES:
            more = await self.incoming.read(SITE_ID_BYTES - len(shown))
            if not more:
                raise Unreachable("The line ended before the other side had shown its key.")
            shown += more
        if shown not in self.credentials.pins:
            raise Untrusted("The other side's key is not pinned here.")
        return SiteId(shown)

    async def send(self, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        self._network.on_write(self.host, self.peer_host, data)
        await self._out.write(data)

    async def receive(self) -> bytes:
        return await self.incoming.read(1 << 20)

    async def close(self) -> None:
        if not self.is_abandoned:
            self._out.is_ended = True
            self._out.wake()
            self._network._lines.pop(self, None)

    def reset(self) -> None:
        for pipe in (self._out, self.incoming):
            pipe.is_broken = True
            pipe.wake()
        self._network._lines.pop(self, None)


def _make_lines(
    network: MemoryNetwork, host: str, peer_host: str, credentials: Credentials
) -> tuple[MemoryLine, MemoryLine]:
    out, back = _Pipe(network, network.path(host, peer_host)), _Pipe(network, network.path(peer_host, host))
    ours = MemoryLine(network, host, peer_host, out, back)
    theirs = MemoryLine(network, peer_host, host, back, out)
    ours.credentials = credentials
    return ours, theirs


@contextmanager
def blocked(network: MemoryNetwork, source: str, target: str) -> Iterator[None]:
    """Nothing gets from one machine to the other inside the block."""
    network.path(source, target).is_blocked = True
    try:
        yield
    finally:
        network.path(source, target).is_blocked = False
        network.changed()
