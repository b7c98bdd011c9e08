"""What every engine's shelves promise a collector, and what a collection promises on any of them."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from protocol.ids import BlockId, split_ids
from replicator.store.collect import Collected, Plan, foretold
from replicator.store.marks import Marks, MarkSet
from tests.support.blocks import ids_of, sealed_block, sealed_blocks
from tests.support.engines import Bench
from tests.support.store import collect, put, scrub

RAW = range(1, 61, 2)  # Odd seeds do not compress: four to a segment, fifteen segments.


def marks_of(roots: Iterable[BlockId]) -> Marks:
    marks = MarkSet()
    marks.add(b"".join(roots))
    return marks.finish()


def plan_for(
    bench: Bench, roots: Iterable[BlockId], *, at_once: bool = False, grace_s: float = 0.0, is_rehearsal: bool = True
) -> Plan:
    collector = bench.collector()
    mark = collector.begin(is_rehearsal=is_rehearsal)
    return collector.plan(mark, marks_of(roots), grace_s=grace_s, at_once=at_once)


def present(bench: Bench) -> set[BlockId]:
    return set(split_ids(b"".join(bench.store.ids())))


def let_go(bench: Bench, roots: Iterable[BlockId]) -> Collected:
    roots = list(roots)
    first = collect(bench.store, roots, clock=bench.clock)
    return first.joined(collect(bench.store, roots, clock=bench.clock))


# -- what a dry run says is what happens ------------------------------------------------------


def in_words(done: Collected) -> Collected:
    """Without what only a real run has."""
    ids = [b"".join(sorted(split_ids(b"".join(runs)))) for runs in (done.condemned, done.swept)]
    return replace(done, duration_s=0.0, bytes_moved=0, condemned=(ids[0],), swept=(ids[1],), held="")


@pytest.mark.parametrize("kept", [(), RAW[::4], RAW[:8], RAW])
def test_the_list_of_a_dry_run_is_the_list_of_the_run(bench: Bench, kept: Iterable[int]) -> None:
    put(bench.store, sealed_blocks(*RAW))
    bench.crash()  # So that the last segment is closed too.
    roots = ids_of(sealed_blocks(*kept))
    collect(bench.store, ids_of(sealed_blocks(*RAW[:20])), clock=bench.clock)  # Some are sentenced already.
    before = (present(bench), bench.store.statistics())
    told = foretold(plan_for(bench, roots), duration_s=0.0)
    assert (present(bench), bench.store.statistics()) == before
    done = collect(bench.store, roots, clock=bench.clock)
    assert in_words(done) == in_words(told)
    assert done.segments == told.segments and done.bytes_freed == told.bytes_freed


def test_the_dry_run_of_both_runs_at_once_tells_what_both_do(bench: Bench) -> None:
    put(bench.store, sealed_blocks(*RAW))
    roots = ids_of(sealed_blocks(*RAW[::5]))
    told = foretold(plan_for(bench, roots, at_once=True), duration_s=0.0)
    collector = bench.collector()
    results = []
    for is_last in (False, True):
        plan = collector.plan(collector.begin(), marks_of(roots), grace_s=0.0)
        run = collector.carry_out(plan, confirmed=True, shrinks=is_last)
        list(run.steps())
        results.append(run.result(duration_s=0.0))
    assert in_words(results[0].joined(results[1])) == in_words(told)
    assert present(bench) == set(roots)


# -- undo -------------------------------------------------------------------------------------


def test_undo_inside_the_grace_brings_everything_back(bench: Bench) -> None:
    blocks = sealed_blocks(*range(10))
    put(bench.store, blocks)
    for _ in range(3):
        collect(bench.store, [], clock=bench.clock, grace_s=3600.0)
    assert bench.store.statistics().condemned_blocks == 10
    bench.crash()
    assert bench.collector().undo() == 10
    bench.clock.advance(7200)
    collect(bench.store, ids_of(blocks), clock=bench.clock, grace_s=3600.0)
    assert bench.store.read(ids_of(blocks)).faults == []
    assert bench.store.statistics().condemned_blocks == 0


def test_after_the_grace_it_goes_and_not_before(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    collect(bench.store, [], clock=bench.clock, grace_s=3600.0)
    bench.clock.advance(3599)
    assert collect(bench.store, [], clock=bench.clock, grace_s=3600.0).blocks_swept == 0
    bench.clock.advance(2)
    assert collect(bench.store, [], clock=bench.clock, grace_s=3600.0).blocks_swept == 1


def test_a_sentence_keeps_its_date_over_further_runs(bench: Bench) -> None:
    """Else a run every six hours would put off a grace of a day for ever."""
    put(bench.store, sealed_blocks(1))
    for _ in range(5):
        collect(bench.store, [], clock=bench.clock, grace_s=3600.0)
        bench.clock.advance(1000)
    assert present(bench) == set()


# -- who is waited for ------------------------------------------------------------------------


def test_a_reader_with_a_pin_keeps_what_it_reads_from_a_collection_without_grace(bench: Bench) -> None:
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    pin = bench.store.begin("restore")
    for _ in range(4):
        collect(bench.store, [], clock=bench.clock)  # Its snapshot is deleted while it is restored.
    assert bench.store.read(ids_of(blocks)).faults == []
    bench.store.end(pin)
    let_go(bench, [])
    assert present(bench) == set()


def test_a_pin_that_nobody_renews_holds_nothing_up_for_ever(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    bench.store.begin("restore, and its process hangs")
    bench.monotonic.now += bench.config.lease_s + 1
    let_go(bench, [])
    assert present(bench) == set()


def test_a_writer_that_is_told_here_lifts_the_sentence(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    collect(bench.store, [], clock=bench.clock)
    writer = bench.store.begin("w")
    assert bench.store.have(writer, ids_of(sealed_blocks(1)))
    assert bench.store.statistics().condemned_blocks == 0
    bench.store.end(writer)


def test_a_sentence_that_is_lifted_between_plan_and_sweep_is_not_carried_out(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1, 3))
    collect(bench.store, [], clock=bench.clock)
    plan = plan_for(bench, [], is_rehearsal=False)
    assert len(split_ids(plan.sweep)) == 2
    writer = bench.store.begin("w")
    assert bench.store.have(writer, ids_of(sealed_blocks(1)))
    for _ in bench.collector().carry_out(plan, confirmed=True).steps():
        pass
    assert present(bench) == set(ids_of(sealed_blocks(1)))


def test_a_sentence_that_was_passed_anew_since_the_plan_waits_for_its_own_epoch(bench: Bench) -> None:
    """Lifted, and passed again by a later run: the sweep of the earlier plan is not the one to carry it out."""
    put(bench.store, sealed_blocks(1))
    name = ids_of(sealed_blocks(1))
    shelves = bench.store.shelves
    shelves.condemn(name, epoch=2, now_ns=0)
    shelves.revive(name)
    shelves.condemn(name, epoch=7, now_ns=0)
    assert shelves.sweep(name, epoch_below=7) == 0 and present(bench) == set(name)
    assert shelves.sweep(name, epoch_below=8) > 0 and present(bench) == set()


def test_a_rehearsal_begins_no_epoch(bench: Bench) -> None:
    """Or a dry run would tell a later collection that writers from before it are writers from after a sentence."""
    collector = bench.collector()
    told = {collector.begin(is_rehearsal=True).epoch for _ in range(3)}
    real = collector.begin()
    assert told == {real.epoch}
    collector.begin(is_rehearsal=True)
    bench.crash()
    assert bench.collector().begin().epoch == real.epoch + 1


# -- killed between any two steps -------------------------------------------------------------


def test_killed_after_any_step_nothing_needed_is_lost_and_the_next_run_goes_on(bench: Bench) -> None:
    roots = ids_of(sealed_blocks(*RAW[::3]))
    for steps_before in range(40):
        put(bench.store, sealed_blocks(*RAW))
        collect(bench.store, roots, clock=bench.clock)
        collector = bench.collector()
        plan = collector.plan(collector.begin(), marks_of(roots), grace_s=0.0)
        steps = collector.carry_out(plan, confirmed=True).steps()
        ended = not all(next(steps, None) is not None for _ in range(steps_before))
        bench.crash()
        assert bench.store.read(roots).faults == []
        let_go(bench, roots)
        assert present(bench) == set(roots)
        assert scrub(bench.store) == []
        if ended:
            assert steps_before > 3
            return
    raise AssertionError("a collection of some kilobytes does not end")


# -- the switch, the guard, the budget --------------------------------------------------------


def test_the_switch_stops_a_run_that_has_begun(bench: Bench) -> None:
    put(bench.store, sealed_blocks(*RAW))
    collect(bench.store, [], clock=bench.clock)
    collector = bench.collector()
    plan = collector.plan(collector.begin(), marks_of([]), grace_s=0.0)
    run = collector.carry_out(plan, confirmed=True)
    bench.why_off = "kopia#552"
    list(run.steps())
    done = run.result(duration_s=0.0)
    assert (done.stopped, done.blocks_swept, done.segments_removed) == ("kopia#552", 0, 0)
    assert present(bench) == set(ids_of(sealed_blocks(*RAW)))
    bench.why_off = ""
    let_go(bench, [])
    assert present(bench) == set()


@pytest.mark.parametrize(("gone", "is_held"), [(6, False), (7, True), (30, True)])
def test_more_than_a_fifth_of_the_store_at_once_waits_for_a_person(bench: Bench, gone: int, is_held: bool) -> None:
    put(bench.store, sealed_blocks(*RAW))
    roots = ids_of(sealed_blocks(*RAW))[gone:]
    collector = bench.collector()
    done = collector.finish(collector.begin(), marks_of(roots), grace_s=0.0, dry_run=False, confirmed=False)
    assert bool(done.held) is is_held
    assert bench.store.statistics().condemned_blocks == (0 if is_held else gone)
    if is_held:
        assert f"{gone / 30:.0%}" in done.held
        done = collector.finish(collector.begin(), marks_of(roots), grace_s=0.0, dry_run=False, confirmed=True)
        assert (done.held, done.blocks_condemned) == ("", gone)


def test_a_held_run_still_brings_back_what_is_needed_again(bench: Bench) -> None:
    put(bench.store, sealed_blocks(*RAW))
    collect(bench.store, ids_of(sealed_blocks(*RAW))[1:], clock=bench.clock)
    collector = bench.collector()
    roots = ids_of(sealed_blocks(*RAW))[:2]
    done = collector.finish(collector.begin(), marks_of(roots), grace_s=0.0, dry_run=False, confirmed=False)
    assert done.held and done.blocks_revived == 1
    assert bench.store.statistics().condemned_blocks == 0


def test_one_run_moves_no_more_than_its_budget_and_the_next_goes_on(bench: Bench) -> None:
    bench.config = replace(bench.config, rewrite_bytes_max=2500)
    bench.crash()
    put(bench.store, sealed_blocks(*RAW))
    roots = ids_of(sealed_blocks(*RAW[::4]))
    let_go(bench, roots)
    moved = []
    for _ in range(20):
        done = collect(bench.store, roots, clock=bench.clock)
        assert bench.store.read(roots).faults == []
        if not done.bytes_moved:
            break
        moved.append(done.bytes_moved)
        assert done.bytes_moved < 2500 + 4 * 1100
    assert len(moved) > 1
    statistics = bench.store.statistics()
    assert statistics.disk_bytes < 2 * statistics.sealed_bytes + 2 * 5200


def test_segments_are_emptied_oldest_first(bench: Bench) -> None:
    put(bench.store, sealed_blocks(*RAW))
    bench.crash()
    roots = ids_of(sealed_blocks(*RAW[::4]))
    plan = plan_for(bench, roots, at_once=True)
    numbers = [shelf.number for shelf in plan.rewrite]
    assert numbers == sorted(numbers) and len(numbers) > 5


# -- the recount ------------------------------------------------------------------------------


def test_a_segment_that_holds_what_the_index_lost_is_not_removed_and_gives_it_back(bench: Bench) -> None:
    """kopia#5371: compaction could drop entries of the index. Before the bytes go, they are asked."""
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    bench.crash()
    lost = blocks[5].header.block_id
    bench.forget_row(lost)
    done = let_go(bench, [lost])
    assert done.segments_kept
    assert bench.store.read([lost]).faults == []
    for _ in range(3):
        collect(bench.store, [lost], clock=bench.clock)
    assert bench.store.read([lost]).faults == []
    assert present(bench) == {lost}


