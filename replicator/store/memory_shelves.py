"""The shelves of a memory store: collection, for a simulated node as for a real one."""

from collections.abc import Iterator, Sequence
from threading import RLock
from typing import Protocol

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, Header
from replicator.store.epochs import EpochRoom, EpochShelves
from replicator.store.memory_disk import MemoryDisk, Row, Sentence
from replicator.store.ports import Fault, Moved, Place, Shelf


class Backroom(EpochRoom, Protocol):
    """The parts of `MemoryStore` that are nobody else's business."""

    disk: MemoryDisk
    lock: RLock
    active: int | None

    def rewrite(self, rows: Sequence[tuple[Header, bytes]]) -> None: ...
    def quarantine(self, faults: Sequence[Fault]) -> int: ...
    def open_row(self, block: BlockId, row: Row) -> tuple[bytes, Buffer] | Fault: ...
    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, Place]: ...
    def ids(self) -> Iterator[bytes]: ...


class MemoryShelves(EpochShelves):
    """`Shelves` of a `MemoryStore`."""

    def __init__(self, room: Backroom) -> None:
        super().__init__(room)
        self._room = room

    def _keep_epoch(self, epoch: int) -> None:
        self._room.disk.epoch = epoch

    def totals(self) -> tuple[int, int]:
        with self._room.lock:
            rows = self._room.disk.rows.values()
            return len(rows), sum(row.place.length for row in rows)

    def ids(self) -> Iterator[bytes]:
        return self._room.ids()

    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, Place]:
        return self._room.places(ids)

    # -- sentences ------------------------------------------------------------------------

    def condemned(self, *, epoch_below: int, at_most_ns: int) -> list[BlockId]:
        with self._room.lock:
            return [
                block
                for block, sentence in self._room.disk.condemned.items()
                if sentence.epoch < epoch_below and sentence.at_ns <= at_most_ns
            ]

    def condemned_among(self, ids: Sequence[BlockId]) -> set[BlockId]:
        with self._room.lock:
            return {block for block in ids if block in self._room.disk.condemned}

    def condemn(self, ids: Sequence[BlockId], *, epoch: int, now_ns: int) -> None:
        with self._room.lock:
            for block in ids:
                self._room.disk.condemned.setdefault(block, Sentence(epoch, now_ns))

    def revive(self, ids: Sequence[BlockId]) -> None:
        with self._room.lock:
            for block in ids:
                self._room.disk.condemned.pop(block, None)

    def revive_all(self) -> int:
        with self._room.lock:
            count = len(self._room.disk.condemned)
            self._room.disk.condemned.clear()
            return count

    def sweep(self, ids: Sequence[BlockId], *, epoch_below: int) -> int:
        freed = 0
        with self._room.lock:
            for block in ids:
                sentence = self._room.disk.condemned.get(block)
                if sentence is None or sentence.epoch >= epoch_below:
                    continue
                del self._room.disk.condemned[block]
                if block in self._room.disk.rows:
                    freed += self._room.disk.forget(block).place.length
        return freed

    # -- damage ---------------------------------------------------------------------------

    def broken_ids(self) -> list[BlockId]:
        with self._room.lock:
            return list(self._room.disk.broken)

    def drop_broken(self, ids: Sequence[BlockId]) -> None:
        with self._room.lock:
            for block in ids:
                self._room.disk.broken.pop(block, None)

    # -- segments -------------------------------------------------------------------------

    def shelves(self) -> list[Shelf]:
        with self._room.lock:
            disk = self._room.disk
            held = {fault.place.segment for fault in disk.broken.values() if fault.place is not None}
            found: list[Shelf] = []
            for number, data in sorted(disk.segments.items()):
                if number != self._room.active:
                    live = sum(disk.rows[block].place.length for block in disk.in_segment.get(number, {}).values())
                    found.append(Shelf(number, len(data), live, 0, len(data), number in held))
            return found

    def inventory(self, number: int) -> Iterator[bytes]:
        with self._room.lock:
            ids = [row.header.block_id for row in self._room.disk.sound_blocks(number)]
        if ids:
            yield b"".join(ids)

    def move_out(self, number: int, *, after: int, bytes_max: int) -> Moved:
        with self._room.lock:
            moved = 0
            following: int | None = None
            blocks: list[tuple[Header, bytes]] = []
            faults: list[Fault] = []
            for offset, block in self._room.disk.in_segment.get(number, {}).items():
                if offset < after:
                    continue
                if moved >= bytes_max:
                    following = offset
                    break
                row = self._room.disk.rows[block]
                found = self._room.open_row(block, row)
                if isinstance(found, Fault):
                    faults.append(found)
                else:
                    blocks.append((row.header, found[0]))
                    moved += len(found[0])
            self._room.rewrite(blocks)
            self._room.quarantine(faults)
            return Moved(following, moved, len(faults))

    def remove(self, numbers: Sequence[int]) -> int:
        with self._room.lock:
            return sum(self._room.disk.remove_segment(number) for number in numbers)
