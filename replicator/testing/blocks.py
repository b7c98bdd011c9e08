"""The block store of a machine of memory: `MemoryStore`, behind the machine's switch, with a collector.

A crash drops what was appended and not committed, but not always all of it: a disk may have
written some of it on its own account, and the recovery of a real store finds that. So the
machine says which of the pending blocks survive.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from protocol.ids import BlockId
from protocol.wire.hashing import Kind
from replicator.core.ports import WallClock
from replicator.store.collect import Collected, Collector, Mark, Marks, _is_marked
from replicator.store.memory import MemoryDisk, MemoryStore
from replicator.store.ports import Fault, Lease, SealedBlock, StoreStatistics
from replicator.testing.power import Power


@dataclass(slots=True)
class MachineDisk(MemoryDisk):
    """What a machine's disk holds of blocks."""

    condemned: dict[BlockId, tuple[int, int]] = field(default_factory=dict)

    def blocks(self) -> list[BlockId]:
        """Everything that is stored, in the order of the ids."""
        return list(self._rows)

    def sealed(self, block: BlockId) -> bytes | None:
        """The bytes of a block as they lie, whatever has become of them."""
        row = self._rows.get(block)
        return None if row is None else row.sealed

    def kind(self, block: BlockId) -> int:
        return self._rows[block].header.kind


class MachineStore(MemoryStore):
    """One life of the store."""

    def __init__(self, disk: MachineDisk, *, power: Power, clock: WallClock, monotonic: Callable[[], float]) -> None:
        super().__init__(disk, clock=clock, monotonic=monotonic)
        self.machine_disk = disk
        self._power = power

    def have(self, lease: Lease, ids: Sequence[BlockId]) -> set[BlockId]:
        self.leases.check(lease)
        for block in ids:
            self.machine_disk.condemned.pop(block, None)
        return super().have(lease, ids)

    def append(self, lease: Lease, blocks: Sequence[SealedBlock]) -> int:
        self.have(lease, [block.header.block_id for block in blocks])
        return super().append(lease, blocks)

    def flush(self) -> None:
        self._power.step()
        super().flush()
        self._power.step()

    def quarantine(self, faults: Sequence[Fault]) -> int:
        self._power.step()
        moved = super().quarantine(faults)
        self._power.step()
        return moved

    def statistics(self) -> StoreStatistics:
        return replace(super().statistics(), condemned_blocks=len(self.machine_disk.condemned))

    def records(self) -> list[BlockId]:
        """The blocks that hold signed snapshot records."""
        disk = self.machine_disk
        return [block for block in disk.blocks() if disk.kind(block) == Kind.RECORD]

    def pending_bytes(self) -> int:
        return sum(row.place.length for row in self._pending.values())

    def crash(self, chance: random.Random) -> None:
        """Let some of what was not committed be on the disk all the same."""
        survivors = {block: row for block, row in sorted(self._pending.items()) if chance.random() < 0.5}
        self.disk._rows.update(survivors)
        self._pending = {}


class MemoryCollector(Collector):
    """`Collector` over a `MachineStore`, by the same four steps."""

    def __init__(self, store: MachineStore, *, clock: WallClock) -> None:
        self._memory = store
        self._clock = clock

    def begin(self) -> Mark:
        store = self._memory
        store.flush()
        oldest = store.leases.oldest_epoch()
        store.disk.epoch = store.leases.advance()
        return Mark(store.disk.epoch, oldest)

    def finish(self, mark: Mark, marks: Marks, *, grace_s: float, dry_run: bool) -> Collected:
        disk, now_ns = self._memory.machine_disk, self._clock.now_ns()
        revived = [block for block in disk.condemned if _is_marked(marks, block)]
        before_ns = now_ns - int(grace_s * 1e9)
        old = [
            block
            for block, (epoch, at_ns) in disk.condemned.items()
            if epoch < mark.oldest_writer_epoch and at_ns <= before_ns
        ]
        ripe = [block for block in old if not _is_marked(marks, block)]
        swept = sum(disk._rows[block].place.length for block in ripe if block in disk._rows)
        if not dry_run:
            self._memory._power.step()
            for block in revived:
                del disk.condemned[block]
            for block in ripe:
                del disk.condemned[block]
                disk._rows.pop(block, None)
            for block in [one for one in disk._broken if not _is_marked(marks, one)]:
                del disk._broken[block]
        dead = [one for one in disk.blocks() if one not in disk.condemned and not _is_marked(marks, one)]
        size = sum(disk._rows[block].place.length for block in dead)
        if not dry_run:
            disk.condemned.update((block, (mark.epoch, now_ns)) for block in dead)
            self._memory._power.step()
        return Collected(
            blocks_condemned=len(dead),
            bytes_condemned=size,
            blocks_swept=len(ripe),
            bytes_swept=swept,
            blocks_revived=0 if dry_run else len(revived),
            segments_removed=0,
            bytes_freed=0 if dry_run else swept,
            writers_waited_for=len(self._memory.leases.holders()),
            duration_s=0.0,
        )

    def undo(self) -> int:
        lifted = len(self._memory.machine_disk.condemned)
        self._memory.machine_disk.condemned.clear()
        return lifted
