"""A store against a dictionary, in any order of events that Hypothesis can think of.

What must hold whatever happens: a block that a root reaches, or that the store called present
under a lease that is still alive, can be read and is right. What was not committed may be gone
after a crash; what nothing speaks for may be gone after a collection; nothing else may.

The same machine runs on every engine; what only a disk can suffer is in `test_store_machine.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.ids import BlockId, split_ids
from replicator.core.errors import LeaseLost
from replicator.store.collect import Collected, Collector, MarkSet, foretold
from replicator.store.config import StoreConfig
from replicator.store.leases import LEASE_S
from replicator.store.marks import Marks
from replicator.store.ports import Lease, Mark
from replicator.store.sweep import Sweep
from tests.support.blocks import body_of, from_body, sealed_block
from tests.support.engines import Bench, Engine
from tests.support.store import scrub

SEEDS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
# Two blocks, or a few that LZ4 packs; and a ledger of which four rows are a run.
TINY_SEGMENTS = StoreConfig(segment_bytes_max=1500, reserve_bytes_max=0, ledger_fresh_rows_max=4)
GRACE_S = 3600.0


@dataclass
class Writer:
    lease: Lease
    told: set[BlockId] = field(default_factory=set)


@dataclass
class Reader:
    """Somebody who restores a snapshot that may be deleted meanwhile."""

    pin: Lease
    reads: set[BlockId]


@dataclass
class Run:
    """A collection between its first half and its second."""

    mark: Mark
    roots: set[BlockId]


@dataclass
class Cut:
    """A collection's execution, some steps of which have been done."""

    sweep: Sweep
    steps: Iterator[int]


def marks_of(ids: Iterable[BlockId]) -> Marks:
    marks = MarkSet()
    marks.add(b"".join(ids))
    return marks.finish()


