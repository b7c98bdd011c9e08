"""Looking at what a local store has at rest: verifying, looking twice, rescuing, and how long ago.

A read that fails is not yet damage. Disks, cables and memory have bad moments, and a block
condemned in one of them would be fetched from a peer, or be called lost, for nothing
(restic#4774, #5220). So everything that looks wrong is read again past the page cache; what is
right then is a *soft error*, counted, and shown as long as the store lives.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Final, Protocol

from protocol.ids import BlockId
from protocol.wire.envelope import Header, parse_header
from replicator.core.errors import StoreError
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock
from replicator.store.ledger import Ledger
from replicator.store.ports import Fault, Place, ScrubCursor, SegmentAge, VerifiedPart
from replicator.store.proving import prove
from replicator.store.replay import sound_blocks
from replicator.store.segments import SEGMENT_HEADER_BYTES, SegmentFiles
from replicator.store.verify import Piece, Wanted, closing_handle, drop_cached, read_pieces

_ROWS: Final = 1024
_SOFT: Final = "soft_errors"
_ABSOLVED_MAX: Final = 4096
"""Read again at the start: seconds of a slow disk at most. The rest waits for a repair, or the next start."""


class Room(Protocol):
    """The parts of `LocalStore` that are looked at."""

    files: SegmentFiles
    ledger: Ledger

    def wanted(self, ids: Sequence[BlockId]) -> tuple[list[Wanted], list[Fault]]: ...
    def flush_quietly(self) -> None: ...
    def noticing(self) -> AbstractContextManager[None]: ...


class LocalInspection:
    """Thread-safe, like the store that it belongs to."""

    def __init__(self, room: Room, *, clock: WallClock, threads: Executor) -> None:
        self._room = room
        self._clock = clock
        self._threads = threads
        self._lock = threading.Lock()
        self.soft_errors = room.ledger.fact(_SOFT)

    def look_again(self, suspects: Sequence[Fault]) -> tuple[list[list[Piece]], list[Fault]]:
        """Read what looked wrong once more: where it lies *now* (a collection may have moved it), from the disk.

        Returns runs of what is sound after all, and what is not.
        """
        if not suspects:
            return [], []
        drop_cached(self._room.files, [fault.place for fault in suspects if fault.place is not None])
        before = {fault.block_id: fault.place for fault in suspects}
        again, faults = self._room.wanted([fault.block_id for fault in suspects])
        sound: list[list[Piece]] = []
        soft = 0
        for run in read_pieces(self._room.files, again):
            faults += [piece.fault for piece in run if piece.fault is not None]
            right = [piece for piece in run if piece.fault is None]
            soft += sum(piece.wanted[1] == before[piece.wanted[0]] for piece in right)
            sound.append(right)
        self.note_soft(soft)
        return sound, faults

    def note_soft(self, count: int) -> None:
        """Count reads that were wrong and then right."""
        if not count:
            return
        with self._lock:
            self.soft_errors += count
            get_logger().warning("store.soft_errors", now=count, ever=self.soft_errors)
            try:
                with self._room.noticing():
                    self._room.ledger.set_fact(_SOFT, self.soft_errors)
            except StoreError:
                return  # A store that cannot write can still be read; the number is kept while the node runs.

    def verify(self, *, after: ScrubCursor | None, bytes_max: int, past_cache: bool, by_sums: bool) -> VerifiedPart:
        """One step of a scrub: up to `bytes_max` of one segment, and then the cursor moves to the next.

        Segments that the ledger knows and the disk does not have are gone through as well:
        everything in them is missing.
        """
        assert bytes_max > 0
        room = self._room
        room.flush_quietly()
        numbers = sorted(set(room.files.numbers()) | set(room.ledger.known_segments()))
        cursor = after or ScrubCursor(numbers[0] if numbers else 0, 0)
        numbers = [number for number in numbers if number >= cursor.segment]
        if not numbers:
            return VerifiedPart(None, 0, 0, [])
        if numbers[0] != cursor.segment:
            cursor = ScrubCursor(numbers[0], 0)
        rows: list[Wanted] = []
        total, offset, ended = 0, cursor.offset, False
        while total < bytes_max and not ended:
            more = room.ledger.in_segment(cursor.segment, from_offset=offset, limit=_ROWS)
            ended = len(more) < _ROWS
            rows += more
            total += sum(place.length for _, place, _ in more)
            if more:
                offset = more[-1][1].offset + 1
        faults, soft = self._prove(rows, past_cache=past_cache, by_sums=by_sums)
        if not ended:
            return VerifiedPart(ScrubCursor(cursor.segment, offset), len(rows), total, faults, soft)
        with room.noticing():
            room.ledger.note_verified(cursor.segment, now_ns=self._clock.now_ns())
        following = ScrubCursor(numbers[1], 0) if len(numbers) > 1 else None
        return VerifiedPart(following, len(rows), total, faults, soft)

    def _prove(self, rows: Sequence[Wanted], *, past_cache: bool, by_sums: bool) -> tuple[list[Fault], int]:
        if past_cache and rows:
            first, last = rows[0][1], rows[-1][1]
            whole = Place(first.segment, first.offset, last.offset + last.length - first.offset)
            drop_cached(self._room.files, [whole])
        before = self.soft_errors
        suspects, soft = prove(self._room.files, rows, threads=self._threads, by_sums=by_sums)
        self.note_soft(soft)
        _, faults = self.look_again(suspects)
        return [fault for fault in faults if fault.place is not None], self.soft_errors - before

    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]:
        """Look through every segment, whatever the ledger says of it, for blocks that it does not know."""
        room = self._room
        missing = set(ids) - room.ledger.present(list(ids))
        found: dict[BlockId, tuple[Header, Place]] = {}
        for number in room.files.numbers() if missing else []:
            with closing_handle(room.files.open_to_read(number)) as handle:
                for header, at in sound_blocks(handle, SEGMENT_HEADER_BYTES, room.files.size(number), unreadable=[]):
                    if header.block_id in missing:
                        found[header.block_id] = (header, Place(number, at, header.sealed_bytes))
        if found:
            with room.noticing():
                room.ledger.insert(list(found.values()))
        return sorted(found)

    def absolve(self) -> None:
        """Read once more what was found broken: a disk that answered with an error then may give the bytes now.

        They are proven, so nothing wrong can come back; and without this a cable that was loose for a minute would cost
        every block that was read in it, where no peer has them.
        """
        room = self._room
        suspects = [fault for fault in room.ledger.broken() if fault.place is not None][:_ABSOLVED_MAX]
        wanted: list[Wanted] = [(one.block_id, one.place, one.kind) for one in suspects if one.place is not None]
        sound = [
            (parse_header(piece.sealed), piece.wanted[1])
            for run in read_pieces(room.files, wanted)
            for piece in run
            if piece.fault is None
        ]
        if sound:
            room.ledger.insert(sound, replace=True)
            get_logger().warning("store.absolved", blocks=len(sound), then="they were broken, and can be read again")

    def ages(self) -> list[SegmentAge]:
        verified = self._room.ledger.verified_ns()
        known = self._room.ledger.known_segments()
        return [SegmentAge(number, known[number], verified.get(number) or None) for number in sorted(known)]
