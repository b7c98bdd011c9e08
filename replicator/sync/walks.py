"""The difference of two maps, walked once for everybody who needs it while syncs run.

A sync needs it twice: first for the plan, which asks the peer what it lacks, then for the telling; and a volume that
goes to several peers needs it twice for each. (Two that walk at the same time do not wait for each other: one of them
may be telling a slow peer.) Maps are named by their hash, so a difference that was walked
once is the same for ever, and what is kept of it needs no care but for memory: `_BYTES_MAX` in all, and nothing once
the last sync is over. A difference that is larger is walked as often as it is needed, and so is one that somebody gave
up in the middle.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from protocol.ids import BlockId
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import diff, entries
from replicator.catalog.records import SnapshotRecord
from replicator.store.ports import BlockReader
from replicator.sync.difference import Change

_BYTES_MAX: Final = 32 * 1024 * 1024
"""160,000 changed blocks of an image, or some 70,000 changed files: a walk of more than a second."""
_CHANGE_BYTES: Final = 160
"""What the objects of one change take beside its bytes."""
_TURN: Final = 256
"""Changes handed out between two looks at the event loop: nothing is read that would give others a turn."""

_Name = tuple[BlockId | None, BlockId, Shape]


class Walks:
    """Differences of maps that are here."""

    def __init__(self, reader: BlockReader) -> None:
        self.reader = reader
        self._users = 0
        self._kept: dict[_Name, list[Change]] = {}
        self._bytes: dict[_Name, int] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is walked inside of this block is kept until the last such block ends."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._kept.clear()
                self._bytes.clear()

    async def changes(self, record: SnapshotRecord, base: BlockId | None) -> AsyncIterator[Change]:
        """What a snapshot changes in a base, in key order; everything, if there is none. Raises what reading raises."""
        name = (base, record.root, record.shape)
        known = self._kept.get(name)
        if known is not None:
            for number, change in enumerate(known):
                if number % _TURN == 0:
                    await trio.lowlevel.checkpoint()
                yield change
            return
        found: list[Change] | None = [] if self._users else None
        size = 0
        async for change in self._walk(record, base):
            if found is not None:
                found.append(change)
                size += _CHANGE_BYTES + len(change[0]) + len(change[1] or b"")
                if size > _BYTES_MAX:
                    found = None
            yield change
        if found is not None and self._users:
            self._keep(name, found, size)

    def _walk(self, record: SnapshotRecord, base: BlockId | None) -> AsyncIterator[Change]:
        if base is None:
            return entries(self.reader, record.root, record.shape)
        return diff(self.reader, base, record.root, record.shape)

    def _keep(self, name: _Name, found: list[Change], size: int) -> None:
        """The oldest give way: a sync brings over the newest first, and does not come back to what it has sent."""
        while self._kept and sum(self._bytes.values()) + size > _BYTES_MAX:
            oldest = next(iter(self._kept))
            del self._kept[oldest], self._bytes[oldest]
        self._kept[name], self._bytes[name] = found, size


__all__ = ["Walks"]
