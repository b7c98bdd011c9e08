"""What every block store promises, asked of each of them."""

import pytest

from protocol.ids import BLOCK_ID_BYTES, BlockId, split_ids
from protocol.wire.envelope import unseal, walk
from protocol.wire.hashing import Kind
from replicator.core.errors import LeaseLost
from replicator.store.leases import LEASE_S
from replicator.store.ports import Cause, Fault
from tests.support.blocks import body_of, ids_of, sealed_block, sealed_blocks
from tests.support.engines import Bench
from tests.support.store import put, scrub


def test_what_was_appended_is_there_at_once_and_counts_once(bench: Bench) -> None:
    lease = bench.store.begin("w")
    blocks = sealed_blocks(1, 2, 3)
    assert bench.store.append(lease, [*blocks, blocks[0]]) == 3
    assert bench.store.append(lease, blocks) == 0
    assert bench.store.have(lease, ids_of(sealed_blocks(1, 2, 3, 4))) == set(ids_of(blocks))
    assert bench.store.read(ids_of(blocks)).sound.keys() == set(ids_of(blocks))


def test_another_writer_sees_what_is_not_committed_yet(bench: Bench) -> None:
    first, second = bench.store.begin("a"), bench.store.begin("b")
    blocks = sealed_blocks(1)
    bench.store.append(first, blocks)
    assert bench.store.append(second, blocks) == 0
    bench.store.commit(second)
    bench.crash()
    assert bench.store.read(ids_of(blocks)).faults == []


def test_a_commit_survives_a_crash_and_lists_its_blocks_in_order(bench: Bench) -> None:
    blocks = sealed_blocks(*range(20))
    put(bench.store, blocks)
    bench.crash()
    packed = b"".join(bench.store.ids())
    assert split_ids(packed) == sorted(ids_of(blocks))
    assert {name: bytes(body) for name, body in bench.store.read(ids_of(blocks)).sound.items()} == {
        block.header.block_id: body_of(seed) for seed, block in enumerate(blocks)
    }


