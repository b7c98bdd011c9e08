"""Collections as a node runs them: foretold to the byte, held when they take too much, and kept off readers."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocol.ids import BlockId
from replicator.app.upkeep import Collecting, Scrubbing
from replicator.catalog.model import Snapshot
from replicator.core.errors import BlockMissing, DeletionOff, LeaseLost
from replicator.core.progress import Progress
from replicator.core.workers import Idle, Throttled
from replicator.jobs.collection import CollectionJobs, switch_deletion
from replicator.jobs.pins import pinned
from replicator.jobs.restoration import RestoreJobs
from replicator.jobs.runner import JobContext
from replicator.monitor.alerts import find_alerts
from replicator.monitor.scrub import scrub_page
from replicator.repair.pace import ScrubPromise
from replicator.sync.publish import publish_snapshot
from tests.support.clocks import FakeMonotonic, FakeWallClock
from tests.support.nodes import Site, open_site, tree_of, write_tree
from tests.support.store import damage


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path / "home", "home") as site:
        yield site


def context(kind: str, **args: Any) -> JobContext:
    return JobContext(kind, kind, args, Progress(clock=FakeMonotonic()))


async def gc(site: Site, **args: Any) -> dict[str, Any]:
    return await CollectionJobs(site.parts).collect(context("gc", **{"grace_s": 0, "confirmed": True, **args}))


async def foretell(site: Site, *snapshots: Snapshot) -> dict[str, Any]:
    ids = [one.snapshot_id.hex() for one in snapshots]
    return await CollectionJobs(site.parts).foretell(context("foretell", snapshots=ids))


async def three_generations(site: Site, folder: Path) -> list[Snapshot]:
    """Three snapshots of one tree: each changes a third and shares the rest."""
    volume = site.protect(write_tree(folder, files=30, size=20_000))
    found = [await site.take(volume)]
    for seed in (1, 2):
        for number in range(0, 30, 3):
            (folder / f"file-{number + seed:04}").write_bytes(bytes([seed]) * 1000 + b"%d" % number * 2000)
        found.append(await site.take(volume))
    return found


# -- what deleting would free -----------------------------------------------------------------


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
async def test_what_deleting_any_set_of_snapshots_frees_is_told_to_the_byte(
    home: Site, tmp_path: Path, chosen: tuple[int, ...]
) -> None:
    snapshots = await three_generations(home, tmp_path / "data")
    going = [snapshots[number] for number in chosen]
    told = await foretell(home, *going)
    assert told["bytes_freed"] > 0 and len(told["each"]) == len(chosen)
    sealed = home.store.statistics().sealed_bytes
    home.catalog.delete_snapshots([one.snapshot_id for one in going])
    done = await gc(home)
    assert (done["blocks_swept"], done["bytes_swept"]) == (told["blocks_freed"], told["bytes_freed"])
    assert sealed - home.store.statistics().sealed_bytes == told["bytes_freed"]


async def test_together_they_free_more_than_one_by_one(home: Site, tmp_path: Path) -> None:
    first, second, _ = await three_generations(home, tmp_path / "data")
    told = await foretell(home, first, second)
    assert told["bytes_freed"] > sum(one["bytes_freed"] for one in told["each"])


@pytest.mark.parametrize("grace_s", [0, 3600])
async def test_a_dry_run_of_the_job_names_the_same_as_the_run_after_it(
    home: Site, tmp_path: Path, grace_s: int
) -> None:
    snapshots = await three_generations(home, tmp_path / "data")
    home.catalog.delete_snapshots([one.snapshot_id for one in snapshots[:2]])
    before = home.store.statistics()
    told = await gc(home, dry_run=True, grace_s=grace_s)
    assert home.store.statistics() == before
    done = await gc(home, grace_s=grace_s)
    only_real = ("dry_run", "took_s", "bytes_moved", "held")
    assert {k: v for k, v in done.items() if k not in only_real} == {
        k: v for k, v in told.items() if k not in only_real
    }
    assert bool(done["swept"]) is (grace_s == 0) and done["condemned"]


# -- readers ----------------------------------------------------------------------------------


async def test_a_restore_gets_everything_though_its_snapshot_is_deleted_and_collected_without_grace_meanwhile(
    home: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tree(tmp_path / "data", files=700, size=5000)
    snapshot = await home.take(home.protect(data))
    real, batches = home.parts.reader.read, 0

    async def read_and_lose(ids: list[BlockId]) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            monkeypatch.undo()
            home.catalog.delete_snapshots([snapshot.snapshot_id])
            done = await gc(home)
            assert done["blocks_condemned"] > 0 and done["writers_waited_for"] == 1
        return await real(ids)

    monkeypatch.setattr(home.parts.reader, "read", read_and_lose)
    args = {"snapshot": snapshot.snapshot_id.hex(), "target": str(tmp_path / "back")}
    done = await RestoreJobs(home.parts).run(context("restore", **args))
    assert batches >= 3 and done["problems_count"] == 0
    assert tree_of(tmp_path / "back") == tree_of(data)
    await gc(home)
    assert home.store.statistics().blocks == 0


async def test_a_pin_is_renewed_for_as_long_as_its_work_takes(
    home: Site, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    home.store.leases._clock = trio.current_time
    async with pinned(home.store, "a long restore"):
        await trio.sleep(50 * home.store.config.lease_s)
        assert home.store.holders() == ["a long restore"]
    assert home.store.holders() == []


# -- guard and switch -------------------------------------------------------------------------


async def test_a_catalogue_that_lost_its_rows_has_them_back_before_anything_is_judged(
    home: Site, tmp_path: Path
) -> None:
    snapshots = await three_generations(home, tmp_path / "data")
    with home.catalog.db.write() as connection:
        connection.execute("DELETE FROM snapshots")
    done = await gc(home, confirmed=True)
    assert (done["blocks_condemned"], done["blocks_swept"]) == (0, 0)
    assert all(home.holds(snapshot) for snapshot in snapshots)


async def test_a_deletion_of_nearly_everything_is_held_and_is_an_alarm(home: Site, tmp_path: Path) -> None:
    snapshots = await three_generations(home, tmp_path / "data")
    blocks = home.store.statistics().blocks
    home.catalog.delete_snapshots([snapshot.snapshot_id for snapshot in snapshots])
    for _ in range(3):
        done = await gc(home, confirmed=False)
        assert done["held"].startswith("100%") and done["blocks_condemned"] == 0
    assert (home.store.statistics().blocks, home.store.statistics().condemned_blocks) == (blocks, 0)
    [alert] = find_alerts(home.parts, home.mesh, started_ns=home.parts.clock.now_ns())
    assert alert.kind == "gc_held" and "--yes" in alert.hint
    for snapshot in snapshots:
        home.catalog.add_snapshot(snapshot.signed, snapshot.record_block)
    assert (await gc(home, confirmed=False))["held"] == ""
    assert find_alerts(home.parts, home.mesh, started_ns=home.parts.clock.now_ns()) == []


async def test_the_switch_refuses_collections_by_hand_and_by_itself(home: Site, tmp_path: Path) -> None:
    await three_generations(home, tmp_path / "data")
    switch_deletion(home.parts, is_off=True, reason="the provider is down")
    with pytest.raises(DeletionOff, match="the provider is down"):
        await gc(home)
    assert (await gc(home, dry_run=True))["dry_run"]
    submitted: list[str] = []
    jobs: Any = type(
        "Jobs", (), {"is_active": lambda *_: False, "submit": lambda self, kind, *_, **__: submitted.append(kind)}
    )()
    worker = Collecting(jobs, clock=home.parts.clock, why_off=home.parts.collector.why_off)
    for _ in range(3):
        await worker.step()
    assert submitted == []
    assert switch_deletion(home.parts, is_off=False, reason="") == {"deletion_off": ""}
    await worker.step()
    assert submitted == ["gc"]


async def test_config_can_switch_deletion_off_and_a_command_cannot_switch_it_on(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home", gc="off") as home:
        assert "config.toml" in switch_deletion(home.parts, is_off=False, reason="")["deletion_off"]
        with pytest.raises(DeletionOff):
            await gc(home)


# -- publishing under a lease -----------------------------------------------------------------


async def test_a_root_published_by_a_writer_that_overslept_is_taken_back(
    home: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """restic#3569, in the gap between the last commit and the row of the catalogue."""
    monotonic = FakeMonotonic()
    home.store.leases._clock = monotonic
    snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=3, size=1000)))
    home.catalog.delete_snapshots([snapshot.snapshot_id])
    lease = home.store.begin("w")
    monotonic.now += home.store.config.lease_s + 1
    with pytest.raises(LeaseLost):
        publish_snapshot(home.catalog, home.store, lease, snapshot.signed, snapshot.record_block)
    assert home.catalog.snapshots() == []


