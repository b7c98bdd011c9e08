"""The ledger: which block lies where, and what is thought of it.

It is a cache of the segments and can be rebuilt from them (`replay`), with the exception of its notes
(`notes`): what is in quarantine, and what a collection has condemned.

Two parts that do not share a transaction: the table of blocks (`table`), and the notes. Each verb that
touches both does so in an order in which a crash between them leaves what `_reconcile` or a replay of the
segments puts right.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Final

import numpy as np

from protocol.ids import BLOCK_ID_BYTES, BlockId
from protocol.wire.envelope import Header
from replicator.store.config import StoreConfig
from replicator.store.ledger.by_segment import BySegment
from replicator.store.ledger.log import FORGET, SegmentNote
from replicator.store.ledger.notes import Notes
from replicator.store.ledger.rows import (
    GONE_RECORD,
    columns_of,
    id_of,
    is_gone,
    pack_record,
    places_of,
)
from replicator.store.ledger.table import BlockTable, Row
from replicator.store.ports import Cause, Fault, Place

_GENERATION: Final = "generation"


class Ledger:
    """Where the blocks are. Thread-safe; each change is durable when its verb returns."""

    def __init__(self, folder: Path, config: StoreConfig) -> None:
        """Open the ledger in `folder`, or make one. Raises `LedgerDamaged`, `StoreError`, `sqlite3.DatabaseError`."""
        folder.mkdir(exist_ok=True)
        self._lock = threading.RLock()
        self._notes = Notes(folder / "notes.sqlite")
        try:
            self._table = BlockTable(folder, config)
        except BaseException:
            self._notes.close()
            raise
        self._by_segment = BySegment(self._table)
        self._any_broken = self._notes.any_broken()
        self._reconcile()

    def _reconcile(self) -> None:
        """A crash may have left a block in quarantine *and* in the table. One of the two is older."""
        for fault in self._notes.broken():
            known = self.places([fault.block_id]).get(fault.block_id)
            if known is None:
                continue
            if known[0] == fault.place:
                self._table.put([Row(fault.block_id, GONE_RECORD)])
            else:
                self._notes.drop_broken([fault.block_id])

    # -- looking up -----------------------------------------------------------------------

    def present(self, ids: Sequence[BlockId]) -> set[BlockId]:
        return set(compress(ids, self._table.look_up(ids).here().tolist()))

    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, tuple[Place, int]]:
        """Where these lie, and their kinds; absent ones are left out."""
        return places_of(ids, self._table.look_up(ids))

    def broken_causes(self, ids: Sequence[BlockId]) -> dict[BlockId, tuple[Cause, int]]:
        return self._notes.broken_causes(ids) if self._any_broken else {}

    def of_kind(self, kind: int) -> list[BlockId]:
        """All blocks of a kind. Reads every row: for a disaster, not for every day."""
        found: list[BlockId] = []
        for heads, rests in self._table.scan():
            for at in np.flatnonzero(columns_of(rests).kind == kind).tolist():
                found.append(id_of(int(heads[at]), rests[at, :24].tobytes()))
        return sorted(block for block, (_, of_it) in self.places(found).items() if of_it == kind)

    def in_segment(self, number: int, *, from_offset: int, limit: int) -> list[tuple[BlockId, Place, int]]:
        """What a segment should hold from an offset on, in the order of offsets."""
        with self._lock:
            rows = self._by_segment.rows_of(number)
        start = int(np.searchsorted(rows.offsets, from_offset))
        answer: list[tuple[BlockId, Place, int]] = []
        answered: set[BlockId] = set()
        while start < len(rows.offsets) and len(answer) < limit:
            ids = rows.ids[start * BLOCK_ID_BYTES : (start + limit) * BLOCK_ID_BYTES]
            names = [BlockId(ids[at : at + BLOCK_ID_BYTES]) for at in range(0, len(ids), BLOCK_ID_BYTES)]
            known = self.places(names)
            # A row may be an older one that another shadows: only where a block lies *now* counts.
            offsets = rows.offsets[start : start + limit].tolist()
            for block, offset in zip(names, offsets, strict=True):
                place, kind = known.get(block, (None, 0))
                if place is None or (place.segment, place.offset) != (number, offset):
                    continue
                # While runs are merged a row may be in two of them. Another block at the same offset is a wrong row.
                if block not in answered:
                    answered.add(block)
                    answer.append((block, place, kind))
            start += limit
        return answer[:limit]

    def beyond(self, number: int, *, end: int) -> list[Fault]:
        """The blocks that should lie in a segment and reach past `end`, as faults."""
        rows = self.in_segment(number, from_offset=0, limit=1 << 40)
        return [
            Fault(block, kind, Cause.MISSING, place) for block, place, kind in rows if place.offset + place.length > end
        ]

    def packed_ids(self) -> Iterator[bytes]:
        """All ids, ascending, in batches joined to one run of bytes."""
        return self._table.ids_in_order()

    def broken_count(self) -> int:
        return self._notes.broken_count() if self._any_broken else 0

    def broken(self) -> list[Fault]:
        return self._notes.broken() if self._any_broken else []

    # -- changing -------------------------------------------------------------------------

    def insert(
        self, rows: Sequence[tuple[Header, Place]], *, replace: bool = False, accounts_to: int | None = None
    ) -> None:
        """Enter blocks whose bytes are on the disk; a sound copy also ends a quarantine.

        A block that is here already keeps its place, unless `replace`. The segment is accounted for up to the last of
        them, or up to `accounts_to` where something before it could not be read.
        """
        if not rows:
            return
        with self._lock:
            if self._any_broken:
                # First, because what is then cut by a crash is found again in the segment, beyond what is known of it.
                self._notes.drop_broken([header.block_id for header, _ in rows])
                self._any_broken = self._notes.any_broken()
            before = self._table.records([header.block_id for header, _ in rows])
            here = set() if replace else {block for block, record in before.items() if not is_gone(record)}
            ends: dict[int, int] = {}
            fresh: list[Row] = []
            for header, place in rows:
                ends[place.segment] = max(ends.get(place.segment, 0), place.offset + place.length)
                if header.block_id not in here:
                    record = pack_record(place, kind=header.kind, body_bytes=header.body_bytes)
                    fresh.append(Row(header.block_id, record))
                    if not replace:
                        here.add(header.block_id)
            most = ends if accounts_to is None else dict.fromkeys(ends, accounts_to)
            notes = [SegmentNote(number, min(end, most[number])) for number, end in ends.items()]
            self._table.put(fresh, notes, before=before)

    def note_known(self, ends: dict[int, int]) -> None:
        """These segments hold nothing unknown before these offsets."""
        self._table.put([], [SegmentNote(number, end) for number, end in ends.items()])

    def keep_broken(self, faults: Sequence[Fault]) -> None:
        """Take over from another ledger what is in quarantine and not here."""
        with self._lock:
            self._notes.add_broken(faults, now_ns=0)
            self._any_broken = self._notes.any_broken()

    def quarantine(self, faults: Sequence[Fault], *, now_ns: int) -> int:
        """Take blocks out of the table, but only while they still lie at the place that was found broken."""
        with self._lock:
            known = self.places([fault.block_id for fault in faults])
            moved = {f.block_id: f for f in faults if f.place is not None and _at(known, f.block_id) == f.place}
            if not moved:
                return 0
            self._notes.add_broken(list(moved.values()), now_ns=now_ns)
            self._any_broken = True
            self._table.put([Row(block, GONE_RECORD) for block in moved])
            return len(moved)

    # -- collection -----------------------------------------------------------------------

    def condemned_among(self, ids: Sequence[BlockId]) -> set[BlockId]:
        # Nearly always there is none, and this is asked for every batch of every writer.
        return set(self._notes.condemned_among(ids)) if self._notes.any_condemned() else set()

    def condemn(self, ids: Sequence[bytes], *, epoch: int, now_ns: int) -> None:
        self._notes.condemn(ids, epoch=epoch, now_ns=now_ns)

    def revive(self, ids: Sequence[BlockId]) -> None:
        """Something speaks for these again."""
        with self._lock:  # not between a sweep's look at the sentences and its carrying out
            self._notes.revive(ids)

    def revive_all(self) -> int:
        with self._lock:
            return self._notes.revive_all()

    def condemned(self, *, epoch_below: int, at_most_ns: int) -> list[BlockId]:
        return self._notes.condemned(epoch_below=epoch_below, at_most_ns=at_most_ns)

    def sentences(self) -> list[tuple[BlockId, int, int]]:
        """All of them: the block, the epoch, and when."""
        return self._notes.sentences()

    def condemned_count(self) -> int:
        return self._notes.condemned_count()

    def sweep(self, ids: Sequence[bytes], *, epoch_below: int) -> int:
        """Forget these blocks, each only if it is still condemned from before that epoch. Returns sealed bytes."""
        with self._lock:
            sentences = self._notes.condemned_among(ids)
            over = [block for block, epoch in sentences.items() if epoch < epoch_below]
            known = self.places(over)
            # A sentence without a block is harmless; a block without its sentence would be kept for another round.
            self._table.put([Row(block, GONE_RECORD) for block in known])
            self._notes.revive(over)
            return sum(place.length for place, _ in known.values())

    def drop_broken(self, ids: Sequence[bytes]) -> None:
        """Nothing speaks for these any more, so nobody waits for their repair."""
        with self._lock:
            self._notes.drop_broken(ids)
            self._any_broken = self._notes.any_broken()

    def live_bytes(self) -> dict[int, int]:
        """Sealed bytes of present blocks in each segment that has any."""
        with self._lock:
            return {n: one.live_bytes for n, one in list(self._table.segments.items()) if one.live_blocks}

    # -- segments, facts ------------------------------------------------------------------

    def known_segments(self) -> dict[int, int]:
        """How many bytes of each segment the ledger has accounted for."""
        return {number: one.known_bytes for number, one in list(self._table.segments.items())}

    def forget_segments(self, numbers: Sequence[int]) -> None:
        """These files are gone, and nothing lies in them."""
        if numbers:
            self._table.put([], [SegmentNote(number, 0, FORGET) for number in numbers])

    def distrust_segments(self) -> None:
        """Account for no byte of any segment: a replay is to look at all of them again."""
        self._table.distrust_segments()

    def note_verified(self, number: int, *, now_ns: int) -> None:
        if number in self._table.segments:
            self._table.put([], [SegmentNote(number, 0, now_ns)])

    def verified_ns(self) -> dict[int, int]:
        """When each segment was last proven; 0 for never."""
        return {number: one.verified_ns for number, one in list(self._table.segments.items())}

    def oldest_verified_ns(self) -> int | None:
        """When the least recently proven segment was proven; None if one never was."""
        return min(self.verified_ns().values(), default=0) or None

    def fact(self, name: str) -> int:
        if name == _GENERATION:
            # Of both parts: if either was put back from a copy, the ledger is that old.
            return min(self._table.generation, self._notes.fact(name))
        return self._notes.fact(name)

    def set_fact(self, name: str, value: int) -> None:
        self._notes.set_fact(name, value)
        if name == _GENERATION:
            self._table.set_generation(value)

    def totals(self) -> tuple[int, int, int]:
        """Blocks, sealed bytes, body bytes."""
        totals = self._table.totals
        return totals.blocks, totals.sealed_bytes, totals.body_bytes

    def check(self) -> str:
        """What is wrong with the small tables: empty if they are sound. (Of the runs, heads are checked at opening.)"""
        return self._table.damage or self._notes.check()

    def check_rows(self) -> Iterator[str]:
        """Read all rows again: a sentence for each damaged file, "" for each stretch that is sound."""
        return self._table.check()

    def wait_merged(self) -> None:
        """Until the ledger has no housekeeping to do."""
        self._table.wait_merged()

    def stop_merging(self) -> None:
        """For the rest of its life it writes no more runs."""
        self._table.stop_merging()

    def close(self) -> None:
        self._table.close()
        self._notes.close()


def _at(known: dict[BlockId, tuple[Place, int]], block: BlockId) -> Place | None:
    found = known.get(block)
    return None if found is None else found[0]
