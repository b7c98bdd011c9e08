"""The local store against a dictionary, in any order of events that Hypothesis can think of.

What must hold whatever happens: a block that a root reaches, or that the store called present
under a lease that is still alive, can be read and is right. What was not committed may be gone
after a crash; what nothing speaks for may be gone after a collection; nothing else may.
"""

import contextlib
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.errors import ProtocolError
from protocol.ids import BlockId, split_ids
from protocol.wire.envelope import HEADER_BYTES, unseal
from replicator.core.errors import LeaseLost
from replicator.store.collect import Collector, Mark, MarkSet
from replicator.store.config import StoreConfig
from replicator.store.leases import LEASE_S
from replicator.store.local import LocalStore
from replicator.store.ports import Lease, Place
from replicator.store.segments import SEGMENT_HEADER_BYTES
from tests.support.blocks import body_of, from_body, sealed_block
from tests.support.clocks import FakeMonotonic, FakeWallClock
from tests.support.store import copy_ledger, open_store, replace_ledger, scrub

SEEDS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
TINY_SEGMENTS = StoreConfig(
    segment_bytes_max=1500, reserve_bytes_max=0, ledger_fresh_rows_max=4
)  # Two blocks, or a few that LZ4 packs.
GRACE_S = 3600.0
MEMORY = Path("/dev/shm")  # Nothing here is about power cuts, and a flush to a disk takes most of the time.


@dataclass
class Writer:
    lease: Lease
    told: set[BlockId] = field(default_factory=set)