def test_a_segment_that_cannot_be_read_is_not_emptied_by_what_could_be(bench: Bench) -> None:
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    bench.crash()
    kept = blocks[0].header.block_id
    bench.rot(kept)
    segments = bench.store.statistics().segments
    done = let_go(bench, [kept])
    assert done.segments_removed < segments
    assert [fault.block_id for fault in bench.store.broken()] == [kept]
    put(bench.store, blocks[:1])  # It comes back from a peer.
    assert bench.store.broken() == []
    let_go(bench, [kept])
    assert bench.store.read([kept]).faults == []
    assert bench.store.statistics().segments <= 3


def test_nobody_waits_for_the_repair_of_what_nothing_needs(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1, 3))
    bench.rot(sealed_block(1).header.block_id)
    bench.store.quarantine(scrub(bench.store))
    let_go(bench, ids_of(sealed_blocks(3)))
    assert bench.store.broken() == []


def test_deleted_blocks_never_come_back_by_themselves(bench: Bench) -> None:
    """kopia#563: compaction resurrects deleted entries."""
    put(bench.store, sealed_blocks(*RAW))
    roots = ids_of(sealed_blocks(*RAW[::3]))
    let_go(bench, roots)
    for _ in range(3):
        bench.crash()
        collect(bench.store, roots, clock=bench.clock)
        assert present(bench) == set(roots)
    assert scrub(bench.store) == []


def test_all_gone_takes_no_space(bench: Bench) -> None:
    put(bench.store, sealed_blocks(*RAW))
    bench.crash()
    let_go(bench, [])
    assert bench.store.statistics().disk_bytes <= 64