class StoreModel(RuleBasedStateMachine):
    """The rules that every engine has to bear."""

    def make_bench(self) -> Bench:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.bench = self.make_bench()
        self.bodies: dict[BlockId, bytes] = {}
        self.roots: list[set[BlockId]] = []
        self.soft_errors = 0
        self.forget_process()

    def forget_process(self) -> None:
        """What was only in the memory of a process that is gone."""
        self.writers: list[Writer] = []
        self.readers: list[Reader] = []
        self.run: Run | None = None
        self.cut: Cut | None = None
        self.bench.why_off = ""

    @property
    def store(self) -> Engine:
        return self.bench.store

    @property
    def collector(self) -> Collector:
        return self.bench.collector()

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.store.close()

    def rooted(self) -> set[BlockId]:
        return set().union(*self.roots)

    def present(self) -> set[BlockId]:
        return set(split_ids(b"".join(self.store.ids())))

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
        self.store.renew(writer.lease)
        self.store.end(writer.lease)
        self.writers.remove(writer)

    @rule()
    @precondition(lambda self: self.writers or self.readers)
    def sleep_past_every_lease(self) -> None:
        self.bench.monotonic.now += LEASE_S + 1
        for lease in [one.lease for one in self.writers] + [one.pin for one in self.readers]:
            with pytest.raises(LeaseLost):
                self.store.renew(lease)
        self.writers, self.readers = [], []

    @rule(data=st.data())
    @precondition(lambda self: self.roots)
    def delete_root(self, data: st.DataObject) -> None:
        self.roots.pop(data.draw(st.integers(0, len(self.roots) - 1)))

    # -- readers --------------------------------------------------------------------------

    @rule(data=st.data())
    @precondition(lambda self: self.roots and len(self.readers) < 2)
    def pin(self, data: st.DataObject) -> None:
        pin = self.store.begin("restore")
        self.readers.append(Reader(pin, set(self.roots[data.draw(st.integers(0, len(self.roots) - 1))])))

    @rule()
    @precondition(lambda self: self.readers)
    def unpin(self) -> None:
        self.store.end(self.readers.pop().pin)

    # -- crashes --------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        self.bench.crash()
        self.forget_process()

    # -- collection -----------------------------------------------------------------------

    @rule()
    @precondition(lambda self: self.run is None and self.cut is None)
    def begin_collection(self) -> None:
        self.run = Run(self.collector.begin(), self.rooted())

    @rule(grace_s=st.sampled_from([0.0, GRACE_S]))
    @precondition(lambda self: self.run is not None)
    def finish_collection(self, grace_s: float) -> None:
        assert self.run is not None
        before = self.present()
        sentence_over = self.store.shelves.condemned(
            epoch_below=2**62, at_most_ns=self.bench.clock.now_ns() - int(grace_s * 1e9)
        )
        self.finish(self.run, grace_s)
        assert before - self.present() <= set(sentence_over)
        self.run = None

    @rule(grace_s=st.sampled_from([0.0, GRACE_S]), steps=st.integers(0, 12))
    @precondition(lambda self: self.run is not None)
    def begin_execution(self, grace_s: float, steps: int) -> None:
        """Some steps of a collection; what comes next may be anything, a crash as well."""
        assert self.run is not None
        collector = self.collector
        plan = collector.plan(self.run.mark, marks_of(self.run.roots), grace_s=grace_s)
        sweep = collector.carry_out(plan, confirmed=True)
        self.cut, self.run = Cut(sweep, sweep.steps()), None
        self.go_on(steps)

    @rule(steps=st.integers(1, 12))
    @precondition(lambda self: self.cut is not None)
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            if self.cut is not None and next(self.cut.steps, None) is None:
                self.cut = None

    @rule()
    @precondition(lambda self: self.cut is not None)
    def throw_the_switch(self) -> None:
        """Between two steps: from here on the run deletes nothing."""
        assert self.cut is not None
        self.bench.why_off = "stop"
        before = self.present()
        list(self.cut.steps)
        assert self.present() == before
        self.cut, self.bench.why_off = None, ""

    def finish(self, run: Run, grace_s: float) -> Collected:
        return self.collector.finish(run.mark, marks_of(run.roots), grace_s=grace_s, dry_run=False, confirmed=True)

    @rule(times=st.integers(1, 3))
    def collect(self, times: int) -> None:
        self.run = self.cut = None
        for _ in range(times):
            self.finish(Run(self.collector.begin(), self.rooted()), 0.0)

    @rule(grace_s=st.sampled_from([0.0, GRACE_S]))
    def a_dry_run_tells_the_run_that_follows(self, grace_s: float) -> None:
        self.run = self.cut = None
        self.flush()
        before = (self.present(), self.store.statistics())
        collector, marks = self.collector, marks_of(self.rooted())
        told = foretold(collector.plan(collector.begin(is_rehearsal=True), marks, grace_s=grace_s), duration_s=0.0)
        assert (self.present(), self.store.statistics()) == before
        done = self.finish(Run(collector.begin(), self.rooted()), grace_s)
        assert _comparable(done) == _comparable(told)

    def flush(self) -> None:
        self.collector.begin(is_rehearsal=True)

    @rule()
    def a_run_that_takes_too_much_takes_nothing(self) -> None:
        self.run = self.cut = None
        collector = self.collector
        plan = collector.plan(collector.begin(), marks_of(self.rooted()), grace_s=0.0)
        before = (self.present(), self.store.statistics().condemned_blocks)
        if not plan.held:
            assert plan.share <= self.bench.config.bulk_share_max
            return
        list(collector.carry_out(plan, confirmed=False).steps())
        assert (self.present(), self.store.statistics().condemned_blocks + len(plan.revive)) == before

    @rule()
    def pass_the_grace(self) -> None:
        self.bench.clock.advance(GRACE_S + 1)

    @rule()
    def undo(self) -> None:
        self.cut = None  # One collection at a time, and undoing is one.
        condemned = set(self.store.shelves.condemned(epoch_below=2**62, at_most_ns=2**62))
        assert self.collector.undo() == len(condemned)
        assert self.store.statistics().condemned_blocks == 0
        here = condemned & self.present()
        assert self.store.read(sorted(here)).faults == []

    @rule()
    def collect_all_that_can_be(self) -> None:
        """With nobody left, two runs leave exactly what the roots reach, and little else on the disk."""
        for lease in [one.lease for one in self.writers] + [one.pin for one in self.readers]:
            self.store.end(lease)
        self.writers, self.readers, self.run, self.cut = [], [], None, None
        for _ in range(2):
            self.finish(Run(self.collector.begin(), self.rooted()), 0.0)
        assert self.present() == self.rooted()
        found = self.store.statistics()
        open_segments = 2  # The newest is not emptied, and emptying others may have filled one more.
        overhead = 64 * found.segments
        assert found.disk_bytes <= 2 * (found.sealed_bytes + overhead) + open_segments * 2 * 1500

    # -- damage ---------------------------------------------------------------------------

    @rule(data=st.data(), mode=st.sampled_from(["rot", "lose"]), is_reopened=st.booleans())
    def damage_to_one_is_found_exactly_and_heals(self, data: st.DataObject, mode: str, is_reopened: bool) -> None:
        self.flush()
        here = sorted(self.present())
        if not here or self.store.broken():
            return
        block = data.draw(st.sampled_from(here))
        self.bench.rot(block) if mode == "rot" else self.bench.lose(block)
        if is_reopened:
            self.crash()
        faults = scrub(self.store, bytes_max=2000)
        assert [fault.block_id for fault in faults] == [block]
        self.store.quarantine(faults)
        self.heal({block})

    def heal(self, affected: set[BlockId]) -> None:
        lease = self.store.begin("repair")
        assert not self.store.have(lease, sorted(affected))
        self.store.append(lease, [from_body(self.bodies[name]) for name in sorted(affected)])
        self.store.commit(lease)
        self.store.end(lease)
        assert self.store.broken() == []
        assert scrub(self.store) == []

    @rule(data=st.data(), mood=st.sampled_from(["wrong", "refuses"]))
    def a_bad_moment_condemns_nothing(self, data: st.DataObject, mood: str) -> None:
        self.flush()
        here = sorted(self.present())
        if not here:
            return
        before = self.store.statistics()
        with self.bench.bad_moments([mood]):
            assert self.store.read([data.draw(st.sampled_from(here))]).faults == []
        assert self.store.statistics() == replace(before, soft_errors=before.soft_errors + 1)

    @rule(data=st.data())
    def what_the_index_lost_is_found_again(self, data: st.DataObject) -> None:
        self.flush()
        here = sorted(self.present())
        if not here:
            return
        block = data.draw(st.sampled_from(here))
        self.bench.forget_row(block)
        assert self.store.rescue([block]) == [block]
        assert self.present() == set(here)

    # -- what must always hold ------------------------------------------------------------

    @invariant()
    def what_is_spoken_for_is_readable_and_right(self) -> None:
        wanted = self.rooted().union(*(one.told for one in self.writers), *(one.reads for one in self.readers))
        answer = self.store.read(sorted(wanted))
        assert answer.faults == []
        for name, body in answer.sound.items():
            assert bytes(body) == self.bodies[name]


def _comparable(done: Collected) -> Collected:
    ids = [b"".join(sorted(split_ids(b"".join(runs)))) for runs in (done.condemned, done.swept)]
    return replace(done, duration_s=0.0, bytes_moved=0, condemned=(ids[0],), swept=(ids[1],), held="")
