"""A long way between two nodes: TCP through a proxy that holds every byte back for half a round trip.

    python -m bench.proxy LISTEN HOST PORT DELAY_MS

Each direction is a queue of what has arrived and when it may leave, so the delay costs no
bandwidth, as on a real line. The window of the proxy's own sockets is not the line's: how much is
under way is bounded by `_HELD_MAX` a direction.
"""

import sys
from collections import deque
from typing import Final

import trio

_READ: Final = 256 * 1024
_HELD_MAX: Final = 64 * 1024 * 1024
"""What a line of 2.5 Gbit/s and 200 ms holds."""


class _Line:
    """One direction of one connection."""

    def __init__(self, *, delay_s: float) -> None:
        self._delay_s = delay_s
        self._held: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = trio.Condition()
        self._ended = False

    async def fill(self, source: trio.SocketStream) -> None:
        while data := await source.receive_some(_READ):
            async with self._changed:
                while self._bytes > _HELD_MAX:
                    await self._changed.wait()
                self._held.append((trio.current_time() + self._delay_s, data))
                self._bytes += len(data)
                self._changed.notify_all()
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def drain(self, sink: trio.SocketStream) -> None:
        while True:
            async with self._changed:
                while not self._held and not self._ended:
                    await self._changed.wait()
                if not self._held:
                    break
                due, data = self._held.popleft()
            await trio.sleep_until(due)
            await sink.send_all(data)
            async with self._changed:
                self._bytes -= len(data)
                self._changed.notify_all()
        await trio.sleep(self._delay_s)
        await sink.send_eof()


async def carry(near: trio.SocketStream, *, host: str, port: int, delay_s: float) -> None:
    """Join one accepted connection with a new one to `host`, each way late by `delay_s`."""
    try:
        far = await trio.open_tcp_stream(host, port)
    except OSError:
        await near.aclose()  # The node is not up yet, or no longer.
        return
    out, back = _Line(delay_s=delay_s), _Line(delay_s=delay_s)
    async with near, far:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(out.fill, near)
                nursery.start_soon(out.drain, far)
                nursery.start_soon(back.fill, far)
                nursery.start_soon(back.drain, near)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # One side is gone; so is the other in a moment.


async def serve(listen: int, host: str, port: int, delay_s: float) -> None:
    async def accepted(stream: trio.SocketStream) -> None:
        await carry(stream, host=host, port=port, delay_s=delay_s)

    await trio.serve_tcp(accepted, listen, host="127.0.0.1")


if __name__ == "__main__":
    trio.run(serve, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) / 1000)
