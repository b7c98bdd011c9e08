"""Who is next: jobs that must not meet run in the order in which they were asked for.

A lock would not do: tasks that are started at the same moment reach it in any order, and a
job that was asked for first, or had been running before a restart, could find itself behind.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Turns:
    """One line for each key; whoever has no key never waits."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[str]] = {}
        self._moved = trio.Event()

    def line_up(self, key: str, who: str) -> None:
        """Take the last place in the line."""
        if key:
            self._lines.setdefault(key, deque()).append(who)

    @asynccontextmanager
    async def turn(self, key: str, who: str) -> AsyncIterator[None]:
        """Wait for the front of the line; leaving the block, or giving up, leaves the line."""
        try:
            while key and self._lines[key][0] != who:
                await self._moved.wait()
            yield
        finally:
            self.leave(key, who)

    def leave(self, key: str, who: str) -> None:
        """Give up the place. Harmless if there is none."""
        line = self._lines.get(key)
        if line is None or who not in line:
            return
        line.remove(who)
        if not line:
            del self._lines[key]
        self._moved.set()
        self._moved = trio.Event()
