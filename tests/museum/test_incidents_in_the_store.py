"""Incidents by their numbers in the list that this project was designed from, replayed on every engine."""

import os
from zlib import crc32

import pytest

from protocol.errors import BadBlock
from protocol.ids import BlockId, split_ids
from protocol.wire.envelope import unseal
from protocol.wire.hashing import Kind, block_id
from replicator.core.errors import LeaseLost, StoreFull
from replicator.store.leases import LEASE_S
from replicator.store.marks import MarkSet, are_marked, prefixes
from replicator.store.ports import Cause, Fault
from tests.support.blocks import body_of, from_body, ids_of, sealed_block, sealed_blocks
from tests.support.engines import Bench, LocalBench, MemoryBench
from tests.support.store import collect, put, scrub

RAW = range(1, 61, 2)


def present(bench: Bench) -> set[BlockId]:
    return set(split_ids(b"".join(bench.store.ids())))


def test_01_the_base_of_an_incremental_is_pruned_before_the_mark_sees_either(bench: Bench) -> None:
    """Proxmox PSA-2025-00019-1."""
    base = sealed_blocks(*range(20))
    put(bench.store, base)
    writer = bench.store.begin("incremental")
    assert bench.store.have(writer, ids_of(base)) == set(ids_of(base))
    for _ in range(3):
        collect(bench.store, [], clock=bench.clock)
    bench.store.commit(writer)
    bench.store.end(writer)
    collect(bench.store, ids_of(base), clock=bench.clock)
    assert bench.store.read(ids_of(base)).faults == []


def test_02_no_time_stamp_of_a_file_says_what_is_alive(bench: Bench) -> None:
    """Proxmox bug 5982: a file system that does not keep atime, and live chunks deleted by it."""
    put(bench.store, sealed_blocks(*RAW))
    if isinstance(bench, LocalBench):
        for path in (bench.root / "segments").iterdir():
            os.utime(path, (0, 0))
    for _ in range(3):
        collect(bench.store, ids_of(sealed_blocks(*RAW)), clock=bench.clock)
    assert bench.store.read(ids_of(sealed_blocks(*RAW))).faults == []


def test_03_a_verdict_on_an_old_copy_does_no_harm_to_the_new_one(bench: Bench) -> None:
    """Proxmox' S3 backend: insert against rename-to-corrupt against collection, and two fixes that were not enough."""
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    bad = blocks[0].header.block_id
    bench.rot(bad)
    faults = scrub(bench.store)
    bench.store.quarantine(faults)
    put(bench.store, blocks[:1])  # Healed, while somebody still holds the old verdict.
    collect(bench.store, ids_of(blocks), clock=bench.clock)
    assert bench.store.quarantine(faults) == 0
    assert bench.store.read([bad]).faults == []


def test_04_a_refresh_that_does_not_refresh_and_a_writer_that_only_logs_it(bench: Bench) -> None:
    """restic#2715: the lock's time stamp was not updated, it was removed as stale, and the backup went on."""
    base = sealed_blocks(1)
    put(bench.store, base)
    writer = bench.store.begin("backup")
    bench.store.have(writer, ids_of(base))
    for _ in range(4):
        bench.monotonic.now += LEASE_S * 0.75
        bench.store.renew(writer)
        collect(bench.store, [], clock=bench.clock)
    assert bench.store.read(ids_of(base)).faults == []
    bench.store.end(writer)
    for use in (bench.store.renew, bench.store.commit):
        with pytest.raises(LeaseLost):
            use(writer)


def test_05_the_laptop_sleeps_in_the_middle_of_its_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """restic#3569, where it is hardest to see: the lease was good when the commit began."""
    base = sealed_blocks(1)
    put(bench.store, base)
    writer = bench.store.begin("laptop")
    bench.store.have(writer, ids_of(base))
    bench.store.append(writer, sealed_blocks(2))
    real = bench.store.flush  # type: ignore[attr-defined]

    def sleep_and_flush(**options: bool) -> None:
        monkeypatch.undo()
        real(**options)
        bench.monotonic.now += LEASE_S + 1
        for _ in range(2):
            collect(bench.store, [], clock=bench.clock)

    monkeypatch.setattr(bench.store, "flush", sleep_and_flush)
    with pytest.raises(LeaseLost):
        bench.store.commit(writer)
    assert present(bench) == set()


