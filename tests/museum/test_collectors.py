"""Collectors that race with writers (incidents 1 to 8, 16, 34)."""

import errno
from pathlib import Path

import pytest

from replicator.core.errors import (
    LeaseLost,
)
from replicator.store import segments, verify
from replicator.store.collect import Collector, MarkSet
from replicator.store.leases import LEASE_S
from tests.museum.exhibits import all_ids, fail_with, segment_bytes_hold
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.clocks import FakeMonotonic, FakeWallClock
from tests.support.store import (
    collect,
    damage,
    open_store,
    put,
    replace_ledger,
    scrub,
    segment_of,
)


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
    collector.finish(mark, marks.finish(), grace_s=0.0, dry_run=False, confirmed=True)
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
