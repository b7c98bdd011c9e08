"""The shelves of a local store: what a collector may do to segment files and the ledger."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from threading import Lock
from typing import Final, Protocol

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.wire.envelope import HEADER_BYTES, parse_header
from replicator.core.errors import StoreFull
from replicator.store.epochs import EpochRoom, EpochShelves
from replicator.store.ledger import Ledger
from replicator.store.ports import Fault, Moved, Place, SealedBlock, Shelf
from replicator.store.reading import pread_all
from replicator.store.replay import sound_blocks
from replicator.store.segments import SEGMENT_HEADER_BYTES, SegmentFiles
from replicator.store.verify import closing_handle, read_pieces

_ROWS: Final = 256
_INVENTORY: Final = 4096


class Backroom(EpochRoom, Protocol):
    """The parts of `LocalStore` that are nobody else's business."""

    files: SegmentFiles
    ledger: Ledger
    housekeeping: Lock

    def noticing(self) -> AbstractContextManager[None]: ...
    def full_segments(self) -> list[int]: ...
    def rewrite(self, blocks: Sequence[SealedBlock]) -> None: ...
    def quarantine(self, faults: Sequence[Fault]) -> int: ...
    def still_faulty(self, suspects: Sequence[Fault]) -> list[Fault]: ...


class LocalShelves(EpochShelves):
    """`Shelves` of a `LocalStore`."""

    def __init__(self, room: Backroom) -> None:
        super().__init__(room)
        self._room = room

    def _keep_epoch(self, epoch: int) -> None:
        with self._room.noticing():
            self._room.ledger.set_fact("epoch", epoch)

    # -- the ledger's own verbs; it may be made anew at any moment, so it is asked for each time ---------------

    def ids(self) -> Iterator[bytes]:
        return self._room.ledger.packed_ids()

    def condemned(self, *, epoch_below: int, at_most_ns: int) -> list[BlockId]:
        return self._room.ledger.condemned(epoch_below=epoch_below, at_most_ns=at_most_ns)

    def condemned_among(self, ids: Sequence[BlockId]) -> set[BlockId]:
        return self._room.ledger.condemned_among(ids)

    def condemn(self, ids: Sequence[BlockId], *, epoch: int, now_ns: int) -> None:
        with self._room.housekeeping, self._room.noticing():
            self._room.ledger.condemn(ids, epoch=epoch, now_ns=now_ns)

    def revive(self, ids: Sequence[BlockId]) -> None:
        with self._room.housekeeping, self._room.noticing():
            self._room.ledger.revive(ids)

    def revive_all(self) -> int:
        with self._room.housekeeping, self._room.noticing():
            return self._room.ledger.revive_all()

    def sweep(self, ids: Sequence[BlockId], *, epoch_below: int) -> int:
        with self._room.housekeeping, self._room.noticing():
            return self._room.ledger.sweep(ids, epoch_below=epoch_below)

    def drop_broken(self, ids: Sequence[BlockId]) -> None:
        with self._room.housekeeping, self._room.noticing():
            self._room.ledger.drop_broken(ids)

    # -- the rest -------------------------------------------------------------------------

    def totals(self) -> tuple[int, int]:
        blocks, sealed, _ = self._room.ledger.totals()
        return blocks, sealed

    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, Place]:
        return {block: place for block, (place, _) in self._room.ledger.places(ids).items()}

    def broken_ids(self) -> list[BlockId]:
        return [fault.block_id for fault in self._room.ledger.broken()]

    def shelves(self) -> list[Shelf]:
        room = self._room
        # Only segments that were full *before* the flush: whatever was appended to them is in the ledger
        # after it. One that fills up in between looks empty, and is new.
        full = room.full_segments()
        room.flush()
        live = room.ledger.live_bytes()
        held = {fault.place.segment for fault in room.ledger.broken() if fault.place is not None}
        newest = max(room.files.numbers(), default=0)
        found: list[Shelf] = []
        for number in full:
            size = room.files.size(number)
            frees = size - SEGMENT_HEADER_BYTES if number == newest else size
            found.append(Shelf(number, size, live.get(number, 0), SEGMENT_HEADER_BYTES, frees, number in held))
        return found

    def inventory(self, number: int) -> Iterator[bytes]:
        """Headers only, from one to the next. Where the chain is broken, every block behind it is looked for."""
        try:
            handle = self._room.files.open_to_read(number)
        except FileNotFoundError:
            return
        with closing_handle(handle):
            size = self._room.files.size(number)
            ids: list[bytes] = []
            at = SEGMENT_HEADER_BYTES
            while at + HEADER_BYTES <= size:
                try:
                    header = parse_header(pread_all(handle, HEADER_BYTES, at))
                except ProtocolError:
                    unreadable: list[int] = []
                    ids += [found.block_id for found, _ in sound_blocks(handle, at, size, unreadable=unreadable)]
                    if unreadable:
                        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None  # Not read is not "not there".
                    break
                ids.append(header.block_id)
                at += header.sealed_bytes
                if len(ids) >= _INVENTORY:
                    yield b"".join(ids)
                    ids = []
            if ids:
                yield b"".join(ids)

    def move_out(self, number: int, *, after: int, bytes_max: int) -> Moved:
        """The blocks are proven on the way; one that cannot be read stays where it lies."""
        with self._room.housekeeping, self._room.noticing():
            return self._move_out(number, after=after, bytes_max=bytes_max)

    def _move_out(self, number: int, *, after: int, bytes_max: int) -> Moved:
        room = self._room
        moved = unreadable = 0
        at: int | None = after
        while at is not None and moved < bytes_max:
            rows = room.ledger.in_segment(number, from_offset=at, limit=_ROWS)
            at = rows[-1][1].offset + 1 if len(rows) == _ROWS else None
            faults: list[Fault] = []
            blocks: list[SealedBlock] = []
            for run in read_pieces(room.files, rows):
                faults += [piece.fault for piece in run if piece.fault is not None]
                blocks += [
                    SealedBlock(parse_header(piece.sealed), piece.sealed) for piece in run if piece.fault is None
                ]
            room.rewrite(blocks)
            room.quarantine(room.still_faulty(faults))
            moved += sum(len(block.sealed) for block in blocks)
            unreadable += len(faults)
        return Moved(at, moved, unreadable)

    def remove(self, numbers: Sequence[int]) -> int:
        with self._room.housekeeping, self._room.noticing():
            freed = self._room.files.remove(numbers)
            # A segment that is gone and not forgotten does no harm: nothing is said to lie in it.
            with suppress(StoreFull):
                self._room.ledger.forget_segments(numbers)
            return freed