def test_06_what_was_deleted_is_not_brought_back_by_emptying_a_segment(bench: Bench) -> None:
    """kopia#563."""
    put(bench.store, sealed_blocks(*RAW))
    bench.crash()
    kept = ids_of(sealed_blocks(*RAW[::4]))
    for _ in range(3):
        collect(bench.store, kept, clock=bench.clock)
    bench.crash()
    assert present(bench) == set(kept)


def test_06_a_segment_is_counted_by_its_own_bytes_before_it_goes(bench: Bench) -> None:
    """kopia#5371: entries dropped by compaction."""
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    bench.crash()
    lost = blocks[3].header.block_id
    bench.forget_row(lost)
    for _ in range(3):
        collect(bench.store, [lost], clock=bench.clock)
    assert bench.store.read([lost]).faults == []


def test_06_deletion_has_a_switch(bench: Bench) -> None:
    """kopia#552: deletion was off for everybody until the cause was known."""
    put(bench.store, sealed_blocks(1))
    collect(bench.store, [], clock=bench.clock)
    collector = bench.collector()
    plan = collector.plan(collector.begin(), MarkSet().finish(), grace_s=0.0)
    bench.why_off = "an outage"
    list(collector.carry_out(plan, confirmed=True).steps())
    assert bench.store.read(ids_of(sealed_blocks(1))).faults == []


@pytest.mark.parametrize("years", [-10, 10])
def test_07_epochs_order_not_clocks_a_live_writer_is_waited_for_at_any_time_of_day(bench: Bench, years: int) -> None:
    """kopia compared the store's time with its own."""
    put(bench.store, sealed_blocks(1))
    writer = bench.store.begin("w")
    assert bench.store.have(writer, ids_of(sealed_blocks(1)))
    collect(bench.store, [], clock=bench.clock)
    bench.clock.advance(years * 365 * 86_400)
    for _ in range(3):
        collect(bench.store, [], clock=bench.clock)
    assert bench.store.read(ids_of(sealed_blocks(1))).faults == []


