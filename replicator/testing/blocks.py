"""The block store of a machine of memory: `MemoryStore`, behind the machine's switch.

A crash drops what was appended and not committed, but not always all of it: a disk may have
written some of it on its own account, and the recovery of a real store finds that. So chance
says which of the pending blocks survive.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.ids import BlockId
from protocol.wire.envelope import Header
from replicator.core.ports import WallClock
from replicator.store.config import StoreConfig
from replicator.store.memory import MemoryStore
from replicator.store.memory_disk import MemoryDisk, Row
from replicator.store.memory_shelves import MemoryShelves
from replicator.store.ports import Fault
from replicator.testing.power import Power


@dataclass(slots=True)
class MachineDisk(MemoryDisk):
    """What a machine's disk holds of blocks."""

    def blocks(self) -> list[BlockId]:
        """Everything that is stored, in the order of the ids."""
        return list(self.rows)

    def sealed(self, block: BlockId) -> bytes | None:
        """The bytes of a block as they lie, whatever has become of them."""
        row = self.rows.get(block)
        return None if row is None else self.read_at(row.place)

    def kind(self, block: BlockId) -> int:
        return self.rows[block].header.kind

    # -- the numbers beside the blocks ----------------------------------------------------

    def fact(self, name: str) -> int:
        return self.facts.get(name, 0)

    def set_fact(self, name: str, value: int) -> None:
        self.facts[name] = value


class MachineStore(MemoryStore):
    """One life of the store."""

    def __init__(
        self,
        disk: MachineDisk,
        config: StoreConfig,
        *,
        power: Power,
        clock: WallClock,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(disk, config, clock=clock, monotonic=monotonic)
        self._power = power
        self.shelves = MachineShelves(self, power=power)

    def flush(self) -> None:
        with self._power.durable():
            super().flush()

    def rewrite(self, rows: Sequence[tuple[Header, bytes]]) -> None:
        with self._power.durable():
            super().rewrite(rows)

    def quarantine(self, faults: Sequence[Fault]) -> int:
        with self._power.durable():
            return super().quarantine(faults)

    def pending_bytes(self) -> int:
        return sum(len(sealed) for _, sealed in self._pending.values())

    def crash(self, chance: random.Random) -> None:
        """Let some of what was not committed be on the disk all the same."""
        survivors = [pending for _, pending in sorted(self._pending.items()) if chance.random() < 0.5]
        for header, sealed in survivors:
            self.disk.enter(Row(header, self.disk.write(self._room(), sealed)))
        self._pending = {}


class MachineShelves(MemoryShelves):
    """Its shelves: each step of a collection is a durable one."""

    def __init__(self, store: MachineStore, *, power: Power) -> None:
        super().__init__(store)
        self._power = power

    def condemn(self, ids: Sequence[BlockId], *, epoch: int, now_ns: int) -> None:
        with self._power.durable():
            super().condemn(ids, epoch=epoch, now_ns=now_ns)

    def revive(self, ids: Sequence[BlockId]) -> None:
        with self._power.durable():
            super().revive(ids)

    def sweep(self, ids: Sequence[BlockId], *, epoch_below: int) -> int:
        with self._power.durable():
            return super().sweep(ids, epoch_below=epoch_below)

    def drop_broken(self, ids: Sequence[BlockId]) -> None:
        with self._power.durable():
            super().drop_broken(ids)

    def remove(self, numbers: Sequence[int]) -> int:
        with self._power.durable():
            return super().remove(numbers)
