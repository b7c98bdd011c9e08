"""Whose snapshot goes next to a peer: the most urgent sync's, then whoever asked first.

Syncs with one peer take turns, snapshot by snapshot. Side by side they would share the link
and both be late; and a bandwidth rule of one of them could not be told from that of the other.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import trio


class PriorityLine:
    """One line for each key. Lower priorities go first; whoever is being served is not interrupted."""

    def __init__(self) -> None:
        self._lines: dict[bytes, list[tuple[int, int, str]]] = {}
        self._served: dict[bytes, tuple[int, int, str]] = {}
        self._numbers = count()
        self._moved = trio.Event()

    def waiting(self, key: bytes) -> list[str]:
        """Who is in the line, in the order in which they will be served."""
        served = [self._served[key][2]] if key in self._served else []
        return [*served, *(who for _, _, who in sorted(self._lines.get(key, [])))]

    @asynccontextmanager
    async def turn(self, key: bytes, *, priority: int, who: str) -> AsyncIterator[None]:
        """Wait for the front of the line, and keep everybody else waiting until the block ends."""
        me = (priority, next(self._numbers), who)
        line = self._lines.setdefault(key, [])
        line.append(me)
        try:
            while key in self._served or min(line) != me:
                await self._moved.wait()
            line.remove(me)
            self._served[key] = me
            yield
        finally:
            if self._served.get(key) == me:
                del self._served[key]
            elif me in line:
                line.remove(me)
            if not line and key not in self._served:
                self._lines.pop(key, None)
            self._moved.set()
            self._moved = trio.Event()
