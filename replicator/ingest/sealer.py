"""From bodies to blocks in the store: only what is not there yet is sealed and written.

Everything that a new root needs passes through here, manifest nodes that did not change
included. That costs a look-up a block, and buys two things: what the store has lost since
the last snapshot is written again, and nothing relies on a block that the lease does not pin.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import BadBlock
from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, seal_named
from protocol.wire.hashing import Kind
from replicator.core.errors import StoreError
from replicator.store.ports import BlockStore, Lease, SealedBlock


class Ahead(Protocol):
    """Somebody who wants to have each new block of data as soon as it is in the store."""

    def add(self, blocks: Sequence[SealedBlock]) -> None:
        """Called by worker threads; does not wait."""
        ...

    def wake(self) -> None:
        """Called on the event loop, now and then after `add`."""
        ...

    @property
    def is_taking(self) -> bool:
        """Whether what is added is really taken: then nobody is about to read it from the store."""
        ...


@dataclass(slots=True)
class SealedCounts:
    """What one writer has added to the store."""

    blocks: int = 0
    sealed_bytes: int = 0
    data_bytes: int = 0
    """What the new data blocks unpack to."""


class Sealer:
    """One writer's way into the store. Blocking; may be called from several threads at once."""

    def __init__(self, store: BlockStore, lease: Lease, *, commit_bytes: int, ahead: Ahead | None = None) -> None:
        self._store = store
        self._lease = lease
        self._commit_bytes = commit_bytes
        self._ahead = ahead
        self._lock = threading.Lock()
        self._in_work: set[BlockId] = set()
        self._uncommitted = 0
        self.counts = SealedCounts()

    def have(self, ids: list[BlockId]) -> set[BlockId]:
        """Which of these need not be written."""
        return self._store.have(self._lease, ids)

    def add(self, kind: Kind, bodies: dict[BlockId, Buffer]) -> None:
        """Put into the store what it lacks of these. They are durable after the next `commit`."""
        with self.claim(list(bodies)) as mine:
            self.put(kind, [_sealed(kind, name, bodies[name]) for name in mine])

    @contextmanager
    def claim(self, names: list[BlockId]) -> Iterator[list[BlockId]]:
        """Those that have to be put by the caller, until the end of the block: the store lacks them."""
        here = self._store.have(self._lease, names) if names else set()
        with self._lock:
            # What another thread is sealing now is as good as here: nobody commits the root before it is done.
            mine = [name for name in names if name not in here and name not in self._in_work]
            self._in_work.update(mine)
        try:
            yield mine
        finally:
            with self._lock:
                self._in_work.difference_update(mine)

    def put(self, kind: Kind, fresh: Sequence[SealedBlock]) -> None:
        """Blocks that were claimed."""
        added = self._store.append(self._lease, fresh) if fresh else 0
        self._count(kind, added, fresh)
        if self._ahead is not None and kind is Kind.DATA and fresh:
            self._ahead.add(fresh)

    def wake_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.wake()

    def _count(self, kind: Kind, added: int, fresh: Sequence[SealedBlock]) -> None:
        sealed_bytes = sum(len(block.sealed) for block in fresh)
        with self._lock:
            self._uncommitted += sealed_bytes
            self.counts.blocks += added
            self.counts.sealed_bytes += sealed_bytes
            if kind is Kind.DATA:
                self.counts.data_bytes += sum(block.header.body_bytes for block in fresh)

    @property
    def is_commit_due(self) -> bool:
        return self._uncommitted >= self._commit_bytes

    def commit(self) -> None:
        """Make everything that was added before durable."""
        with self._lock:
            self._uncommitted = 0
        # Pages that are handed back are at hand for the next batch; a fresh one costs a virtual machine several copies.
        is_taken = self._ahead is not None and self._ahead.is_taking
        self._store.commit(self._lease, keep_cached=not is_taken)


def _sealed(kind: Kind, name: BlockId, body: Buffer) -> SealedBlock:
    try:
        header, sealed = seal_named(kind, body, name)
    except BadBlock as error:
        raise not_survived(error) from error
    return SealedBlock(header, sealed)


def not_survived(why: object) -> StoreError:
    return StoreError(f"A block did not survive its own packing: {why}.", hint="Check this machine's memory.")


class NodeBuffer:
    """Collects the nodes that a `MapEditor` makes, until they are worth a trip to a worker thread."""

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bodies: dict[BlockId, Buffer] = {}
        self._bytes = 0

    def __call__(self, name: BlockId, body: bytes) -> None:
        self._bodies[name] = body
        self._bytes += len(body)

    @property
    def is_full(self) -> bool:
        return self._bytes >= self._bytes_max

    def take(self) -> dict[BlockId, Buffer]:
        taken, self._bodies, self._bytes = self._bodies, {}, 0
        return taken
