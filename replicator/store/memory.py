"""The store of a node that has no disk: in tests, and in the simulated world.

It keeps the port's promises as `LocalStore` does (one suite in `tests/contract` asks both),
collection included, with a few dicts for segments and ledger. What is committed lies in a
`MemoryDisk`, which outlives the store as a disk outlives a process: a simulated crash drops
the store and opens another one on the same disk, and what was only appended is gone.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, Header, unseal
from replicator.core.errors import StoreFull
from replicator.core.ports import SystemClock, WallClock
from replicator.store.config import StoreConfig
from replicator.store.leases import Leases
from replicator.store.memory_disk import MemoryDisk, Row
from replicator.store.memory_shelves import MemoryShelves
from replicator.store.ports import (
    Bodies,
    Cause,
    Fault,
    Lease,
    Place,
    ScrubCursor,
    SealedBlock,
    SealedRuns,
    SegmentAge,
    StoreStatistics,
    VerifiedPart,
)

_IDS_BATCH: Final = 65536
_SOFT: Final = "soft_errors"


class MemoryStore:
    """The `BlockStore` of a simulated node. Thread-safe."""

    def __init__(
        self,
        disk: MemoryDisk | None = None,
        config: StoreConfig | None = None,
        *,
        clock: WallClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.disk = disk or MemoryDisk()
        self.config = config or StoreConfig()
        self._clock = clock or SystemClock()
        self.leases = Leases(clock=monotonic, lease_s=self.config.lease_s)
        self.leases.epoch = self.disk.epoch
        self.lock = threading.RLock()
        self.active: int | None = None
        self._pending: dict[BlockId, tuple[Header, bytes]] = {}
        self.shelves = MemoryShelves(self)

    # -- writing --------------------------------------------------------------------------

    def begin(self, holder: str) -> Lease:
        return self.leases.begin(holder)

    def end(self, lease: Lease) -> None:
        self.leases.end(lease)

    def renew(self, lease: Lease) -> None:
        self.leases.check(lease)

    def holders(self) -> list[str]:
        return self.leases.holders()

    def have(self, lease: Lease, ids: Sequence[BlockId]) -> set[BlockId]:
        self.leases.check(lease)
        with self.lock:
            for block in ids:
                self.disk.condemned.pop(block, None)  # Told "present" under a lease is a promise.
            return {block for block in ids if block in self._pending or block in self.disk.rows}

    def append(self, lease: Lease, blocks: Sequence[SealedBlock]) -> int:
        with self.lock:
            here = self.have(lease, [block.header.block_id for block in blocks])
            fresh = {b.header.block_id: b for b in blocks if b.header.block_id not in here}
            self._refuse_if_full(sum(len(block.sealed) for block in fresh.values()))
            for name, block in fresh.items():
                self._pending[name] = (block.header, bytes(block.sealed))
            return len(fresh)

    def _refuse_if_full(self, coming_bytes: int) -> None:
        used = self.disk.used_bytes() + sum(len(sealed) for _, sealed in self._pending.values())
        if coming_bytes and self.disk.bytes_max is not None and used + coming_bytes > self.disk.bytes_max:
            raise StoreFull(f"{used} of {self.disk.bytes_max} bytes are taken.", hint="Delete snapshots.")

    def commit(self, lease: Lease, *, keep_cached: bool = True) -> None:
        del keep_cached  # there is no cache
        self.leases.check(lease)
        self.flush()
        self.leases.check(lease)

    def flush(self) -> None:
        """Make everything that is pending durable, whoever appended it."""
        with self.lock:
            for header, sealed in self._pending.values():
                self.disk.enter(Row(header, self.disk.write(self._room(), sealed)))
            self._pending = {}

    def _room(self) -> int:
        if self.active is None or len(self.disk.segments[self.active]) >= self.config.segment_bytes_max:
            self.active = self.disk.new_segment()
        return self.active

    def rewrite(self, rows: Sequence[tuple[Header, bytes]]) -> None:
        """Give proven blocks a second place, and only then let the index point there."""
        with self.lock:
            self._refuse_if_full(sum(len(sealed) for _, sealed in rows))
            for header, sealed in rows:
                self.disk.enter(Row(header, self.disk.write(self._room(), sealed)))

    # -- reading --------------------------------------------------------------------------

    def _proven(self, block: BlockId, row: Row) -> tuple[bytes, Buffer] | Fault:
        """What lies at a place, if it is that block."""
        try:
            sealed = self.disk.read_at(row.place)
        except OSError:
            return Fault(block, row.header.kind, Cause.UNREADABLE, row.place)
        try:
            header, body = unseal(sealed)
        except ProtocolError:
            cut_short = len(sealed) < row.place.length
            return Fault(block, row.header.kind, Cause.MISSING if cut_short else Cause.CORRUPT, row.place)
        if header.block_id != block:
            return Fault(block, row.header.kind, Cause.CORRUPT, row.place)
        return sealed, body

    def open_row(self, block: BlockId, row: Row) -> tuple[bytes, Buffer] | Fault:
        """The same, looked at twice before anything is called broken."""
        found = self._proven(block, row)
        if isinstance(found, Fault):
            found = self._proven(block, row)
            if not isinstance(found, Fault):
                self.disk.facts[_SOFT] = self.disk.facts.get(_SOFT, 0) + 1
        return found

    def _open(self, block: BlockId) -> tuple[bytes, Buffer] | Fault:
        if (waiting := self._pending.get(block)) is not None:
            return waiting[1], unseal(waiting[1])[1]
        if (row := self.disk.rows.get(block)) is not None:
            return self.open_row(block, row)
        known = self.disk.broken.get(block)
        return Fault(block, known.kind if known else 0, known.cause if known else Cause.MISSING, None)

    def read(self, ids: Sequence[BlockId]) -> Bodies:
        bodies = Bodies()
        with self.lock:
            for block in dict.fromkeys(ids):
                found = self._open(block)
                if isinstance(found, Fault):
                    bodies.faults.append(found)
                else:
                    bodies.sound[block] = found[1]
        return bodies

    def read_sealed(self, ids: Sequence[BlockId]) -> SealedRuns:
        answer = SealedRuns()
        with self.lock:
            for block in sorted(dict.fromkeys(ids), key=self._place_of):
                found = self._open(block)
                if isinstance(found, Fault):
                    answer.faults.append(found)
                else:
                    answer.runs.append(found[0])
        answer.blocks_count = len(answer.runs)
        return answer

    def _place_of(self, block: BlockId) -> tuple[int, int]:
        row = self.disk.rows.get(block)
        return (row.place.segment, row.place.offset) if row is not None else (self.disk.number_taken + 1, 0)

    # -- damage ---------------------------------------------------------------------------

    def quarantine(self, faults: Sequence[Fault]) -> int:
        moved = 0
        with self.lock:
            for fault in faults:
                row = self.disk.rows.get(fault.block_id)
                if fault.place is not None and fault.place.segment == self.active:
                    self.active = None
                if row is not None and row.place == fault.place:
                    self.disk.forget(fault.block_id)
                    self.disk.broken[fault.block_id] = fault
                    moved += 1
        return moved

    def broken(self) -> list[Fault]:
        with self.lock:
            return list(self.disk.broken.values())

    def verify(
        self, *, after: ScrubCursor | None, bytes_max: int, past_cache: bool = False, by_sums: bool = False
    ) -> VerifiedPart:
        assert bytes_max > 0
        del past_cache, by_sums  # there is no cache, and there are no sums
        with self.lock:
            self.flush()
            numbers = sorted(number for number in self.disk.segments if after is None or number >= after.segment)
            if not numbers:
                return VerifiedPart(None, 0, 0, [])
            number = numbers[0]
            start = after.offset if after is not None and after.segment == number else 0
            return self._verify(number, start, numbers[1:], bytes_max=bytes_max)

    def _verify(self, number: int, start: int, following: list[int], *, bytes_max: int) -> VerifiedPart:
        blocks = total = 0
        faults: list[Fault] = []
        soft = self.disk.facts.get(_SOFT, 0)
        for offset, block in self.disk.in_segment.get(number, {}).items():
            if offset < start:
                continue
            if total >= bytes_max:
                return VerifiedPart(ScrubCursor(number, offset), blocks, total, faults, self._soft_since(soft))
            row = self.disk.rows[block]
            found = self.open_row(block, row)
            if isinstance(found, Fault):
                faults.append(found)
            blocks, total = blocks + 1, total + row.place.length
        self.disk.verified_ns[number] = self._clock.now_ns()
        cursor = ScrubCursor(following[0], 0) if following else None
        return VerifiedPart(cursor, blocks, total, faults, self._soft_since(soft))

    def _soft_since(self, before: int) -> int:
        return self.disk.facts.get(_SOFT, 0) - before

    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]:
        with self.lock:
            missing = {block for block in ids if block not in self.disk.rows}
            found: dict[BlockId, Row] = {}
            for number in self.disk.segments if missing else ():
                found |= {r.header.block_id: r for r in self.disk.sound_blocks(number) if r.header.block_id in missing}
            for row in found.values():
                self.disk.enter(row)
            return sorted(found)

    # -- the rest -------------------------------------------------------------------------

    def check_index(self) -> str:
        return ""

    def of_kind(self, kind: int) -> list[BlockId]:
        with self.lock:
            return [block for block, row in self.disk.rows.items() if row.header.kind == kind]

    def ages(self) -> list[SegmentAge]:
        with self.lock:
            return [
                SegmentAge(number, len(data), self.disk.verified_ns.get(number))
                for number, data in sorted(self.disk.segments.items())
            ]

    def ids(self) -> Iterator[bytes]:
        with self.lock:
            ordered = list(self.disk.rows)
        for at in range(0, len(ordered), _IDS_BATCH):
            yield b"".join(ordered[at : at + _IDS_BATCH])

    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, Place]:
        with self.lock:
            return {block: self.disk.rows[block].place for block in ids if block in self.disk.rows}

    def statistics(self) -> StoreStatistics:
        with self.lock:
            disk, rows = self.disk, self.disk.rows.values()
            return StoreStatistics(
                blocks=len(rows),
                sealed_bytes=sum(row.place.length for row in rows),
                body_bytes=sum(row.header.body_bytes for row in rows),
                disk_bytes=disk.used_bytes(),
                segments=len(disk.segments),
                broken_blocks=len(disk.broken),
                condemned_blocks=len(disk.condemned),
                read_only="",
                oldest_verified_ns=min((disk.verified_ns.get(n, 0) for n in disk.segments), default=0) or None,
                soft_errors=disk.facts.get(_SOFT, 0),
            )

    def close(self) -> None:
        """Nothing is held open; what was not committed is forgotten with the store."""
        self._pending = {}


__all__ = ["MemoryDisk", "MemoryStore"]