def test_a_read_names_what_is_absent(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    here, absent = ids_of(sealed_blocks(1, 2))
    answer = bench.store.read([here, absent, here, absent])
    assert list(answer.sound) == [here]
    assert answer.faults == [Fault(absent, 0, Cause.MISSING, None)]


def test_sealed_runs_are_whole_blocks_and_prove_themselves(bench: Bench) -> None:
    blocks = [*sealed_blocks(*range(8)), sealed_block(9, kind=Kind.NODE)]
    put(bench.store, blocks)
    answer = bench.store.read_sealed(ids_of(blocks))
    found = {header.block_id: unseal(run, at)[0].kind for run in answer.runs for at, header in walk(run)}
    assert answer.blocks_count == 9
    assert found == {block.header.block_id: block.header.kind for block in blocks}


@pytest.mark.parametrize("verb", ["have", "append", "commit"])
def test_a_lease_that_slept_too_long_is_lost_for_good(bench: Bench, verb: str) -> None:
    lease = bench.store.begin("sleeper")
    blocks = sealed_blocks(1)
    use = {
        "have": lambda: bench.store.have(lease, ids_of(blocks)),
        "append": lambda: bench.store.append(lease, blocks),
        "commit": lambda: bench.store.commit(lease),
    }[verb]
    bench.monotonic.now += LEASE_S + 1
    for _ in range(2):
        with pytest.raises(LeaseLost):
            use()


def test_every_use_renews_a_lease(bench: Bench) -> None:
    lease = bench.store.begin("slow")
    for seed in range(5):
        bench.monotonic.now += LEASE_S - 1
        bench.store.append(lease, sealed_blocks(seed))
    bench.store.commit(lease)


def test_an_ended_lease_cannot_write(bench: Bench) -> None:
    lease = bench.store.begin("w")
    bench.store.end(lease)
    with pytest.raises(LeaseLost):
        bench.store.append(lease, sealed_blocks(1))


def test_damage_is_found_by_reads_and_by_scrub_and_is_never_returned(bench: Bench) -> None:
    blocks = sealed_blocks(1, 2, 3)
    put(bench.store, blocks)
    bad = blocks[1].header.block_id
    bench.rot(bad)
    for answer in (bench.store.read(ids_of(blocks)), bench.store.read_sealed(ids_of(blocks))):
        assert [(f.block_id, f.cause) for f in answer.faults] == [(bad, Cause.CORRUPT)]
    assert bad not in bench.store.read(ids_of(blocks)).sound
    assert [(f.block_id, f.cause) for f in scrub(bench.store)] == [(bad, Cause.CORRUPT)]


def test_a_quarantined_block_is_absent_until_a_sound_copy_comes(bench: Bench) -> None:
    blocks = sealed_blocks(1, 2)
    put(bench.store, blocks)
    bad = blocks[0].header.block_id
    bench.rot(bad)
    faults = scrub(bench.store)
    assert bench.store.quarantine(faults) == 1
    assert bench.store.quarantine(faults) == 0
    bench.crash()
    assert [f.block_id for f in bench.store.broken()] == [bad]
    assert bench.store.statistics().broken_blocks == 1
    assert bench.store.read([bad]).faults == [Fault(bad, Kind.DATA, Cause.CORRUPT, None)]
    lease = bench.store.begin("heal")
    assert bench.store.have(lease, [bad]) == set()
    assert bench.store.append(lease, blocks[:1]) == 1
    bench.store.commit(lease)
    assert bench.store.broken() == []
    assert bytes(bench.store.read([bad]).sound[bad]) == body_of(1)
    assert scrub(bench.store) == []


def test_quarantine_spares_a_block_that_has_moved_since(bench: Bench) -> None:
    blocks = sealed_blocks(1)
    put(bench.store, blocks)
    bad = blocks[0].header.block_id
    bench.rot(bad)
    faults = scrub(bench.store)
    bench.store.quarantine(faults)
    put(bench.store, blocks)
    assert bench.store.quarantine(faults) == 0
    assert bench.store.read([bad]).faults == []


def test_a_scrub_in_small_steps_reads_everything_once(bench: Bench) -> None:
    blocks = sealed_blocks(*range(30))
    put(bench.store, blocks)
    assert bench.store.statistics().oldest_verified_ns is None
    cursor, seen, steps = None, 0, 0
    while True:
        part = bench.store.verify(after=cursor, bytes_max=100)
        seen, steps, cursor = seen + part.blocks, steps + 1, part.cursor
        assert part.faults == []
        if cursor is None:
            break
    assert (seen, bench.store.statistics().oldest_verified_ns) == (30, bench.clock.now_ns())
    assert steps > 3


def test_statistics_count_what_is_here(bench: Bench) -> None:
    assert bench.store.statistics().blocks == 0
    blocks = sealed_blocks(1, 2, 3)
    put(bench.store, blocks)
    found = bench.store.statistics()
    assert found.blocks == 3
    assert found.sealed_bytes == sum(len(block.sealed) for block in blocks)
    assert found.body_bytes == sum(block.header.body_bytes for block in blocks)
    assert found.disk_bytes >= found.sealed_bytes
    assert (found.broken_blocks, found.condemned_blocks, found.read_only) == (0, 0, "")


def test_an_empty_store_answers_everything_with_nothing(bench: Bench) -> None:
    lease = bench.store.begin("w")
    bench.store.commit(lease)
    assert bench.store.have(lease, []) == set()
    assert bench.store.append(lease, []) == 0
    assert list(bench.store.ids()) == []
    assert bench.store.read([]).sound == {}
    assert scrub(bench.store) == []
    assert bench.store.read([BlockId(bytes(BLOCK_ID_BYTES))]).faults[0].cause is Cause.MISSING


# -- looking twice ----------------------------------------------------------------------------


@pytest.mark.parametrize("mood", ["wrong", "refuses"])
def test_a_bad_moment_of_the_disk_is_counted_and_condemns_nothing(bench: Bench, mood: str) -> None:
    blocks = sealed_blocks(1)
    put(bench.store, blocks)
    with bench.bad_moments([mood]):
        part = bench.store.verify(after=None, bytes_max=1 << 20)
    assert (part.faults, part.soft_errors) == ([], 1)
    with bench.bad_moments([mood]):
        assert bench.store.read(ids_of(blocks)).faults == []
    assert bench.store.statistics().soft_errors == 2
    bench.crash()
    assert bench.store.statistics().soft_errors == 2
    assert bench.store.statistics().broken_blocks == 0


def test_rot_is_not_taken_for_a_soft_error(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1, 3))
    bench.rot(sealed_block(1).header.block_id)
    assert len(scrub(bench.store)) == 1
    assert bench.store.statistics().soft_errors == 0


