"""A bad network between two real TCP ports: delay, rate, stalls, cuts, one-way cuts, half-open links.

What a packet network does below TCP is seen above it in few ways only. Loss is a pause (a
retransmission) and then the same bytes; reordering and duplication are not seen at all, since TCP
hands bytes on in order or not at all. So there is no knob for them here, and what a knob
says is what an application can meet.

    async with a_proxy(target, Weather(delay_s=0.1, rate_bytes=12_500_000)) as proxy:
        ... dial proxy.address ...
        proxy.weather = replace(proxy.weather, lets_back=False)   # it hears us, we do not hear it

Weather may change at any time and holds for the next piece that comes along.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from replicator.net.address import split_address

_PIECE: Final = 16 * 1024
_BUFFER_S: Final = 0.1
"""How much a router keeps: a tenth of a second of its rate, and what is in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """All off by default."""

    delay_s: float = 0.0
    """One way: half of the round trip."""
    rate_bytes: float = 0.0
    """Each way; 0 is no limit."""
    stall_every_bytes: int = 0
    stall_s: float = 0.2
    """Loss, as an application sees it: once in so many bytes, at random, everything waits for a retransmission."""
    lets_out: bool = True
    """From whoever dialled. False: bytes vanish without a word, as behind a dead route."""
    lets_back: bool = True
    carries_bytes: int = 0
    """A piece that is larger, and all that comes after it on its way, vanishes: a tunnel that is narrower than it says.
    0 is no limit."""
    accepts: bool = True
    """False: a connection is taken and nothing is ever passed on (half-open)."""


FAIR: Final = Weather()


class Proxy:
    """Passes connections on to `target` through the weather of the moment."""

    def __init__(self, target: Callable[[], str], weather: Weather, *, seed: int = 0) -> None:
        self._target = target
        self.weather = weather
        self.address = ""
        self.connections_count = 0
        self.bytes_passed = 0
        self.bytes_left: int | None = None
        """How many more bytes pass before every connection is reset once; None for no end."""
        self._random = random.Random(seed)
        self._scopes: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._pass_on, [listener])

    def cut(self) -> None:
        """Reset every connection."""
        for scope in list(self._scopes):
            scope.cancel()

    async def _pass_on(self, near: trio.SocketStream) -> None:
        self.connections_count += 1
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if not self.weather.accepts:
                    await trio.sleep_forever()
                far = await trio.open_tcp_stream(*split_address(self._target()))
                async with near, far, trio.open_nursery() as nursery:
                    for source, sink, is_out in ((near, far, True), (far, near, False)):
                        nursery.start_soon(self._way, source, sink, is_out, scope)
            except OSError:
                pass
            finally:
                self._scopes.discard(scope)
                await trio.aclose_forcefully(near)

    async def _way(
        self, source: trio.SocketStream, sink: trio.SocketStream, is_out: bool, scope: trio.CancelScope
    ) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](100_000)
        room = [trio.Event(), 0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_in, source, send, room, is_out)
            nursery.start_soon(self._give_out, receive, sink, room, scope)

    async def _take_in(
        self, source: trio.SocketStream, send: trio.MemorySendChannel[tuple[float, bytes]], room: list, is_out: bool  # type: ignore[type-arg]
    ) -> None:  # fmt: skip
        free_at = trio.current_time()
        is_stuck = False
        async with send:
            while data := await _received(source):
                weather = self.weather
                is_stuck |= 0 < weather.carries_bytes < len(data)
                if is_stuck or not (weather.lets_out if is_out else weather.lets_back):
                    continue
                now = trio.current_time()
                free_at = max(now, free_at)
                if weather.rate_bytes:
                    free_at += len(data) / weather.rate_bytes
                if weather.stall_every_bytes and self._random.random() < len(data) / weather.stall_every_bytes:
                    free_at += weather.stall_s
                await send.send((free_at + weather.delay_s, data))
                room[1] += len(data)
                most = max(weather.rate_bytes * (weather.delay_s + _BUFFER_S), 64 * 1024) if weather.rate_bytes else 1e9
                while room[1] > most:
                    room[0] = trio.Event()
                    await room[0].wait()

    async def _give_out(
        self, receive: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.SocketStream, room: list,  # type: ignore[type-arg]
        scope: trio.CancelScope,
    ) -> None:  # fmt: skip
        async for due, data in receive:
            await trio.sleep_until(due)
            if self.bytes_left is not None:
                self.bytes_left -= len(data)
                if self.bytes_left <= 0:
                    self.bytes_left = None
                    self.cut()
                    return
            try:
                await sink.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel()
                return
            self.bytes_passed += len(data)
            room[1] -= len(data)
            room[0].set()
        scope.cancel()


async def _received(source: trio.SocketStream) -> bytes:
    try:
        return bytes(await source.receive_some(_PIECE))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


@asynccontextmanager
async def a_proxy(target: Callable[[], str], weather: Weather = FAIR, *, seed: int = 0) -> AsyncIterator[Proxy]:
    proxy = Proxy(target, weather, seed=seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()
