"""What stands between a wrong clock, a thief or a full disk, and what a node lets go."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import SnapshotId
from replicator.catalog.model import Snapshot, Volume
from replicator.core.errors import DeletionOff, StoreFull
from replicator.core.progress import Progress
from replicator.jobs.collection import CollectionJobs, switch_deletion
from replicator.jobs.pruning import prune_volume
from replicator.jobs.runner import JobContext
from replicator.monitor.alerts import find_alerts
from tests.support.clocks import FakeMonotonic
from tests.support.nodes import Site, open_site, write_tree

HOUR_S, YEAR_S = 3600, 365 * 86_400


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path / "home", "home") as site:
        yield site


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "SetClock":
    clock = SetClock()
    monkeypatch.setattr(time, "time_ns", clock.now_ns)
    return clock


class SetClock:
    """The machine's wall clock, which somebody sets."""

    def __init__(self) -> None:
        self._real = time.time_ns
        self.ahead_s = 0.0

    def now_ns(self) -> int:
        return self._real() + int(self.ahead_s * 1e9)


async def gc(site: Site, **args: Any) -> dict[str, Any]:
    return await CollectionJobs(site.parts).collect(JobContext("gc", "gc", args, Progress(clock=FakeMonotonic())))


def alerts(site: Site) -> dict[str, str]:
    return {one.kind: one.text + " " + one.hint for one in find_alerts(site.parts, site.mesh, started_ns=0)}


async def snapshots(site: Site, folder: Path, count: int) -> tuple[Volume, list[Snapshot]]:
    """All of one tree, each with a file of its own that is small beside it."""
    volume = site.protect(write_tree(folder, files=40, size=20_000))
    found = []
    for number in range(count):
        (folder / f"only-{number}").write_bytes(b"%d" % number * 100)
        if number:
            (folder / f"only-{number - 1}").unlink()
        found.append(await site.take(volume))
    return volume, found


# -- the clock --------------------------------------------------------------------------------


@pytest.mark.parametrize("leap_s", [10 * YEAR_S, -10 * YEAR_S, 2 * HOUR_S, -2 * HOUR_S])
async def test_a_clock_that_leaps_ends_no_grace_and_no_shelf_and_there_is_an_alert_until_it_is_right(
    home: Site, tmp_path: Path, clock: SetClock, leap_s: int
) -> None:
    volume, taken = await snapshots(home, tmp_path / "data", 3)
    home.catalog.delete_snapshots([taken[0].snapshot_id])
    condemned = (await gc(home, grace_s=HOUR_S, confirmed=True))["blocks_condemned"]
    assert condemned and not alerts(home)
    clock.ahead_s = leap_s
    home.catalog.set_protection(volume.volume_id, every_s=HOUR_S, keep="1")
    assert prune_volume(home.parts, volume) == 0
    with pytest.raises(DeletionOff, match="clock went"):
        await gc(home, grace_s=HOUR_S, confirmed=True)
    assert "gc --on" in alerts(home)["clock_untrusted"]
    clock.ahead_s = 0
    assert "clock_untrusted" not in alerts(home)
    done = await gc(home, grace_s=HOUR_S, confirmed=True)
    assert (done["blocks_swept"], home.store.statistics().condemned_blocks) == (0, condemned)
    assert prune_volume(home.parts, volume) == 1


