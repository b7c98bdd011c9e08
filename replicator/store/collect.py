"""Letting go: mark, condemn, wait, sweep.

Replication software loses data mostly in collectors that race with writers, so this one is
slow on purpose. A run has four steps:

1. *Mark.* Read who is writing, then the roots, then walk everything the roots reach (the
   caller does the walking and hands in the marks). Any failing read aborts the run: "could
   not read" never means "nothing refers to it".
2. *Revive* whatever was condemned and is reached again.
3. *Sweep* what was condemned before `grace_s`, in an epoch from which no writer is left, and
   is still unreached.
4. *Condemn* what is present and unreached now. It stays readable, and a writer that asks for
   it brings it back, until a later run sweeps it.

Why no race is left: a writer that was told "present" before the sentence holds a lease from
that epoch or before, so step 3 waits for it; when it ends, its root is among the roots of the
next mark. The roots include what a live writer builds on (its base), or a base that is pruned under
it would not be spoken for. A writer that asks after the sentence lifts it (`LocalStore.have`). The lease list
is read *before* the roots, so a writer that ends in between counts as alive.

Marks are the first 8 bytes of ids: an accidental match keeps a dead block, never drops a live
one, and a hundred million blocks are 800 MB instead of ten times that.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.ids import BLOCK_ID_BYTES, BlockId
from protocol.wire.envelope import parse_header
from protocol.wire.hashing import Kind
from replicator.core.errors import StoreFull
from replicator.core.ports import WallClock
from replicator.store.ledger import Ledger
from replicator.store.local import LocalStore
from replicator.store.ports import Fault, SealedBlock
from replicator.store.segments import SEGMENT_HEADER_BYTES
from replicator.store.verify import read_pieces

_SWEEP_ROWS: Final = 1000
"""In one transaction. Each may dirty three pages of 4 KiB, at random places: 12 MiB, which is what the ballast of a
full disk has room for (`core/ballast.py`)."""
Marks = npt.NDArray[np.uint64]


class MarkSet:
    """Collects ids that are spoken for."""

    def __init__(self) -> None:
        self._parts: list[Marks] = []

    def add(self, packed: bytes) -> None:
        """Mark a run of ids."""
        self._parts.append(prefixes(packed))

    def finish(self) -> Marks:
        return np.unique(np.concatenate(self._parts)) if self._parts else np.empty(0, np.uint64)


def prefixes(packed: bytes) -> Marks:
    """The first 8 bytes of each id in a run."""
    return np.frombuffer(packed, dtype=">u8")[:: BLOCK_ID_BYTES // 8].astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Mark:
    """The beginning of a run, taken before the roots are read."""

    epoch: int
    oldest_writer_epoch: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run did, or, for a dry run, would do."""

    blocks_condemned: int
    bytes_condemned: int
    blocks_swept: int
    bytes_swept: int
    blocks_revived: int
    segments_removed: int
    bytes_freed: int
    writers_waited_for: int
    duration_s: float


