"""The store of a node that has no disk: in tests, and in the simulated world.

It keeps the port's promises as `LocalStore` does (one suite in `tests/contract` asks both),
with a dict for the segments and the ledger. What is committed lies in a `MemoryDisk`, which
outlives the store as a disk outlives a process: a simulated crash drops the store and opens
another one on the same disk, and what was only appended is gone.

`MemoryDisk` is also where a simulation lets bytes rot: it knows nothing of who reads them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sortedcontainers import SortedDict

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, Header, unseal
from replicator.core.errors import StoreFull
from replicator.core.ports import SystemClock, WallClock
from replicator.store.leases import Leases
from replicator.store.ports import (
    Bodies,
    Cause,
    Fault,
    Lease,
    Place,
    ScrubCursor,
    SealedBlock,
    SealedRuns,
    StoreStatistics,
    VerifiedPart,
)

_SEGMENT: Final = 1
_IDS_BATCH: Final = 65536


@dataclass(slots=True)
class _Row:
    header: Header
    place: Place
    sealed: bytes


@dataclass(slots=True)
class MemoryDisk:
    """What a simulated machine still has after it was switched off."""

    bytes_max: int | None = None
    """Sealed bytes that fit, reserve included; None for no end."""
    epoch: int = 1
    verified_ns: int | None = None
    _rows: dict[BlockId, _Row] = field(default_factory=SortedDict)  # `ids` hands them out in order
    _broken: dict[BlockId, Fault] = field(default_factory=dict)
    _tail: int = 0

    def rot(self, block: BlockId, *, bit: int) -> None:
        """Flip one bit of a sealed block, counted from its start and round its end."""
        row = self._rows[block]
        sealed = bytearray(row.sealed)
        at = bit // 8 % len(sealed)
        sealed[at] ^= 1 << bit % 8
        row.sealed = bytes(sealed)

    def lose(self, block: BlockId) -> None:
        """The bytes of a block are gone, and nobody was told."""
        self._rows[block].sealed = b""

    def used_bytes(self) -> int:
        return sum(len(row.sealed) for row in self._rows.values())


class MemoryStore:
    """The `BlockStore` of a simulated node. Thread-safe."""

    def __init__(
        self,
        disk: MemoryDisk | None = None,
        *,
        clock: WallClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.disk = disk or MemoryDisk()
        self._clock = clock or SystemClock()
        self.leases = Leases(clock=monotonic)
        self.leases.epoch = self.disk.epoch
        self._lock = threading.Lock()
        self._pending: dict[BlockId, _Row] = {}

    # -- writing --------------------------------------------------------------------------

    def begin(self, holder: str) -> Lease:
        return self.leases.begin(holder)

    def end(self, lease: Lease) -> None:
        self.leases.end(lease)

    def have(self, lease: Lease, ids: Sequence[BlockId]) -> set[BlockId]:
        self.leases.check(lease)
        with self._lock:
            return {block for block in ids if self._find(block) is not None}

    def append(self, lease: Lease, blocks: Sequence[SealedBlock]) -> int:
        self.leases.check(lease)
        with self._lock:
            fresh = {b.header.block_id: b for b in blocks if self._find(b.header.block_id) is None}
            self._refuse_if_full(sum(len(block.sealed) for block in fresh.values()))
            for name, block in fresh.items():
                place = Place(_SEGMENT, self.disk._tail, len(block.sealed))
                self.disk._tail += place.length
                self._pending[name] = _Row(block.header, place, bytes(block.sealed))
            return len(fresh)

    def _refuse_if_full(self, coming_bytes: int) -> None:
        used = self.disk.used_bytes() + sum(row.place.length for row in self._pending.values())
        if coming_bytes and self.disk.bytes_max is not None and used + coming_bytes > self.disk.bytes_max:
            raise StoreFull(f"{used} of {self.disk.bytes_max} bytes are taken.", hint="Delete snapshots.")

    def commit(self, lease: Lease, *, keep_cached: bool = True) -> None:
        del keep_cached  # there is no cache
        self.leases.check(lease)
        self.flush()

    def flush(self) -> None:
        """Make everything that is pending durable, whoever appended it."""
        with self._lock:
            self.disk._rows.update(self._pending)
            for block in self._pending:
                self.disk._broken.pop(block, None)
            self._pending = {}

    # -- reading --------------------------------------------------------------------------

    def _find(self, block: BlockId) -> _Row | None:
        return self._pending.get(block) or self.disk._rows.get(block)

    def _open(self, block: BlockId) -> tuple[_Row, Buffer] | Fault:
        row = self._find(block)
        if row is None:
            known = self.disk._broken.get(block)
            return Fault(block, known.kind if known else 0, known.cause if known else Cause.MISSING, None)
        if not row.sealed:
            return Fault(block, row.header.kind, Cause.MISSING, row.place)
        try:
            header, body = unseal(row.sealed)
        except ProtocolError:
            return Fault(block, row.header.kind, Cause.CORRUPT, row.place)
        assert header.block_id == block
        return row, body

    def read(self, ids: Sequence[BlockId]) -> Bodies:
        bodies = Bodies()
        with self._lock:
            for block in dict.fromkeys(ids):
                found = self._open(block)
                if isinstance(found, Fault):
                    bodies.faults.append(found)
                else:
                    bodies.sound[block] = found[1]
        return bodies

    def read_sealed(self, ids: Sequence[BlockId]) -> SealedRuns:
        answer = SealedRuns()
        sound: list[_Row] = []
        with self._lock:
            for block in dict.fromkeys(ids):
                found = self._open(block)
                if isinstance(found, Fault):
                    answer.faults.append(found)
                else:
                    sound.append(found[0])
        sound.sort(key=lambda row: row.place.offset)
        answer.runs = [row.sealed for row in sound]
        answer.blocks_count = len(sound)
        return answer

    # -- damage ---------------------------------------------------------------------------

    def quarantine(self, faults: Sequence[Fault]) -> int:
        moved = 0
        with self._lock:
            for fault in faults:
                row = self.disk._rows.get(fault.block_id)
                if row is not None and row.place == fault.place:
                    del self.disk._rows[fault.block_id]
                    self.disk._broken[fault.block_id] = fault
                    moved += 1
        return moved

    def broken(self) -> list[Fault]:
        with self._lock:
            return [fault for _, fault in sorted(self.disk._broken.items())]

    def verify(self, *, after: ScrubCursor | None, bytes_max: int) -> VerifiedPart:
        assert bytes_max > 0
        self.flush()
        start = after.offset if after is not None else 0
        blocks = total = 0
        faults: list[Fault] = []
        with self._lock:
            rows = sorted(self.disk._rows.items(), key=lambda item: item[1].place.offset)
            for block, row in rows:
                if row.place.offset < start:
                    continue
                if total >= bytes_max:
                    return VerifiedPart(ScrubCursor(_SEGMENT, row.place.offset), blocks, total, faults)
                found = self._open(block)
                if isinstance(found, Fault):
                    faults.append(found)
                blocks, total = blocks + 1, total + row.place.length
            self.disk.verified_ns = self._clock.now_ns()
        return VerifiedPart(None, blocks, total, faults)

    # -- the rest -------------------------------------------------------------------------

    def ids(self) -> Iterator[bytes]:
        with self._lock:
            ordered = list(self.disk._rows)
        for at in range(0, len(ordered), _IDS_BATCH):
            yield b"".join(ordered[at : at + _IDS_BATCH])

    def statistics(self) -> StoreStatistics:
        with self._lock:
            rows = self.disk._rows.values()
            sealed = sum(row.place.length for row in rows)
            return StoreStatistics(
                blocks=len(rows),
                sealed_bytes=sealed,
                body_bytes=sum(row.header.body_bytes for row in rows),
                disk_bytes=sealed,
                segments=1 if rows else 0,
                broken_blocks=len(self.disk._broken),
                condemned_blocks=0,
                read_only="",
                oldest_verified_ns=self.disk.verified_ns,
            )

    def close(self) -> None:
        """Nothing is held open; what was not committed is forgotten with the store."""
        self._pending = {}
