"""From a writer's bytes to a row in the ledger: what is written and not yet entered, and the flush that many share.

The order of a commit, which everything else rests on:

    bytes into the segment → fdatasync → rows into the ledger → return

and for a new segment its name is made durable before its first byte. Whoever is told
"committed" can pull the plug. Writers that commit at the same moment share one flush: one of
them leads and takes everything that is pending, and each of the others waits only until *its*
bytes are covered. (With a plain lock instead of that, the one that has just released it takes
it again, and sixteen writers need as many flushes as one after the other would.)

Blocks that are appended and not yet committed are known in memory only (`_pending`), so a
second writer of the same bytes does not write them again, and a crash forgets exactly what
nobody was promised.

Invariants: an id is in the ledger only if a flush has covered its bytes. A block goes from `_pending`
to `_committing` to the ledger, and is in at least one of them at every moment.
"""

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from protocol.ids import BlockId
from protocol.wire.envelope import Header
from replicator.core.errors import SegmentLost, StoreError, StoreFull, StoreReadOnly
from replicator.store.leases import Leases
from replicator.store.ledger import Ledger
from replicator.store.ports import Place, SealedBlock
from replicator.store.segments import SegmentFiles

_COMMIT_ROWS_MAX: Final = 50_000


class Room(Protocol):
    """The parts of `LocalStore` that are written to."""

    files: SegmentFiles
    leases: Leases
    ledger: Ledger


class Commits:
    """The writing half of a `LocalStore`. Thread-safe."""

    def __init__(self, room: Room, *, refuse_if_full: Callable[[int], None]) -> None:
        self._room = room
        self._refuse_if_full = refuse_if_full
        self.append_lock = threading.Lock()
        self.commit_lock = threading.Lock()
        """One flush, move of blocks, or exchange of the ledger at a time."""
        self._turn = threading.Condition()
        self._is_led = False
        self._appended = self._flushed = 0
        """How many batches were ever appended, and how many of them the last good flush has covered."""
        self._pending: dict[BlockId, tuple[Header, Place]] = {}
        self._committing: dict[BlockId, tuple[Header, Place]] = {}

    def waiting(self, ids: Iterable[BlockId]) -> dict[BlockId, tuple[Header, Place]]:
        """What of these is written and not entered yet. No lock: an append holds it while it writes megabytes.

        Whoever wants to know what is here asks this first, and the ledger after it.
        """
        return {
            block: entry
            for block in ids
            if (entry := self._pending.get(block) or self._committing.get(block)) is not None
        }

    @property
    def pending_count(self) -> int:
        """How many blocks are written and not entered yet, but for those of a flush that is under way."""
        return len(self._pending)

    def append(self, blocks: Sequence[SealedBlock], *, here: set[BlockId]) -> int:
        """Write those that are not here. Returns how many. Raises `StoreFull`, `StoreReadOnly`, `StoreError`."""
        with self.append_lock:
            fresh: list[SealedBlock] = []
            for block in blocks:
                name = block.header.block_id
                if name not in here and name not in self._pending and name not in self._committing:
                    here.add(name)
                    fresh.append(block)
            if fresh:
                # Under the lock: several who are told at once that there is room would fill the reserve together.
                self._refuse_if_full(sum(len(block.sealed) for block in fresh))
                self._write(fresh)
        return len(fresh)

    def _write(self, fresh: Sequence[SealedBlock]) -> None:
        try:
            places = self._room.files.append(fresh)
        except OSError as error:
            raise self._failure("Writing a segment", error) from error
        for block, place in zip(fresh, places, strict=True):
            self._pending[block.header.block_id] = (block.header, place)
        self._appended += 1

    def _failure(self, doing: str, error: OSError) -> StoreError:
        what = f"{doing} failed: {error.strerror}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(what, hint="Free space on that disk.")
        if error.errno == errno.EIO:
            self._room.files.poisoned = what
            return StoreReadOnly(what, hint="Check the disk, then restart the node.")
        return StoreError(what)

    def flush(self, *, keep_cached: bool = True) -> None:
        """Make everything that is pending durable, whoever appended it.

        Returns when all that was appended before is.
        """
        with self.append_lock:
            goal = self._appended
        with self._turn:
            self._turn.wait_for(lambda: not self._is_led or self._flushed >= goal or self._room.files.poisoned)
            if self._room.files.poisoned:
                raise StoreReadOnly(self._room.files.poisoned, hint="Check the disk, then restart the node.")
            if self._flushed >= goal:
                return
            self._is_led = True
        try:
            self._flush_all(keep_cached=keep_cached)
        finally:
            with self._turn:
                self._is_led = False
                self._turn.notify_all()

    def _flush_all(self, *, keep_cached: bool) -> None:
        with self.commit_lock:
            with self.append_lock:
                # Meanwhile: a move of blocks shares the segments, and their failed flush.
                if self._room.files.poisoned:
                    raise StoreReadOnly(self._room.files.poisoned, hint="Check the disk, then restart the node.")
                self._committing, self._pending = self._pending, {}
                covers = self._appended
                taken = self._room.files.take_unsynced()
            if not self._committing:
                self._flushed = covers
                return
            done = False
            try:
                self._room.files.sync(taken)
                if not keep_cached:
                    self._room.files.drop_cache(taken)
                rows = list(self._committing.values())
                for at in range(0, len(rows), _COMMIT_ROWS_MAX):
                    self._room.ledger.insert(rows[at : at + _COMMIT_ROWS_MAX])
                done = True
                self._flushed = covers
            except StoreReadOnly as error:
                self._room.files.poisoned = error.message
                raise
            except SegmentLost as error:
                # Whoever wrote there must not be told "committed" by a later flush that finds nothing to do.
                self._committing = {b: e for b, e in self._committing.items() if e[1].segment not in error.numbers}
                self._room.leases.break_all()
                raise
            finally:
                with self.append_lock:
                    if not done and not self._room.files.poisoned:
                        # The bytes are flushed but nobody was told: the next commit enters them.
                        self._pending = {**self._committing, **self._pending}
                    self._committing = {}
                    self._room.files.close_retired()

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """A flush of the ledger that fails closes the store for writes, whoever asked for it."""
        try:
            yield
        except StoreReadOnly as error:
            self._room.files.poisoned = self._room.files.poisoned or error.message
            raise

    def full_segments(self) -> list[int]:
        """The segments that will never be appended to again."""
        with self.append_lock:
            return [number for number in self._room.files.numbers() if number != self._room.files.active]

    def rewrite(self, blocks: Sequence[SealedBlock]) -> None:
        """Give proven blocks a second place, make it durable, and only then let the ledger point there."""
        if not blocks:
            return
        with self.commit_lock:
            with self.append_lock:
                try:
                    places = self._room.files.append(blocks)
                except OSError as error:
                    raise self._failure("Moving blocks", error) from error
                taken = self._room.files.take_unsynced()
            with self.noticing():
                self._room.files.sync(taken)
                self._room.ledger.insert([(b.header, p) for b, p in zip(blocks, places, strict=True)], replace=True)

    def stop_writing_to(self, number: int) -> None:
        """Never append to this segment again: it is damaged."""
        with self.append_lock:
            self._room.files.stop_writing_to(number)
