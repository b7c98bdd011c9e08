"""Putting sound copies into the store, and the line that each leaves in the audit.

The order is what keeps repair from destroying anything: the bad copy is in quarantine, the line is begun, the new
copy is proven, written, and flushed; where bytes had gone bad it is read back as well, for their disk has lied
once; and only then does the line end. The bad bytes stay in their segment until a collection removes it.

Several questions share a flush and the end of their lines (`settle`). What is written and not settled can be read; a
crash forgets none of it that has reached the disk, and the lines of the rest say so.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, unseal
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import RepairLine
from replicator.core.errors import StoreError
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock
from replicator.store.ports import BlockStore, Cause, Fault, SealedBlock

SETTLE_BYTES: Final = 64 * 1024 * 1024
"""Written for readers before it is flushed: a flush costs three of the disk's, and nobody was promised anything yet."""


@dataclass(frozen=True, slots=True)
class _Written:
    """One block that waits for its flush, and the number of its line."""

    fault: Fault
    line: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Come:
    """What one answer brought, proven."""

    blocks: list[SealedBlock]
    bodies: dict[BlockId, Buffer]
    sealed_bytes: int
    is_kept: bool = True


class PutBack:
    """Writes what peers have sent. Blocking; safe from several threads."""

    def __init__(self, *, store: BlockStore, catalog: Catalog, clock: WallClock) -> None:
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._written: list[_Written] = []
        self._unended: dict[int, tuple[str, float]] = {}
        """Lines of the audit whose end could not be written: as many as were begun since the disk was full, for none
        begins then."""
        self.unsettled_bytes = 0

    @property
    def is_settled(self) -> bool:
        return not self._written

    # -- the store ------------------------------------------------------------------------

    def absent(self, ids: Sequence[BlockId]) -> list[BlockId]:
        """Those that are not here, or not sound."""
        here = self._here(ids)
        return [block for block in ids if block not in here]

    def _here(self, ids: Sequence[BlockId]) -> set[BlockId]:
        lease = self._store.begin("repair")
        try:
            return self._store.have(lease, ids)
        finally:
            self._store.end(lease)

    def take(
        self,
        runs: Sequence[bytes],
        faults: dict[BlockId, Fault],
        lines: dict[BlockId, int] | None,
        *,
        took_s: float,
        is_read: bool,
    ) -> Come:
        """Prove what has come, write it, and leave its flush to `settle`.

        Raises `ProtocolError`: of an answer with a lie in it nothing is written. Raises `StoreFull`, `StoreReadOnly` if
        the store cannot take it, unless it is read: a reader is helped by blocks that we cannot keep.
        """
        come = prove(runs)
        if not come.blocks:
            return come
        if lines is None:
            return replace(come, is_kept=False)
        lease = self._store.begin("repair")
        try:
            self._store.append(lease, come.blocks)
        except StoreError as error:
            if not is_read:
                raise
            get_logger().warning("repair.not_kept", blocks=len(come.blocks), error=str(error))
            return replace(come, is_kept=False)
        finally:
            self._store.end(lease)
        with self._lock:
            self._written += [_Written(faults[block], lines[block], took_s) for block in come.bodies]
            self.unsettled_bytes += come.sealed_bytes
        return come

    def settle(self) -> None:
        """Make durable what was written, prove what has to be, and end its lines. Raises as a commit does."""
        with self._lock:
            written, self._written = self._written, []
            self.unsettled_bytes = 0
        if not written:
            return
        outcome = "could not be kept"
        sound: set[BlockId] = set()
        try:
            lease = self._store.begin("repair")
            try:
                self._store.commit(lease)
                # Also after the flush: somebody else's may have found that the segment which we wrote to is gone.
                sound = self._store.have(lease, [one.fault.block_id for one in written])
            finally:
                self._store.end(lease)
            outcome = "not readable again"
            doubted = [one.fault.block_id for one in written if one.fault.cause is not Cause.MISSING]
            if doubted:
                again = self._store.read(doubted)
                self._store.quarantine(again.faults)
                sound.difference_update(fault.block_id for fault in again.faults)
        finally:
            ends = {one.line: ("healed" if one.fault.block_id in sound else outcome, one.took_s) for one in written}
            self._end_lines(ends)

    # -- the audit ------------------------------------------------------------------------

    def begin_lines(self, faults: Sequence[Fault], *, peer: str, is_read: bool) -> dict[BlockId, int] | None:
        """Before the blocks are back: a crash in between must not lose their lines.

        Raises `StoreError` if there is no room for them. For a reader, None: it gets its blocks, and nothing is mended.
        """
        now = self._clock.now_ns()
        try:
            return self._catalog.begin_repairs(
                [RepairLine(now, f.block_id, f.kind, f.cause.value, "asked", peer, "asking", 0.0) for f in faults]
            )
        except StoreError as error:
            if not is_read:
                raise
            get_logger().warning("repair.audit_not_begun", lines=len(faults), error=str(error))
            return None

    def end_lines(self, numbers: Sequence[int], outcome: str, *, took_s: float) -> None:
        if numbers:
            self._end_lines(dict.fromkeys(numbers, (outcome, took_s)))

    def _end_lines(self, ends: dict[int, tuple[str, float]]) -> None:
        """A disk without room for a line must not cost the reader its block, nor the audit the line."""
        with self._lock:
            owed, self._unended = {**self._unended, **ends}, {}
        if not owed:
            return
        try:
            self._catalog.end_repairs(owed)
        except StoreError as error:
            with self._lock:
                self._unended = {**owed, **self._unended}
            get_logger().warning("repair.audit_not_ended", lines=len(owed), error=str(error))

    def end_owed_lines(self) -> None:
        """Write what a full disk kept out of the audit."""
        self._end_lines({})

    def end_lines_of_last_time(self) -> None:
        """At the start: lines that a crash cut short are ended by what the store says now."""
        begun = self._catalog.begun_repairs()
        here = self._here(list(dict.fromkeys(begun.values())))
        self._end_lines(
            {n: ("healed before a restart" if b in here else "cut by a restart", 0.0) for n, b in begun.items()}
        )

    def add_failures(self, faults: Sequence[Fault]) -> None:
        now = self._clock.now_ns()
        lines = [RepairLine(now, f.block_id, f.kind, f.cause.value, "asked", "", "nobody has it", 0.0) for f in faults]
        if not lines:
            return
        try:
            self._catalog.add_repairs(lines)
        except StoreError as error:
            # The blocks are in quarantine, which says the same, and they will be asked for again.
            get_logger().warning("repair.audit_not_written", lines=len(lines), error=str(error))


def prove(runs: Sequence[bytes]) -> Come:
    """Raises `ProtocolError` for the first block that is not what it says."""
    blocks: list[SealedBlock] = []
    bodies: dict[BlockId, Buffer] = {}
    for run in runs:
        view, at = memoryview(run), 0
        while at < len(view):
            header, body = unseal(view, at)
            end = at + header.sealed_bytes
            blocks.append(SealedBlock(header, view[at:end]))
            bodies[header.block_id] = body
            at = end
    return Come(blocks, bodies, sum(map(len, runs)))