def test_lost_bytes_are_found_like_wrong_ones(bench: Bench) -> None:
    blocks = sealed_blocks(1, 3)
    put(bench.store, blocks)
    bench.lose(blocks[0].header.block_id)
    assert [fault.block_id for fault in scrub(bench.store)] == [blocks[0].header.block_id]


def test_each_segment_has_its_own_age_and_keeps_it_over_a_restart(bench: Bench) -> None:
    put(bench.store, sealed_blocks(*range(1, 21, 2)))  # Raw: several segments.
    ages = bench.store.ages()
    assert len(ages) > 2 and {age.verified_ns for age in ages} == {None}
    first = bench.store.verify(after=None, bytes_max=1 << 20)
    then = bench.clock.now_ns()
    bench.crash()
    assert [age.verified_ns for age in bench.store.ages()] == [then] + [None] * (len(ages) - 1)
    bench.clock.advance(60)
    cursor = first.cursor
    while cursor is not None:
        cursor = bench.store.verify(after=cursor, bytes_max=1 << 20).cursor
    assert [age.verified_ns for age in bench.store.ages()] == [then] + [bench.clock.now_ns()] * (len(ages) - 1)
    assert bench.store.statistics().oldest_verified_ns == then
    assert sum(age.known_bytes for age in ages) >= bench.store.statistics().sealed_bytes


def test_what_the_index_has_lost_is_found_by_its_bytes(bench: Bench) -> None:
    blocks = sealed_blocks(1, 2, 3)
    put(bench.store, blocks)
    lost, absent = blocks[1].header.block_id, sealed_block(99).header.block_id
    bench.forget_row(lost)
    assert bench.store.read([lost]).faults
    assert bench.store.rescue([lost, absent, blocks[0].header.block_id]) == [lost]
    bench.crash()
    assert bench.store.read(ids_of(blocks)).faults == []


def test_what_the_index_has_lost_and_the_disk_too_is_not_rescued(bench: Bench) -> None:
    """A header that says a name proves nothing: the bytes below it must be those of that name."""
    blocks = sealed_blocks(1, 2, 3)
    put(bench.store, blocks)
    rotten, sound = blocks[1].header.block_id, blocks[2].header.block_id
    bench.rot(rotten)
    for lost in (rotten, sound):
        bench.forget_row(lost)
    assert bench.store.rescue([rotten, sound]) == [sound]
    assert [fault.block_id for fault in bench.store.read(ids_of(blocks)).faults] == [rotten]


def test_blocks_of_a_kind_are_listed(bench: Bench) -> None:
    record = sealed_block(9, kind=Kind.RECORD)
    put(bench.store, [*sealed_blocks(1, 2), record])
    assert bench.store.of_kind(Kind.RECORD) == [record.header.block_id]
    assert bench.store.check_index() == ""


# -- leases -----------------------------------------------------------------------------------


def test_a_renewed_lease_lives_on_and_its_holder_is_named(bench: Bench) -> None:
    lease = bench.store.begin("restore of photos")
    for _ in range(5):
        bench.monotonic.now += LEASE_S - 1
        bench.store.renew(lease)
    assert bench.store.holders() == ["restore of photos"]
    bench.monotonic.now += LEASE_S + 1
    assert bench.store.holders() == []
    with pytest.raises(LeaseLost):
        bench.store.renew(lease)
