"""A collection where there is no room: it does what it has room for, and says what it did."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import BLOCK_ID_BYTES, split_ids
from replicator.core.errors import StoreError, StoreFull, StoreReadOnly
from replicator.core.progress import Progress
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.runner import JobContext
from replicator.store import sweep
from replicator.store.collect import Collector, MarkSet, Plan
from replicator.store.local import LocalStore
from tests.support.blocks import sealed_blocks
from tests.support.clocks import FakeWallClock
from tests.support.nodes import open_site, write_tree
from tests.support.store import collect, open_store, put

BLOCKS = 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with closing(open_store(tmp_path / "s")) as one:
        put(one, sealed_blocks(*range(BLOCKS)))
        yield one


def fail_after(
    monkeypatch: pytest.MonkeyPatch, target: object, name: str, calls: int, error: type[StoreError] = StoreFull
) -> list[int]:
    """So many calls go through, and all later ones find a disk that refuses. Returns the count."""
    real, made = getattr(target, name), [0]

    def once(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] > calls:
            raise error("no room")
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, once)
    return made


def plan_of(collector: Collector) -> Plan:
    return collector.plan(collector.begin(), MarkSet().finish(), grace_s=0.0)


def test_sentences_that_there_was_room_for_are_kept_and_only_those_are_counted(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_ROWS", 5)
    fail_after(monkeypatch, store.ledger, "condemn", 2)
    first = collect(store, [])
    assert first.blocks_condemned == 10 == store.ledger.condemned_count()
    assert first.bytes_condemned == sum(
        place.length for place in store.shelves.places(split_ids(b"".join(first.condemned))).values()
    )
    monkeypatch.undo()
    second = collect(store, [])
    assert second.blocks_swept == 10 and second.blocks_condemned == 10
    joined = first.joined(second)
    assert joined.blocks_condemned == BLOCKS
    assert sum(map(len, joined.condemned)) == BLOCKS * BLOCK_ID_BYTES


def test_without_room_for_a_single_sentence_it_is_an_error(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_after(monkeypatch, store.ledger, "condemn", 0)
    with pytest.raises(StoreFull):
        collect(store, [])


def test_segments_go_also_if_there_is_no_room_to_forget_them(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(store, [])
    fail_after(monkeypatch, store.ledger, "forget_segments", 0)
    assert collect(store, []).bytes_freed > 0


def test_what_is_wholly_dead_is_unlinked_without_a_byte_of_room(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(store, clock=FakeWallClock())
    for _ in range(2):
        for _ in collector.carry_out(plan_of(collector), confirmed=True, shrinks=False).steps():
            pass
    before = store.statistics().disk_bytes
    for verb in ("condemn", "sweep", "insert", "revive", "set_fact", "drop_broken", "forget_segments"):
        fail_after(monkeypatch, store.ledger, verb, 0)
    plan = collector.plan(collector.begin(is_rehearsal=True), MarkSet().finish(), grace_s=3600.0)
    freed = collector.free_dead(plan)
    assert freed > 0
    assert store.statistics().disk_bytes == before - freed


@pytest.mark.parametrize("verb", ["condemn", "sweep", "revive_all"])
def test_a_flush_of_the_ledger_that_fails_in_a_collection_closes_the_store(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    collect(store, [])
    put(store, sealed_blocks(100))
    fail_after(monkeypatch, store.ledger, verb, 0, StoreReadOnly)
    with pytest.raises(StoreReadOnly):
        store.shelves.revive_all() if verb == "revive_all" else collect(store, [])
    assert store.statistics().read_only


async def test_a_collection_without_room_gives_up_the_ballast_and_goes_on_until_all_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_site(tmp_path / "home", "home", ballast="1MiB") as site:
        assert site.parts.ballast.lay(keep_free=0)
        snapshot = await site.take(site.protect(write_tree(tmp_path / "data", files=8, size=5000)))
        site.catalog.delete_snapshots([snapshot.snapshot_id])
        monkeypatch.setattr(sweep, "_ROWS", 2)
        real = site.store.ledger.condemn
        room = [3]

        def condemn(ids: Any, **kwargs: Any) -> None:
            """Room for three batches once the ballast is gone, and for three more after each sweep."""
            if site.parts.ballast.bytes_here or not room[0]:
                raise StoreFull("no room")
            room[0] -= 1
            real(ids, **kwargs)

        real_sweep = site.store.ledger.sweep

        def swept(ids: Any, **kwargs: Any) -> int:
            room[0] = 3
            return real_sweep(ids, **kwargs)

        monkeypatch.setattr(site.store.ledger, "condemn", condemn)
        monkeypatch.setattr(site.store.ledger, "sweep", swept)
        blocks = site.store.statistics().blocks
        assert blocks > 6, "more than there is room for at once"
        args = {"grace_s": 0.0, "confirmed": True}
        done = await CollectionJobs(site.parts).collect(JobContext("gc", "gc", args, Progress(clock=time.monotonic)))
        assert done["blocks_condemned"] == done["blocks_swept"] == blocks
        assert site.store.statistics().blocks == 0
        assert not site.parts.ballast.bytes_here


def test_a_node_on_a_full_disk_ends_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_site(tmp_path / "home", "home") as site:
        refused = fail_after(monkeypatch, site.store.ledger, "set_fact", 0)
    assert refused[0], "the number that catalogue and store share was to be made anew"