async def test_a_snapshot_that_appears_while_others_are_marked_is_marked_as_well(
    home: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxmox PSA-2025-00019-1: the list of snapshots is older than what is swept by it."""
    snapshots = await three_generations(home, tmp_path / "data")
    home.catalog.delete_snapshots([one.snapshot_id for one in snapshots[1:]])
    await gc(home, grace_s=3600)
    real, is_first = home.parts.reader.read, True

    async def read_and_publish(ids: list[BlockId]) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            for one in snapshots[1:]:
                home.catalog.add_snapshot(one.signed, one.record_block)
        return await real(ids)

    monkeypatch.setattr(home.parts.reader, "read", read_and_publish)
    await gc(home)
    assert [one.snapshot_id for one in home.catalog.snapshots()] == [one.snapshot_id for one in snapshots]
    packed = b"".join(home.store.ids())
    assert all(one.record.root in packed for one in snapshots)
    assert home.store.statistics().condemned_blocks == 0


async def test_a_failing_read_while_marking_judges_nothing(home: Site, tmp_path: Path) -> None:
    """kopia#552: "could not read" is not "nothing refers to it"."""
    snapshots = await three_generations(home, tmp_path / "data")
    damage(home.store, snapshots[0].record.root)
    home.catalog.delete_snapshots([snapshots[1].snapshot_id])
    with pytest.raises(BlockMissing):
        await gc(home)
    assert home.store.statistics().condemned_blocks == 0


# -- the scrub's worker and its page ----------------------------------------------------------


async def test_the_scrub_steps_aside_and_says_when_it_will_be_done_and_when_it_is_late(
    home: Site, tmp_path: Path
) -> None:
    await home.take(home.protect(write_tree(tmp_path / "data", files=40, size=60_000)))
    clock, busy = FakeWallClock(), True
    home.parts.scrubber._clock = home.store._inspection._clock = clock
    promise = ScrubPromise(every_s=86_400.0, rate_bytes_max=1_000_000)
    worker = Scrubbing(home.parts.scrubber, promise=promise, clock=clock, is_busy=lambda: busy)
    assert isinstance(await worker.step(), Idle)  # Just started.
    for _ in range(3):
        outcome = await worker.step()
        assert isinstance(outcome, Throttled) and home.parts.scrubber.is_between_passes
    busy = False
    for _ in range(4):
        await worker.step()
    parts = dataclasses.replace(home.parts, clock=clock, scrub_promise=promise)
    page = scrub_page(parts, with_segments=True)
    assert page["stage"] == "segments" and 0 < page["complete_in_s"] <= 43_200 and not page["is_late"]
    assert {one["verified_s"] for one in page["segments"]} == {0.0, None}
    clock.advance(43_300)
    assert [alert.kind for alert in find_alerts(parts, home.mesh, started_ns=clock.now_ns())] == ["scrub_late"]
    busy = True  # There is no time left to step aside.
    while not home.parts.scrubber.is_between_passes:
        await worker.step()
    page = scrub_page(parts, with_segments=False)
    assert (page["stage"], page["share_verified"], page["segments_never_read"]) == ("between passes", 1.0, 0)
    assert find_alerts(parts, home.mesh, started_ns=clock.now_ns()) == []
