"""The museum: disasters of other people's backup software, replayed against ours.

Each test is one incident with its interleaving. Each was seen to fail once, with the guard it
is about taken out; a test that cannot fail proves nothing.
"""

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import lz4.block
import pytest

from protocol.errors import BadBlock
from protocol.ids import split_ids
from protocol.wire.envelope import HEADER_BYTES, seal, unseal
from protocol.wire.hashing import Kind
from replicator.core.errors import (
    ConfigError,
    LeaseLost,
    SegmentLost,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from replicator.store import segments, verify
from replicator.store.collect import Collector, MarkSet
from replicator.store.config import StoreConfig
from replicator.store.leases import LEASE_S
from replicator.store.ledger import log
from replicator.store.local import LocalStore
from replicator.store.ports import Cause
from tests.support.blocks import body_of, flipped, ids_of, sealed_block, sealed_blocks
from tests.support.clocks import FakeMonotonic, FakeWallClock
from tests.support.store import (
    SMALL_SEGMENTS,
    collect,
    copy_ledger,
    damage,
    open_store,
    put,
    replace_ledger,
    scrub,
    segment_of,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def all_ids(store: LocalStore) -> set[bytes]:
    return set(split_ids(b"".join(store.ids())))


def fail_with(code: int):  # type: ignore[no-untyped-def]
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# -- collectors that race with writers --------------------------------------------------------


def test_base_pruned_while_an_incremental_is_written(root: Path) -> None:
    """Proxmox Backup Server PSA-2025-00019-1: S1 builds on S0, S0 is pruned before the mark sees either."""
    store = open_store(root)
    base = sealed_blocks(*range(20))
    put(store, base)
    writer = store.begin("incremental")
    assert store.have(writer, ids_of(base)) == set(ids_of(base))
    collect(store, [])  # S0 is gone from the roots, S1 is not among them yet.
    collect(store, [])
    store.append(writer, sealed_blocks(100))
    store.commit(writer)
    store.end(writer)
    collect(store, ids_of(base))
    assert store.read(ids_of(base)).faults == []


@pytest.mark.parametrize("begins", ["before the mark", "after the mark"])
def test_a_writer_that_ends_while_roots_are_read_keeps_what_it_was_told(root: Path, begins: str) -> None:
    store = open_store(root)
    put(store, sealed_blocks(1))
    collect(store, [])  # Nothing speaks for it: condemned.
    collector = Collector(store, clock=FakeWallClock())
    early = store.begin("early")
    if begins == "after the mark":
        store.end(early)
    mark = collector.begin()
    writer = early if begins == "before the mark" else store.begin("late")
    assert store.have(writer, ids_of(sealed_blocks(1)))
    store.end(writer)  # Its root is published now: too late for the roots that were read.
    marks = MarkSet()
    collector.finish(mark, marks.finish(), grace_s=0.0, dry_run=False)
    assert store.read(ids_of(sealed_blocks(1))).faults == []


def test_a_sweep_between_two_looks_at_the_ledger_is_not_called_present(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence is carried out in the middle of `have`: the answer must be the truth afterwards."""
    store = open_store(root)
    put(store, sealed_blocks(1))
    collect(store, [])
    real_present = store.ledger.present
    real_condemned = store.ledger.condemned_among

    def sweep_now() -> None:
        monkeypatch.undo()
        collect(store, [])

    def present_then_sweep(ids):  # type: ignore[no-untyped-def]
        answer = real_present(ids)
        sweep_now()
        return answer

    def condemned_then_sweep(ids):  # type: ignore[no-untyped-def]
        answer = real_condemned(ids)
        sweep_now()
        return answer

    for name, replacement in (("present", present_then_sweep), ("condemned_among", condemned_then_sweep)):
        put(store, sealed_blocks(1))
        collect(store, [])
        writer = store.begin("w")
        # A writer of an older epoch would stop the sweep; this one began after the mark.
        store.leases._alive.clear()
        store.leases._alive[writer.number] = writer
        writer.epoch = 10**6
        monkeypatch.setattr(store.ledger, name, replacement)
        told = store.have(writer, ids_of(sealed_blocks(1)))
        assert told <= all_ids(store)
        store.end(writer)


def test_a_writer_that_slept_past_its_lease_cannot_commit(root: Path) -> None:
    """restic#3569: the laptop sleeps, the lock expires, prune runs, the laptop wakes and writes."""
    monotonic = FakeMonotonic()
    store = open_store(root, monotonic=monotonic)
    base = sealed_blocks(1, 2)
    put(store, base)
    sleeper = store.begin("laptop")
    assert store.have(sleeper, ids_of(base)) == set(ids_of(base))
    monotonic.now += LEASE_S + 1
    collect(store, [])
    collect(store, [])
    assert all_ids(store) == set()
    for use in (lambda: store.append(sleeper, sealed_blocks(3)), lambda: store.commit(sleeper)):
        with pytest.raises(LeaseLost):
            use()
    retry = store.begin("laptop, again")
    assert store.have(retry, ids_of(base)) == set()
    assert store.append(retry, base) == 2
    store.commit(retry)


def test_a_mark_that_cannot_read_condemns_nothing(root: Path) -> None:
    """kopia#552: blobs deleted during an outage. The walk raises, so `finish` is never reached."""
    store = open_store(root)
    blocks = sealed_blocks(1, 2)
    put(store, blocks)
    damage(store, blocks[0].header.block_id)
    collector = Collector(store, clock=FakeWallClock())
    collector.begin()
    answer = store.read(ids_of(blocks))
    assert [fault.block_id for fault in answer.faults] == [blocks[0].header.block_id]
    assert blocks[0].header.block_id not in answer.sound  # "Could not read" is never an empty answer.
    assert store.statistics().condemned_blocks == 0
    assert all_ids(store) == set(ids_of(blocks))


def test_a_segment_that_fills_up_during_a_collection_is_not_empty(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was appended between the flush and the look at the files is in no ledger yet, and is not garbage."""
    store = open_store(root)
    put(store, sealed_blocks(1))
    writer = store.begin("fast")
    fresh = sealed_blocks(*range(11, 61, 2))  # Raw: several segments full.
    real_live = store.ledger.live_bytes

    def append_meanwhile() -> dict[int, int]:
        monkeypatch.undo()
        store.append(writer, fresh)
        return real_live()

    monkeypatch.setattr(store.ledger, "live_bytes", append_meanwhile)
    collect(store, [])
    store.commit(writer)
    assert store.read(ids_of(fresh)).faults == []


def test_moving_a_segment_out_never_drops_what_it_could_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAST'17, borg#3444: repair that deletes. One failing read while compacting, then all is well again."""
    store = open_store(root)
    blocks = sealed_blocks(*range(1, 13, 2))
    put(store, blocks)
    store.close()
    store = open_store(root)
    kept = min(ids_of(blocks), key=lambda name: store.ledger.places([name])[name][0].offset)
    monkeypatch.setattr(verify.os, "pread", fail_with(errno.EIO))
    for _ in range(3):
        collect(store, [kept])
    monkeypatch.undo()
    assert store.read_sealed([kept]).faults or store.read([kept]).faults == []
    assert segment_bytes_hold(root, kept)


def test_a_segment_with_a_broken_block_is_not_removed_before_it_heals(root: Path) -> None:
    store = open_store(root)
    blocks = sealed_blocks(*range(1, 13, 2))
    put(store, blocks)
    kept = blocks[0].header.block_id
    damage(store, kept)
    path = segment_of(store, kept)
    store.quarantine(scrub(store))
    store.close()
    store = open_store(root)
    put(store, sealed_blocks(99))
    for _ in range(3):
        collect(store, [kept])
    assert path.exists()
    put(store, blocks[:1])
    for _ in range(3):
        collect(store, [kept])
    assert not path.exists() or path.stat().st_size <= segments.SEGMENT_HEADER_BYTES
    assert store.read([kept]).faults == []


def segment_bytes_hold(root: Path, block: bytes) -> bool:
    return any(block in path.read_bytes() for path in (root / "segments").iterdir())


def test_the_name_of_a_deleted_segment_is_never_used_again(root: Path) -> None:
    """Else a ledger put back from a copy would take new bytes for old ones it has accounted for."""
    store = open_store(root)
    put(store, sealed_blocks(1, 3, 5, 7, 9))
    highest = max(store.files.numbers())
    store.close()
    for forgets_the_ledger in (False, True):
        store = open_store(root)
        for _ in range(2):
            collect(store, [])
        store.close()
        if forgets_the_ledger:
            replace_ledger(root, None)
        store = open_store(root)
        put(store, sealed_blocks(2, 4))
        assert min(place.segment for place, _ in store.ledger.places(ids_of(sealed_blocks(2, 4))).values()) > highest
        highest = max(store.files.numbers())
        store.close()


# -- memory and disks that lie ----------------------------------------------------------------


def test_a_bit_that_flips_between_hash_and_pack_is_caught_before_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """restic#4523: the compressor, or the memory under it, made other bytes than it was given."""
    body = body_of(2, 4000)
    real = lz4.block.compress
    caught = 0
    packed = real(body, store_size=False)
    for bit in range(0, len(packed) * 8, 7):
        monkeypatch.setattr(lz4.block, "compress", lambda *_, bit=bit, **__: flipped(packed, bit))
        try:
            sealed = seal(Kind.DATA, body)
        except BadBlock:
            caught += 1
        else:
            assert lz4.block.decompress(sealed[HEADER_BYTES:], uncompressed_size=len(body)) == body
    assert caught > 40


def test_a_soft_read_error_condemns_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """restic#4774: the check fails once and passes on the second read."""
    store = open_store(root)
    blocks = sealed_blocks(1, 2, 3)
    put(store, blocks)
    real = os.pread
    moods = iter(["wrong", *["right"] * 1000])

    def flaky(handle: int, count: int, offset: int) -> bytes:
        data = real(handle, count, offset)
        return flipped(data, 500) if next(moods) == "wrong" else data

    monkeypatch.setattr(verify.os, "pread", flaky)
    assert scrub(store) == []
    moods = iter(["wrong", *["right"] * 1000])
    assert store.read(ids_of(blocks)).faults == []


def test_one_unreadable_sector_does_not_condemn_its_neighbours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    blocks = sealed_blocks(1, 3, 5)
    put(store, blocks)
    bad, _ = store.ledger.places(ids_of(blocks))[blocks[1].header.block_id]
    real = os.pread

    def bad_sector(handle: int, count: int, offset: int) -> bytes:
        if offset <= bad.offset + 100 < offset + count:
            raise OSError(errno.EIO, "bad sector")
        return real(handle, count, offset)

    monkeypatch.setattr(verify.os, "pread", bad_sector)
    faults = store.read(ids_of(blocks)).faults
    assert [(fault.block_id, fault.cause) for fault in faults] == [(blocks[1].header.block_id, Cause.UNREADABLE)]
    # The same in a rebuild: what can be read around it is found.
    store.close()
    replace_ledger(root, None)
    whole_reads_fail = iter([True, *[False] * 10**6])

    def bad_sector_4k(handle: int, count: int, offset: int) -> bytes:
        if next(whole_reads_fail):
            raise OSError(errno.EIO, "bad sector")
        return real(handle, count, offset)

    monkeypatch.setattr(verify.os, "pread", bad_sector_4k)
    store = open_store(root)
    assert all_ids(store) == set(ids_of(blocks))


# -- the ledger is a cache --------------------------------------------------------------------


@pytest.mark.parametrize("way", ["deleted", "scribbled", "truncated", "empty"])
@pytest.mark.parametrize("which", ["all", "manifest", "notes.sqlite", "*.run", "*.log"])
def test_a_ledger_that_is_lost_or_damaged_is_rebuilt_from_the_segments(root: Path, which: str, way: str) -> None:
    """borg#4829: a bug corrupted the index. It can be thrown away, as a whole or any file of it."""
    store = open_store(root)
    blocks = sealed_blocks(*range(200))
    for at in range(0, 200, 10):
        put(store, blocks[at : at + 10])
    store.ledger.wait_merged()
    store.close()
    for path in sorted((root / "ledger").glob("*" if which == "all" else which)):
        content = path.read_bytes()
        match way:
            case "deleted":
                path.unlink()
            case "scribbled":
                path.write_bytes(os.urandom(len(content)))
            case "truncated":
                path.write_bytes(content[: len(content) // 2])
            case "empty":
                path.write_bytes(b"")
    store = open_store(root)
    assert all_ids(store) == set(ids_of(blocks))
    assert store.read(ids_of(blocks)).faults == []
    assert store.statistics().blocks == 200


def test_a_full_disk_is_not_taken_for_a_damaged_ledger(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    blocks = sealed_blocks(1)
    put(store, blocks)
    damage(store, blocks[0].header.block_id)
    store.quarantine(scrub(store))
    store.close()

    def full(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("replicator.core.database.sqlite3.connect", full)
    with pytest.raises(StoreError):
        open_store(root)
    monkeypatch.undo()
    assert len(open_store(root).broken()) == 1


def test_an_older_ledger_finds_what_has_moved_and_does_not_promise_what_is_gone(root: Path, tmp_path: Path) -> None:
    """The ledger comes back from last night's copy; since then segments were emptied and removed."""
    store = open_store(root)
    blocks = sealed_blocks(*range(1, 41, 2))
    put(store, blocks)
    store.close()
    copy = copy_ledger(root, tmp_path / "copy")
    kept, dropped = ids_of(blocks[::4]), ids_of(blocks)[1:]
    store = open_store(root)
    for _ in range(2):
        collect(store, kept)
    store.close()
    replace_ledger(root, copy)
    store = open_store(root)
    assert store.read(kept).faults == []
    writer = store.begin("w")
    told = store.have(writer, dropped)
    assert {fault.block_id for fault in store.read(sorted(told)).faults} == set()


def test_an_older_ledger_finds_the_healed_copy_and_not_the_broken_one(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    blocks = sealed_blocks(1, 3, 5)
    put(store, blocks)
    store.close()
    copy = copy_ledger(root, tmp_path / "copy")
    store = open_store(root)
    damage(store, blocks[1].header.block_id)
    store.quarantine(scrub(store))
    put(store, blocks)
    store.close()
    replace_ledger(root, copy)
    store = open_store(root)
    assert store.read(ids_of(blocks)).faults == []


def test_an_older_ledger_learns_of_a_block_that_a_rebuild_brought_back(root: Path, tmp_path: Path) -> None:
    """Found by the state machine: swept, copied, rebuilt, relied on again, and the copy put back."""
    store = open_store(root)
    blocks = sealed_blocks(1)
    put(store, blocks)
    for _ in range(2):
        collect(store, [])
    store.close()
    copy = copy_ledger(root, tmp_path / "copy")
    replace_ledger(root, None)
    store = open_store(root)
    put(store, blocks)
    store.close()
    replace_ledger(root, copy)
    assert open_store(root).read(ids_of(blocks)).faults == []


def test_a_store_of_a_newer_release_is_refused(root: Path) -> None:
    open_store(root).close()
    (root / "format").write_text("replicator store 2\n")
    with pytest.raises(ConfigError):
        open_store(root)


def test_two_processes_cannot_have_one_store(root: Path) -> None:
    store = open_store(root)
    with pytest.raises(StoreLocked):
        open_store(root)
    store.close()
    open_store(root).close()


# -- full and failing disks -------------------------------------------------------------------


def test_a_nearly_full_disk_refuses_writes_before_the_end_and_still_collects(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """restic#1140: with the last byte gone, even deleting fails."""
    store = open_store(root, config=StoreConfig(segment_bytes_max=4096, reserve_bytes_max=1_000_000))
    old = sealed_blocks(1, 3, 5, 7, 9)
    put(store, old)
    room = SimpleNamespace(f_bavail=1000, f_frsize=1000, f_blocks=10**9)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    writer = store.begin("w")
    with pytest.raises(StoreFull):
        store.append(writer, sealed_blocks(11))
    assert store.append(writer, old) == 0  # What is here already needs no room.
    store.commit(writer)
    store.end(writer)
    freed = sum(collect(store, []).bytes_freed for _ in range(2))
    assert freed > 4000
    room.f_bavail = 10**6
    put(store, sealed_blocks(11))


def test_a_disk_that_fills_up_in_the_middle_of_an_append_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    first, second = sealed_blocks(1, 3), sealed_blocks(5, 7)
    put(store, first)
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda handle, run, offset: real(handle, [memoryview(run[0])[:100]], offset))
    monkeypatch.setattr(segments.os, "pwrite", fail_with(errno.ENOSPC))
    writer = store.begin("w")
    with pytest.raises(StoreFull):
        store.append(writer, second)
    monkeypatch.undo()
    assert store.have(writer, ids_of(second)) == set()
    store.append(writer, second)
    store.commit(writer)
    store.close()
    store = open_store(root)
    assert store.read(ids_of(first + second)).faults == []


def test_a_short_write_is_carried_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    real, real_one = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda handle, run, offset: real(handle, [memoryview(run[0])[:10]], offset))
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: real_one(handle, bytes(data)[:333], offset))
    blocks = sealed_blocks(1, 2, 3)
    put(store, blocks)
    assert store.read(ids_of(blocks)).faults == []


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_flush_poisons_the_store_and_is_never_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """PostgreSQL 2018, Syncthing#3711: the kernel marks the pages clean, so a second fsync "succeeds"."""
    store = open_store(root)
    old = sealed_blocks(1)
    put(store, old)
    if call == "fsync":
        store.close()
        store = open_store(root)  # So that the next append makes a new segment, whose name must be durable.
    writer = store.begin("w")
    monkeypatch.setattr(os, call, fail_with(errno.EIO))
    with pytest.raises(StoreReadOnly):
        store.append(writer, sealed_blocks(2))
        store.commit(writer)
    monkeypatch.undo()
    for use in (
        lambda: store.commit(writer),
        lambda: store.append(writer, sealed_blocks(3)),
        store.flush,
    ):
        with pytest.raises(StoreReadOnly):
            use()
    assert store.statistics().read_only
    assert store.read(ids_of(old)).faults == []
    assert scrub(store) == []
    store.close()
    assert open_store(root).read(ids_of(old)).faults == []


def test_a_ledger_that_cannot_be_flushed_poisons_the_store_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    put(store, sealed_blocks(1))
    writer = store.begin("w")
    store.append(writer, sealed_blocks(2))
    monkeypatch.setattr(log.os, "fdatasync", fails_for(store, "ledger", errno.EIO))
    with pytest.raises(StoreReadOnly):
        store.commit(writer)
    monkeypatch.undo()
    with pytest.raises(StoreReadOnly):
        store.commit(writer)


def test_a_full_ledger_is_retried_and_then_commits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    writer = store.begin("w")
    store.append(writer, sealed_blocks(2))
    real = os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".log"):
            real(handle, bytes(data)[:7], offset)  # Some of it still went in.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, offset)

    monkeypatch.setattr(log.os, "pwrite", full)
    with pytest.raises(StoreFull):
        store.commit(writer)
    monkeypatch.undo()
    store.commit(writer)
    assert all_ids(store) == set(ids_of(sealed_blocks(2)))
    store.close()
    assert all_ids(open_store(root)) == set(ids_of(sealed_blocks(2)))


def fails_for(store: LocalStore, part: str, code: int) -> Callable[[int], None]:
    """`fdatasync`, failing for the files of one folder of a store."""
    real = os.fdatasync

    def fdatasync(handle: int) -> None:
        if f"/{part}/" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        real(handle)

    return fdatasync


# -- crashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 30, HEADER_BYTES, HEADER_BYTES + 1, 500])
def test_a_torn_tail_was_never_acknowledged_and_is_in_nobodys_way(root: Path, cut: int) -> None:
    store = open_store(root, config=StoreConfig(reserve_bytes_max=0))
    acked, torn = sealed_blocks(1, 2), sealed_block(3)
    put(store, acked)
    path = segment_of(store, acked[0].header.block_id)
    store.close()
    with path.open("ab") as file:
        file.write(bytes(torn.sealed)[:cut])
    before = path.read_bytes()
    store = open_store(root)
    assert (store.replayed.blocks, store.replayed.skipped_bytes) == (0, cut)
    assert all_ids(store) == set(ids_of(acked))
    put(store, [torn, sealed_block(5)])
    assert path.read_bytes() == before  # New blocks go to a new segment.
    store.close()
    store = open_store(root)
    assert (store.replayed.blocks, store.replayed.skipped_bytes) == (0, 0)
    assert store.read(ids_of([*acked, torn, sealed_block(5)])).faults == []


def test_what_was_flushed_and_not_entered_is_found_again(root: Path) -> None:
    """Killed between the flush of the segment and the ledger's commit."""
    store = open_store(root)
    writer = store.begin("w")
    blocks = sealed_blocks(1, 2)
    store.append(writer, blocks)
    store.close()
    store = open_store(root)
    assert store.replayed.blocks == 2
    assert store.read(ids_of(blocks)).faults == []


def test_readers_of_threads_that_have_ended_are_closed(root: Path) -> None:
    """A node lives for months, and its worker threads do not: each left two descriptors behind."""
    import threading

    store = open_store(root, config=SMALL_SEGMENTS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        thread = threading.Thread(target=store.statistics)
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_segment_deleted_under_the_writer_is_never_acknowledged(root: Path) -> None:
    """Flushing a file without a name succeeds, and means nothing: also not to a second writer in the same flush."""
    with closing(LocalStore.open(root)) as store:
        first, second = store.begin("first"), store.begin("second")
        store.append(first, [sealed_block(1)])
        store.append(second, [sealed_block(2)])
        store.files.path(store.files.numbers()[0]).unlink()
        with pytest.raises(SegmentLost):
            store.commit(first)
        with pytest.raises(LeaseLost):
            store.commit(second)
        again = store.begin("again")
        store.append(again, [sealed_block(1), sealed_block(2)])
        store.commit(again)
        ids = [sealed_block(1).header.block_id, sealed_block(2).header.block_id]
        assert set(store.read(ids).sound) == set(ids)


def test_the_totals_are_the_sums_of_the_rows_after_every_kind_of_change(root: Path) -> None:
    """They are kept, not counted; a drift would show a wrong size for ever."""
    with closing(open_store(root, config=SMALL_SEGMENTS)) as store:
        put(store, sealed_blocks(*range(60)))
        put(store, sealed_blocks(*range(30, 90)))
        damage(store, ids_of(sealed_blocks(3))[0])
        store.quarantine(scrub(store))
        put(store, sealed_blocks(3))
        for _ in range(2):
            collect(store, ids_of(sealed_blocks(*range(0, 90, 3))))
        [*ids] = (packed[at : at + 32] for packed in store.ids() for at in range(0, len(packed), 32))
        found = [unseal(run)[0] for block in ids for run in store.read_sealed([block]).runs]
        assert store.ledger.totals() == (len(ids), sum(h.sealed_bytes for h in found), sum(h.body_bytes for h in found))
        assert len(ids) == 30
        live = sum(store.ledger.live_bytes().values())
    with closing(open_store(root, config=SMALL_SEGMENTS)) as again:
        assert again.ledger.totals() == store.ledger.totals()
        assert sum(again.ledger.live_bytes().values()) == live == store.ledger.totals()[1]