@dataclass
class Run:
    """A collection between its first half and its second."""

    mark: Mark
    roots: set[BlockId]


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.root = self.folder / "store"
        self.monotonic = FakeMonotonic()
        self.clock = FakeWallClock()
        self.bodies: dict[BlockId, bytes] = {}
        self.roots: list[set[BlockId]] = []
        self.writers: list[Writer] = []
        self.run: Run | None = None
        self.copies: list[Path] = []
        self.open()

    def open(self) -> None:
        self.store: LocalStore = open_store(self.root, config=TINY_SEGMENTS, clock=self.clock, monotonic=self.monotonic)
        self.collector = Collector(self.store, clock=self.clock)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def reopen(self) -> None:
        self.store.close()
        self.writers, self.run = [], None
        self.open()

    def rooted(self) -> set[BlockId]:
        return set().union(*self.roots)

    # -- writers --------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: len(self.writers) < 3)
    def begin(self) -> None:
        self.writers.append(Writer(self.store.begin("model")))

    def writer(self, data: st.DataObject) -> Writer:
        return data.draw(st.sampled_from(self.writers))  # type: ignore[no-any-return]

    @rule(data=st.data(), seeds=SEEDS)
    @precondition(lambda self: self.writers)
    def append(self, data: st.DataObject, seeds: list[int]) -> None:
        self.append_to(self.writer(data), seeds)

    def append_to(self, writer: Writer, seeds: list[int]) -> None:
        blocks = [sealed_block(seed, size=700) for seed in seeds]
        self.bodies.update((sealed_block(seed, size=700).header.block_id, body_of(seed, 700)) for seed in seeds)
        self.store.append(writer.lease, blocks)
        writer.told.update(block.header.block_id for block in blocks)

    @rule(seeds=SEEDS)
    def protect(self, seeds: list[int]) -> None:
        """A whole writer, from its lease to its root."""
        writer = Writer(self.store.begin("model"))
        self.writers.append(writer)
        self.append_to(writer, seeds)
        self.publish(writer)

    @rule(seeds=SEEDS)
    def ask(self, seeds: list[int]) -> None:
        if not self.writers:
            self.writers.append(Writer(self.store.begin("model")))
        writer = self.writers[-1]
        writer.told |= self.store.have(writer.lease, [sealed_block(seed, size=700).header.block_id for seed in seeds])

    @rule(data=st.data())
    @precondition(lambda self: self.writers)
    def commit(self, data: st.DataObject) -> None:
        self.store.commit(self.writer(data).lease)

    @rule(data=st.data(), is_published=st.booleans())
    @precondition(lambda self: self.writers)
    def end(self, data: st.DataObject, is_published: bool) -> None:
        writer = self.writer(data)
        if is_published:
            self.publish(writer)
        else:
            self.store.end(writer.lease)
            self.writers.remove(writer)

    def publish(self, writer: Writer) -> None:
        self.store.commit(writer.lease)
        self.roots.append(set(writer.told))
        self.store.end(writer.lease)
        self.writers.remove(writer)

    @rule()
    @precondition(lambda self: self.writers)
    def sleep_past_every_lease(self) -> None:
        self.monotonic.now += LEASE_S + 1
        for writer in self.writers:
            with pytest.raises(LeaseLost):
                self.store.commit(writer.lease)
        self.writers = []

    @rule(data=st.data())
    @precondition(lambda self: self.roots)
    def delete_root(self, data: st.DataObject) -> None:
        self.roots.pop(data.draw(st.integers(0, len(self.roots) - 1)))

    # -- crashes, and a ledger that is lost or set back -----------------------------------

    @rule(way=st.sampled_from(["crash", "lose the ledger", "scribble over it"]))
    def restart(self, way: str) -> None:
        self.store.close()
        self.copies.append(copy_ledger(self.root, self.folder / f"copy-{len(self.copies)}"))
        match way:
            case "scribble over it":
                for path in (self.root / "ledger").iterdir():
                    path.write_bytes(b"not a ledger, " * 20)
            case "lose the ledger":
                replace_ledger(self.root, None)
        self.writers, self.run = [], None
        self.open()

    @rule(data=st.data())
    @precondition(lambda self: self.copies)
    def put_an_old_ledger_back(self, data: st.DataObject) -> None:
        self.store.close()
        replace_ledger(self.root, self.copies[data.draw(st.integers(0, len(self.copies) - 1))])
        self.writers, self.run = [], None
        self.open()

    # -- collection -----------------------------------------------------------------------

    @rule()
    @precondition(lambda self: self.run is None)
    def begin_collection(self) -> None:
        self.run = Run(self.collector.begin(), self.rooted())

    @rule(grace_s=st.sampled_from([0.0, GRACE_S]))
    @precondition(lambda self: self.run is not None)
    def finish_collection(self, grace_s: float) -> None:
        assert self.run is not None
        before = self.present()
        sentence_over = self.store.ledger.condemned(
            epoch_below=2**62, at_most_ns=self.clock.now_ns() - int(grace_s * 1e9)
        )
        self.finish(self.run, grace_s)
        assert before - self.present() <= set(sentence_over)
        self.run = None

    def finish(self, run: Run, grace_s: float) -> None:
        marks = MarkSet()
        marks.add(b"".join(run.roots))
        self.collector.finish(run.mark, marks.finish(), grace_s=grace_s, dry_run=False)

    @rule(times=st.integers(1, 3))
    def collect(self, times: int) -> None:
        self.run = None
        for _ in range(times):
            self.finish(Run(self.collector.begin(), self.rooted()), 0.0)

    @rule()
    def pass_the_grace(self) -> None:
        self.clock.advance(GRACE_S + 1)

    @rule()
    def undo(self) -> None:
        self.collector.undo()
        assert self.store.statistics().condemned_blocks == 0

    @rule()
    def collect_all_that_can_be(self) -> None:
        """With no writer left, two runs leave exactly what the roots reach, and little else on the disk."""
        for writer in self.writers:
            self.store.end(writer.lease)
        self.writers, self.run = [], None
        for _ in range(2):
            self.finish(Run(self.collector.begin(), self.rooted()), 0.0)
        assert self.present() == self.rooted()
        found = self.store.statistics()
        open_segments = 2  # The newest is not emptied, and emptying others may have filled one more.
        overhead = SEGMENT_HEADER_BYTES * found.segments
        assert found.disk_bytes <= 2 * (found.sealed_bytes + overhead) + open_segments * 2 * 1500

    def present(self) -> set[BlockId]:
        return set(split_ids(b"".join(self.store.ids())))

    # -- damage ---------------------------------------------------------------------------

    @rule(seed=st.integers(0, 2**16), mode=st.sampled_from(["flip", "truncate", "delete"]), is_reopened=st.booleans())
    def damage_is_found_exactly_and_heals(self, seed: int, mode: str, is_reopened: bool) -> None:
        self.store.flush()
        places = {block: place for block, (place, _) in self.store.ledger.places(sorted(self.present())).items()}
        if not places:
            return
        already_bad = {fault.block_id for fault in self.store.broken()}
        rnd = random.Random(seed)
        block = rnd.choice(sorted(places))
        affected = self.damage(places, block, mode, rnd)
        if is_reopened:
            self.reopen()
        faults = scrub(self.store, bytes_max=2000)
        found = {fault.block_id for fault in [*faults, *self.store.broken()]} - already_bad
        assert found == affected - already_bad
        self.store.quarantine(faults)
        lease = self.store.begin("repair")
        assert not self.store.have(lease, sorted(affected))
        self.store.append(lease, [from_body(self.bodies[name]) for name in sorted(affected | already_bad)])
        self.store.commit(lease)
        self.store.end(lease)
        assert self.store.broken() == []
        assert scrub(self.store) == []

    def damage(self, places: dict[BlockId, Place], block: BlockId, mode: str, rnd: random.Random) -> set[BlockId]:
        place = places[block]
        path = self.store.files.path(place.segment)
        if mode == "delete":
            path.unlink()
            return {name for name, other in places.items() if other.segment == place.segment}
        if mode == "truncate":
            end = place.offset + rnd.randrange(place.length)
            with path.open("r+b") as file:
                file.truncate(end)
            return {
                name for name, other in places.items()
                if other.segment == place.segment and other.offset + other.length > end
            }  # fmt: skip
        data = bytearray(path.read_bytes())
        at = place.offset + rnd.choice([rnd.randrange(HEADER_BYTES), rnd.randrange(place.length)])
        data[at] ^= 1 << rnd.randrange(8)
        with path.open("r+b") as file:
            file.write(data)
        with contextlib.suppress(ProtocolError):
            # LZ4 can say the same in several ways: then the body is right, and nothing is broken.
            unseal(data, place.offset)
            return set()
        return {block}

    # -- what must always hold ------------------------------------------------------------

    @invariant()
    def what_is_spoken_for_is_readable_and_right(self) -> None:
        wanted = self.rooted().union(*(writer.told for writer in self.writers))
        answer = self.store.read(sorted(wanted))
        assert answer.faults == []
        for name, body in answer.sound.items():
            assert bytes(body) == self.bodies[name]


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=3 * (settings.default or settings()).max_examples, stateful_step_count=30
)