def test_07_a_clock_set_back_deletes_nothing_early(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    collect(bench.store, [], clock=bench.clock, grace_s=3600.0)
    bench.clock.advance(-365 * 86_400)
    bench.clock.advance(7200)
    collect(bench.store, [], clock=bench.clock, grace_s=3600.0)
    assert bench.store.read(ids_of(sealed_blocks(1))).faults == []


def test_09_what_was_called_broken_wrongly_is_still_there_and_comes_back(bench: Bench) -> None:
    """borg#3444: a check that was wrong, and a repair that believed it and deleted."""
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    name = blocks[0].header.block_id
    bench.rot(name)
    bench.store.quarantine(scrub(bench.store))
    bench.crash()
    for _ in range(3):
        collect(bench.store, [name], clock=bench.clock)
    unrot(bench, name, blocks[0].sealed)
    assert bench.store.rescue([name]) == [name]
    assert bench.store.read([name]).faults == [] and bench.store.broken() == []


def unrot(bench: Bench, block: BlockId, sealed: object) -> None:
    """The controller that flipped the bit is replaced: the bytes are what they always were."""
    place = bench.store.broken()[0].place
    assert place is not None
    if isinstance(bench, LocalBench):
        with bench.store.files.path(place.segment).open("r+b") as file:
            file.seek(place.offset)
            file.write(bytes(sealed))  # type: ignore[call-overload]
    else:
        assert isinstance(bench, MemoryBench)
        bench.disk.segments[place.segment][place.offset : place.offset + place.length] = bytes(sealed)  # type: ignore[call-overload]


def test_12_a_block_of_one_kind_never_passes_as_another(bench: Bench) -> None:
    """borg CVE-2016-10099, CVE-2023-36811: a tag that was not bound to its role."""
    body = body_of(1)
    assert len({block_id(kind, body) for kind in Kind}) == len(Kind)
    sealed = bytearray(sealed_block(1).sealed)
    forged = bytearray(sealed)
    forged[5] = Kind.RECORD
    forged[52:56] = crc32(forged[:52]).to_bytes(4, "big")
    with pytest.raises(BadBlock):
        unseal(forged)


def test_15_an_error_that_is_gone_at_the_second_look_is_counted_and_deletes_nothing(bench: Bench) -> None:
    """restic#4774, #5220, #3268."""
    blocks = sealed_blocks(*RAW)
    put(bench.store, blocks)
    for mood in ("wrong", "refuses"):
        cursor = None
        with bench.bad_moments([mood, "", mood]):
            while True:
                part = bench.store.verify(after=cursor, bytes_max=2000)
                assert part.faults == []
                if (cursor := part.cursor) is None:
                    break
    assert present(bench) == set(ids_of(blocks))
    assert bench.store.statistics().soft_errors >= 2


def test_16_a_full_store_frees_space_without_taking_any(bench: Bench) -> None:
    """restic#1140, #1153: no room to free room."""
    if isinstance(bench, LocalBench):
        pytest.skip("with real disks: test_failing_disks.py, and a small file system in tests/e2e")
    assert isinstance(bench, MemoryBench)
    put(bench.store, sealed_blocks(*RAW))
    bench.disk.bytes_max = bench.disk.used_bytes()
    lease = bench.store.begin("w")
    with pytest.raises(StoreFull):
        bench.store.append(lease, sealed_blocks(1001))
    bench.store.end(lease)
    kept = ids_of(sealed_blocks(*RAW[:4], *RAW[4::5]))
    before = bench.disk.used_bytes()
    marks = MarkSet()
    marks.add(b"".join(kept))
    for _ in range(2):
        collector = bench.collector()
        plan = collector.plan(collector.begin(), marks.finish(), grace_s=0.0)
        for _ in collector.carry_out(plan, confirmed=True).steps():
            assert bench.disk.used_bytes() <= before
    assert bench.store.read(kept).faults == []
    for _ in range(2):
        collect(bench.store, kept[:4], clock=bench.clock)
    assert bench.disk.used_bytes() < before / 2


def test_19_a_receive_that_failed_is_nobodys_source(bench: Bench) -> None:
    """Syncthing#1498: the truncated file of a full disk travelled back to where it came from."""
    lease = bench.store.begin("receive")
    bench.store.append(lease, sealed_blocks(1))
    assert present(bench) == set()  # Not in any summary, and so in no offer, before it is durable.
    if isinstance(bench, MemoryBench):
        bench.crash()
        assert bench.store.read(ids_of(sealed_blocks(1))).faults


def test_28_eight_bytes_in_common_keep_a_dead_block_and_never_drop_a_live_one() -> None:
    """WebKit 2017: what identifies is never cut short. Here the marks of a collection are, and err to one side only."""
    live, twin, other = b"12345678" + b"a" * 24, b"12345678" + b"b" * 24, b"87654321" + b"b" * 24
    marks = MarkSet()
    marks.add(live)
    assert are_marked(marks.finish(), prefixes(live + twin + other)).tolist() == [True, True, False]


def test_28_whole_ids_decide_what_is_here(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    real = sealed_block(1).header.block_id
    lookalike = BlockId(real[:31] + bytes([real[31] ^ 1]))
    lease = bench.store.begin("w")
    assert bench.store.have(lease, [lookalike]) == set()
    bench.store.end(lease)
    assert bench.store.read([lookalike]).faults


def test_32_nine_tenths_at_once_wait_for_a_person(bench: Bench) -> None:
    """Atlassian 2022, Kyoto 2021: one call, and everything it was given."""
    put(bench.store, sealed_blocks(*RAW))
    collector = bench.collector()
    for _ in range(3):
        marks = MarkSet()
        marks.add(b"".join(ids_of(sealed_blocks(*RAW[:3]))))
        done = collector.finish(collector.begin(), marks.finish(), grace_s=0.0, dry_run=False, confirmed=False)
        assert done.held
    assert len(present(bench)) == len(RAW) and bench.store.statistics().condemned_blocks == 0


def test_34_the_content_decides_between_copies_not_their_age_or_number(bench: Bench) -> None:
    """Ceph's repair chose the primary's copy."""
    block = sealed_block(1)
    put(bench.store, [block])
    name = block.header.block_id
    for _ in range(2):  # Two rotten copies, the newer ones too; a sound one at the end, then the index is lost.
        bench.rot(name)
        bench.store.quarantine(scrub(bench.store))
        put(bench.store, [from_body(body_of(1))])
    bench.forget_row(name)
    assert bench.store.rescue([name]) == [name]
    assert bytes(bench.store.read([name]).sound[name]) == body_of(1)


def test_34_a_fault_without_a_place_condemns_no_copy(bench: Bench) -> None:
    put(bench.store, sealed_blocks(1))
    name = sealed_block(1).header.block_id
    rumour = Fault(name, Kind.DATA, Cause.CORRUPT, None)
    assert bench.store.quarantine([rumour]) == 0
    assert bench.store.read([name]).faults == []