class Collector:
    """Collects one local store. One run at a time: the caller sees to that."""

    def __init__(self, store: LocalStore, *, clock: WallClock) -> None:
        self._store = store
        self._clock = clock

    def begin(self) -> Mark:
        """Call before reading the roots."""
        self._store.flush()
        oldest = self._store.leases.oldest_epoch()
        epoch = self._store.leases.advance()
        with self._store.noticing():
            self._store.ledger.set_fact("epoch", epoch)
        return Mark(epoch, oldest)

    def finish(self, mark: Mark, marks: Marks, *, grace_s: float, dry_run: bool) -> Collected:
        """Judge by `marks`, everything that the roots read after `mark` reach."""
        with self._store.housekeeping, self._store.noticing():
            return self._finish(mark, marks, grace_s=grace_s, dry_run=dry_run)

    def _finish(self, mark: Mark, marks: Marks, *, grace_s: float, dry_run: bool) -> Collected:
        began = time.monotonic()
        ledger = self._store.ledger
        now_ns = self._clock.now_ns()
        revived = [] if dry_run else self._revive(marks)
        ripe = ledger.condemned(epoch_below=mark.oldest_writer_epoch, at_most_ns=now_ns - int(grace_s * 1e9))
        ripe = [block for block in ripe if not _is_marked(marks, block)]
        swept_bytes = 0
        if dry_run:
            swept_bytes = _sealed_bytes(ledger, ripe)
        else:
            for at in range(0, len(ripe), _SWEEP_ROWS):
                swept_bytes += ledger.sweep(ripe[at : at + _SWEEP_ROWS], epoch_below=mark.oldest_writer_epoch)
        condemned, condemned_bytes = self._condemn(mark, marks, now_ns=now_ns, dry_run=dry_run)
        if not dry_run:
            ledger.drop_broken([f.block_id for f in ledger.broken() if not _is_marked(marks, f.block_id)])
        removed, freed = (0, 0) if dry_run else self._shrink()
        return Collected(
            blocks_condemned=condemned,
            bytes_condemned=condemned_bytes,
            blocks_swept=len(ripe),
            bytes_swept=swept_bytes,
            blocks_revived=len(revived),
            segments_removed=removed,
            bytes_freed=freed,
            writers_waited_for=len(self._store.leases.holders()),
            duration_s=time.monotonic() - began,
        )

    def records(self) -> list[BlockId]:
        """Every snapshot record in the store, known to the catalogue or not."""
        return self._store.ledger.of_kind(Kind.RECORD)

    def undo(self) -> int:
        """Lift every sentence that has not been carried out. Returns how many blocks that saves."""
        return self._store.ledger.revive_all()

    def _revive(self, marks: Marks) -> list[BlockId]:
        ledger = self._store.ledger
        back = [block for block in ledger.condemned(epoch_below=2**62, at_most_ns=2**62) if _is_marked(marks, block)]
        ledger.revive(back)
        return back

    def _condemn(self, mark: Mark, marks: Marks, *, now_ns: int, dry_run: bool) -> tuple[int, int]:
        ledger = self._store.ledger
        count = size = 0
        for packed in ledger.packed_ids():
            dead = [
                BlockId(packed[at * BLOCK_ID_BYTES : (at + 1) * BLOCK_ID_BYTES])
                for at in np.flatnonzero(~_are_marked(marks, prefixes(packed))).tolist()
            ]
            if not dead:
                continue
            already = ledger.condemned_among(dead)
            dead = [block for block in dead if block not in already]
            count += len(dead)
            size += _sealed_bytes(ledger, dead)
            if not dry_run:
                try:
                    ledger.condemn(dead, epoch=mark.epoch, now_ns=now_ns)
                except StoreFull:
                    count, size = count - len(dead), size - _sealed_bytes(ledger, dead)
                    if not count:
                        raise
                    return count, size  # Carrying these out makes room for the rest.
        return count, size

    def free_dead(self) -> int:
        """Unlink the segments in which no block is left, and nothing else: on a full disk this takes no room at all."""
        with suppress(StoreFull):
            return self._remove(self._plan_shrink()[0])
        return 0

    def _shrink(self) -> tuple[int, int]:
        """Remove segments without a live block, then empty those that are mostly dead.

        In this order, because the first frees space without taking any. A disk too full for the
        second is no failure: the next run finds more room.
        """
        empty, sparse = self._plan_shrink()
        removed, freed = len(empty), self._remove(empty)
        for number in sparse:
            try:
                if not self._move_out(number):
                    continue
            except StoreFull:
                break
            removed, freed = removed + 1, freed + self._remove([number])
        return removed, freed

    def _remove(self, numbers: list[int]) -> int:
        freed = self._store.files.remove(numbers)
        # A segment that is gone and not forgotten does no harm: nothing is said to lie in it.
        with suppress(StoreFull):
            self._store.ledger.forget_segments(numbers)
        return freed

    def _plan_shrink(self) -> tuple[list[int], list[int]]:
        store = self._store
        # Only segments that were full *before* the flush: whatever was appended to them is in the ledger
        # after it. One that fills up in between looks empty, and is new.
        full = store.full_segments()
        store.flush()
        live = store.ledger.live_bytes()
        # A broken block may still be healed from its own bytes, or may be found sound by a later read.
        held = {fault.place.segment for fault in store.ledger.broken() if fault.place is not None}
        empty: list[int] = []
        sparse: list[int] = []
        for number in full:
            size, alive = store.files.size(number), live.get(number, 0)
            if number in held or size <= SEGMENT_HEADER_BYTES:
                continue
            if alive == 0:
                empty.append(number)
            elif alive < size * (1 - store.config.dead_share_min):
                sparse.append(number)
        return empty, sparse

    def _move_out(self, number: int) -> bool:
        """Copy the live blocks of a segment to the end of the store. They are proven on the way.

        Answers whether the segment is empty now: a block that cannot be read stays where it lies.
        """
        store = self._store
        faults: list[Fault] = []
        offset = 0
        while rows := store.ledger.in_segment(number, from_offset=offset, limit=256):
            offset = rows[-1][1].offset + 1
            blocks: list[SealedBlock] = []
            for run in read_pieces(store.files, rows):
                for piece in run:
                    if piece.fault is not None:
                        faults.append(piece.fault)
                    else:
                        blocks.append(SealedBlock(parse_header(piece.sealed), piece.sealed))
            store.rewrite(blocks)
        store.quarantine(store.still_faulty(faults))
        return not faults


def _sealed_bytes(ledger: Ledger, blocks: Sequence[BlockId]) -> int:
    lengths: list[int] = [place.length for place, _ in ledger.places(blocks).values()]
    return sum(lengths)


def _are_marked(marks: Marks, keys: Marks) -> npt.NDArray[np.bool_]:
    if not len(marks):
        return np.zeros(len(keys), dtype=bool)
    at = np.minimum(np.searchsorted(marks, keys), len(marks) - 1)
    found: npt.NDArray[np.bool_] = marks[at] == keys
    return found


def _is_marked(marks: Marks, block: bytes) -> bool:
    return bool(_are_marked(marks, prefixes(block))[0])


def packed_batches(ids: Iterable[bytes], batch: int = 4096) -> Iterator[bytes]:
    """Join ids to runs for `MarkSet.add`."""
    held: list[bytes] = []
    for block in ids:
        held.append(block)
        if len(held) >= batch:
            yield b"".join(held)
            held = []
    if held:
        yield b"".join(held)


__all__ = ["Collected", "Collector", "Mark", "MarkSet", "Marks", "packed_batches", "prefixes"]