async def test_a_leap_while_a_collection_is_carried_out_stops_it(
    home: Site, tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, taken = await snapshots(home, tmp_path / "data", 3)
    home.catalog.delete_snapshots([one.snapshot_id for one in taken])
    await gc(home, grace_s=HOUR_S, confirmed=True)
    real = home.parts.collector.plan

    def plan_and_leap(*args: Any, **more: Any) -> Any:
        clock.ahead_s = YEAR_S
        return real(*args, **more)

    monkeypatch.setattr(home.parts.collector, "plan", plan_and_leap)
    done = await gc(home, grace_s=HOUR_S, confirmed=True)
    assert done["stopped"] and done["blocks_swept"] == 0


async def test_a_restart_does_not_forget_that_the_clock_leapt_and_a_person_can_say_that_it_is_right(
    tmp_path: Path, clock: SetClock
) -> None:
    with open_site(tmp_path / "home", "home") as home:
        assert not home.parts.brake.why()
        clock.ahead_s = YEAR_S
        assert home.parts.brake.why()
    with open_site(tmp_path / "home", "home") as home:
        with pytest.raises(DeletionOff):
            await gc(home)
        assert switch_deletion(home.parts, is_off=False, reason="") == {"deletion_off": ""}
        await gc(home)
        assert "clock_untrusted" not in alerts(home)


async def test_a_sentence_from_a_clock_that_was_ahead_is_passed_anew_and_not_waited_for(
    home: Site, tmp_path: Path, clock: SetClock
) -> None:
    _, taken = await snapshots(home, tmp_path / "data", 3)
    home.catalog.delete_snapshots([taken[0].snapshot_id])
    clock.ahead_s = 10 * YEAR_S
    home.parts.brake.trust()
    condemned = (await gc(home, grace_s=HOUR_S, confirmed=True))["blocks_condemned"]
    clock.ahead_s = 0
    home.parts.brake.trust()
    again = await gc(home, grace_s=HOUR_S, confirmed=True)
    assert (again["blocks_revived"], again["blocks_condemned"], again["blocks_swept"]) == (condemned, 0, 0)
    assert (await gc(home, grace_s=HOUR_S, confirmed=True))["blocks_condemned"] == condemned
    await gc(home, grace_s=0, confirmed=True)
    assert home.store.statistics().condemned_blocks == 0


# -- many at once, or one after the other -----------------------------------------------------


def delete(site: Site, ids: list[SnapshotId]) -> None:
    site.catalog.delete_snapshots(ids)


async def test_a_fifth_of_the_snapshots_in_small_steps_is_held_also_across_a_restart_until_a_person_confirms(
    tmp_path: Path, clock: SetClock
) -> None:
    with open_site(tmp_path / "home", "home") as home:
        _, taken = await snapshots(home, tmp_path / "data", 25)
        ids = [one.snapshot_id for one in taken]
        for at in (0, 2):
            delete(home, ids[at : at + 2])
            assert not (await gc(home, grace_s=HOUR_S))["held"]
    with open_site(tmp_path / "home", "home") as home:
        delete(home, ids[4:6])
        done = await gc(home, grace_s=HOUR_S)
        assert done["held"].startswith("6 of 25 snapshots are gone within a day") and done["blocks_condemned"] == 0
        assert "6 of 25" in alerts(home)["gc_held"]
    with open_site(tmp_path / "home", "home") as home:
        clock.ahead_s = 26 * HOUR_S  # The day is over, and nobody has said a word.
        home.parts.brake.trust()
        assert (await gc(home, grace_s=HOUR_S))["held"] and "gc_held" in alerts(home)
        assert (await gc(home, grace_s=HOUR_S, confirmed=True))["blocks_condemned"]
        assert "gc_held" not in alerts(home)
        delete(home, ids[6:8])
        assert not (await gc(home, grace_s=HOUR_S))["held"]


async def test_what_was_deleted_two_days_ago_does_not_count_today(home: Site, tmp_path: Path, clock: SetClock) -> None:
    _, taken = await snapshots(home, tmp_path / "data", 25)
    ids = [one.snapshot_id for one in taken]
    for at in (0, 4, 8):
        delete(home, ids[at : at + 4])
        assert not (await gc(home, grace_s=HOUR_S))["held"]
        clock.ahead_s += 49 * HOUR_S
        home.parts.brake.trust()


async def test_snapshots_that_go_as_others_come_are_no_alarm(home: Site, tmp_path: Path) -> None:
    volume, _ = await snapshots(home, tmp_path / "data", 8)
    home.catalog.set_protection(volume.volume_id, every_s=HOUR_S, keep="8")
    for number in range(12):
        (tmp_path / "data" / "more").write_bytes(b"%d" % number)
        await home.take(volume)
        assert not (await gc(home, grace_s=HOUR_S))["held"]
    assert len(home.catalog.snapshots()) == 8


async def test_a_rule_that_was_changed_to_keep_one_is_held(home: Site, tmp_path: Path) -> None:
    volume, _ = await snapshots(home, tmp_path / "data", 10)
    home.catalog.set_protection(volume.volume_id, every_s=HOUR_S, keep="1")
    assert prune_volume(home.parts, volume) == 9
    assert (await gc(home, grace_s=0))["held"].startswith("9 of 10 snapshots")


async def test_a_fifth_of_the_store_in_small_runs_is_held_until_the_day_is_over(
    tmp_path: Path, clock: SetClock
) -> None:
    volumes = []
    with open_site(tmp_path / "home", "home") as home:
        for number in range(20):
            folder = write_tree(tmp_path / f"data-{number}", files=5, size=20_000 + number)
            volumes.append(await home.take(home.protect(folder)))
        delete(home, [one.snapshot_id for one in volumes[:3]])
        assert not (await gc(home, grace_s=HOUR_S))["held"]
    with open_site(tmp_path / "home", "home") as home:
        delete(home, [one.snapshot_id for one in volumes[3:4]])
        home.catalog.forget_peak()  # So that only the blocks speak.
        assert not (await gc(home, grace_s=HOUR_S))["held"]
        delete(home, [one.snapshot_id for one in volumes[4:6]])
        home.catalog.forget_peak()
        assert "of the store would be condemned within a day" in (await gc(home, grace_s=HOUR_S))["held"]
        clock.ahead_s = 26 * HOUR_S
        home.parts.brake.trust()
        assert not (await gc(home, grace_s=HOUR_S))["held"]


# -- a full disk ------------------------------------------------------------------------------


async def test_a_rule_that_meets_a_full_disk_has_the_ballast_as_a_person_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_site(tmp_path / "home", "home", ballast="1MiB") as home:
        volume, _ = await snapshots(home, tmp_path / "data", 3)
        home.catalog.set_protection(volume.volume_id, every_s=HOUR_S, keep="1")
        assert home.parts.ballast.lay(keep_free=0)
        real = home.catalog.delete_snapshots

        def delete_if_there_is_room(ids: list[SnapshotId]) -> None:
            if home.parts.ballast.bytes_here:
                raise StoreFull("The catalogue has no room.")
            real(ids)

        monkeypatch.setattr(home.catalog, "delete_snapshots", delete_if_there_is_room)
        assert prune_volume(home.parts, volume) == 2
        assert len(home.catalog.snapshots()) == 1 and home.parts.ballast.is_short
