"""The ledger against a dictionary: entering, moving, forgetting, quarantine, sentences, merges, restarts.

Ids are few and alike on purpose: many share their first eight bytes, which the runs search by.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.ids import BlockId, split_ids
from protocol.wire.envelope import Header
from replicator.store.config import StoreConfig
from replicator.store.ledger import Ledger
from replicator.store.ports import Cause, Fault, Place

CONFIG = StoreConfig(ledger_fresh_rows_max=4, ledger_part_rows_max=8, ledger_runs_max=2)
MEMORY = Path("/dev/shm")
HEADS = (b"\0" * 8, b"\0" * 7 + b"\1", b"\x7f" * 8, b"\xff" * 8)
IDS = [BlockId(head + bytes([tail]) * 24) for head in HEADS for tail in (0, 1, 2, 200, 255)]
SOME_IDS = st.lists(st.sampled_from(IDS), min_size=1, max_size=6)


class LedgerMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.here: dict[BlockId, tuple[Header, Place]] = {}
        self.broken: dict[BlockId, Place] = {}
        self.condemned: dict[BlockId, int] = {}
        self.next_offset = 64
        self.epoch = 1
        self.ledger = Ledger(self.folder / "ledger", CONFIG)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.folder)

    def row(self, block: BlockId, length: int) -> tuple[Header, Place]:
        place = Place(1 + self.next_offset // 1000, self.next_offset % 1000, length)
        self.next_offset += length
        return Header(length % 3, 1, 2 * length, length - 56, block, 0), place

    @rule(ids=SOME_IDS, length=st.integers(57, 400), replace=st.booleans())
    def enter(self, ids: list[BlockId], length: int, replace: bool) -> None:
        rows = [self.row(block, length) for block in ids]
        self.ledger.insert(rows, replace=replace)
        for header, place in rows:
            self.broken.pop(header.block_id, None)
            if replace or header.block_id not in self.here:
                self.here[header.block_id] = (header, place)

    @rule(ids=SOME_IDS, is_old_place=st.booleans())
    def quarantine(self, ids: list[BlockId], is_old_place: bool) -> None:
        faults = []
        for block in set(ids) & set(self.here):
            header, place = self.here[block]
            found = Place(place.segment, place.offset + 7, place.length) if is_old_place else place
            faults.append(Fault(block, header.kind, Cause.CORRUPT, found))
            if not is_old_place:
                self.broken[block] = place
                del self.here[block]
        assert self.ledger.quarantine(faults, now_ns=1) == (0 if is_old_place else len(faults))

    @rule(ids=SOME_IDS)
    def condemn(self, ids: list[BlockId]) -> None:
        self.epoch += 1
        self.ledger.condemn(ids, epoch=self.epoch, now_ns=1)
        for block in ids:
            self.condemned.setdefault(block, self.epoch)

    @rule(ids=SOME_IDS)
    def revive(self, ids: list[BlockId]) -> None:
        self.ledger.revive(ids)
        for block in ids:
            self.condemned.pop(block, None)

    @rule(ids=SOME_IDS, back=st.integers(0, 3))
    def sweep(self, ids: list[BlockId], back: int) -> None:
        below = self.epoch - back
        over = {block for block in ids if self.condemned.get(block, below) < below}
        freed = sum(self.here[block][1].length for block in over if block in self.here)
        assert self.ledger.sweep(ids, epoch_below=below) == freed
        for block in over:
            self.here.pop(block, None)
            del self.condemned[block]

    @rule()
    def restart(self) -> None:
        """A clean stop and a crash are the same to it: nothing is written at the end."""
        self.ledger.close()
        self.ledger = Ledger(self.folder / "ledger", CONFIG)

    @rule()
    def wait_merged(self) -> None:
        self.ledger.wait_merged()

    @rule(ids=SOME_IDS, cut=st.integers(1, 60))
    def tear_the_last_batch(self, ids: list[BlockId], cut: int) -> None:
        """A batch of which the last bytes never reached the disk was never entered; all before it was."""
        newest = max(self.ledger._table._folder.glob("*.log"))
        size = newest.stat().st_size
        self.ledger.insert([self.row(block, 100) for block in ids], replace=True)
        if newest.exists() and newest.stat().st_size > size:
            self.ledger.close()
            with newest.open("r+b") as file:
                file.truncate(max(size, newest.stat().st_size - cut))
            self.ledger = Ledger(self.folder / "ledger", CONFIG)
        else:
            self.next_offset -= 100 * len(ids)
            rows = [self.row(block, 100) for block in ids]
            self.here |= {header.block_id: (header, place) for header, place in rows}
        for block in ids:
            self.broken.pop(block, None)

    @invariant()
    def it_says_what_the_dictionary_says(self) -> None:
        if not hasattr(self, "ledger"):
            return
        ledger = self.ledger
        assert ledger.places(IDS) == {b: (place, header.kind) for b, (header, place) in self.here.items()}
        assert split_ids(b"".join(ledger.packed_ids())) == sorted(self.here)
        assert ledger.totals() == (
            len(self.here),
            sum(place.length for _, place in self.here.values()),
            sum(header.body_bytes for header, _ in self.here.values()),
        )
        live: dict[int, int] = {}
        for _, place in self.here.values():
            live[place.segment] = live.get(place.segment, 0) + place.length
        assert ledger.live_bytes() == live
        assert {fault.block_id: fault.place for fault in ledger.broken()} == self.broken
        assert ledger.condemned_among(IDS) == set(self.condemned)
        for segment in live:
            rows = ledger.in_segment(segment, from_offset=0, limit=100)
            assert rows == sorted(
                ((b, place, h.kind) for b, (h, place) in self.here.items() if place.segment == segment),
                key=lambda row: row[1].offset,
            )
        assert ledger.of_kind(1) == sorted(b for b, (header, _) in self.here.items() if header.kind == 1)
        assert list(filter(None, ledger.check_rows())) == []


LedgerMachine.TestCase.settings = settings(settings.get_profile("ci"), stateful_step_count=40)
TestLedger = pytest.mark.slow(LedgerMachine.TestCase)
