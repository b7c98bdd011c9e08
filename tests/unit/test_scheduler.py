"""When work is due: by a plan that no restart, pause or clock can confuse."""

from contextlib import closing
from pathlib import Path
from typing import Any, cast

import trio
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Protection, SiteSync
from replicator.catalog.terms import SyncTerms
from replicator.jobs.runner import JobRunner
from replicator.jobs.scheduler import Scheduler, is_due, may_try, next_try_ns, plan_next_run, plan_retry_s
from tests.stateful.test_catalogue_machine import record_of
from tests.support.clocks import FakeWallClock

S = 10**9
NOW = 1_800_000_000 * S
PERIODS = st.floats(1, 10 * 365 * 86400.0, allow_nan=False)
OFFSETS = st.integers(-(20 * 365 * 86400), 20 * 365 * 86400)  # Twenty years either way.


def promise(every_s: float, next_run_ns: int) -> Protection:
    return Protection(VolumeId(bytes(16)), every_s, "", next_run_ns, None, "")


@given(every_s=PERIODS, offset_s=OFFSETS)
def test_a_plan_is_always_within_one_period_from_now(every_s: float, offset_s: int) -> None:
    one = promise(every_s, NOW + offset_s * S)
    period = int(every_s * S)
    if is_due(one, NOW):
        assert NOW < plan_next_run(one, NOW) <= NOW + period
        assert not is_due(promise(every_s, plan_next_run(one, NOW)), NOW)
    else:
        assert NOW < one.next_run_ns <= NOW + period


def test_periods_missed_while_the_node_was_down_are_made_up_for_once_and_the_beat_is_kept() -> None:
    one = promise(3600, NOW - 10 * 3600 * S - 600 * S)
    assert is_due(one, NOW)
    following = plan_next_run(one, NOW)
    assert following == NOW + 3000 * S
    assert (following - one.next_run_ns) % (3600 * S) == 0
    assert not is_due(promise(3600, following), NOW)


def test_on_time_means_one_period_later_exactly() -> None:
    assert plan_next_run(promise(60, NOW), NOW) == NOW + 60 * S
    assert plan_next_run(promise(60, NOW), NOW + 59 * S) == NOW + 60 * S
    assert plan_next_run(promise(60, NOW), NOW + 60 * S) == NOW + 120 * S


def test_a_clock_that_was_years_ahead_and_is_set_right_does_not_silence_the_schedule() -> None:
    ahead = promise(3600, NOW + 10 * 365 * 86400 * S)
    assert is_due(ahead, NOW)
    assert plan_next_run(ahead, NOW) == NOW + 3600 * S


def test_what_is_due_within_the_period_is_waited_for() -> None:
    assert not is_due(promise(60, NOW + 1), NOW)
    assert not is_due(promise(60, NOW + 60 * S), NOW)
    assert is_due(promise(60, NOW), NOW)


@given(failures=st.integers(0, 10**6), jitter=st.floats(0, 1))
def test_retries_grow_and_are_bounded(failures: int, jitter: float) -> None:
    wait = plan_retry_s(failures, jitter=jitter)
    assert 5 <= wait <= 900
    assert plan_retry_s(failures + 1, jitter=jitter) >= wait


def sync(next_try_ns: int) -> SiteSync:
    return SiteSync("s", VolumeId(b""), SiteId(bytes(32)), "", False, None, "", 1, next_try_ns)


@given(failures=st.integers(0, 100))
def test_a_failed_sync_is_tried_again_after_its_pause_and_not_before(failures: int) -> None:
    at = next_try_ns(NOW, failures, jitter=0.5)
    assert not may_try(sync(at), NOW) and may_try(sync(at), at)


def test_a_failed_sync_does_not_wait_for_a_day_that_only_a_wrong_clock_has_seen() -> None:
    assert may_try(sync(NOW + 86400 * S), NOW)


class Asked:
    """What was submitted; nothing ever ends."""

    def __init__(self) -> None:
        self.syncs: list[str] = []

    def submit(self, kind: str, args: dict[str, Any], *, job_id: str) -> None:
        assert kind == "sync"
        self.syncs.append(args["sync"])

    def is_active(self, kind: str, key: str) -> bool:
        return key in self.syncs


def test_a_site_of_many_volumes_reads_its_snapshots_when_the_catalogue_has_changed_and_not_each_second(
    tmp_path: Path,
) -> None:
    clock, asked, read = FakeWallClock(), Asked(), list[str]()
    volumes = [VolumeId(bytes([one]) * 16) for one in range(1, 41)]
    with closing(Catalog(tmp_path / "catalog.sqlite", clock=clock)) as catalog:
        peer = SiteId(b"p" * 32)
        catalog.peers.add(peer, name="cabin", addresses=[])
        for number, volume in enumerate(volumes):
            catalog.add_snapshot(record_of(number, volume, 1), BlockId(bytes(32)))
            catalog.add_sync(f"s{number}", volume_id=volume, peer=peer, keep="", terms=SyncTerms())
        catalog.db.read().set_trace_callback(lambda sql: read.append(sql) if "FROM snapshots" in sql else None)
        scheduler = Scheduler(catalog=catalog, jobs=cast(JobRunner, asked), clock=clock)
        trio.run(scheduler.step)
        assert len(asked.syncs) == 40 and 0 < len(read) <= 40 and all("WHERE volume_id" in sql for sql in read)
        for number in range(40):
            catalog.add_receipt(SnapshotId(number.to_bytes(16, "big")), peer, b"receipt")
        asked.syncs.clear()
        trio.run(scheduler.step)
        read.clear()
        for _ in range(5):
            trio.run(scheduler.step)
        assert read == [] and asked.syncs == []
        catalog.add_snapshot(record_of(100, volumes[3], 2), BlockId(bytes(32)))
        trio.run(scheduler.step)
        assert asked.syncs == ["s3"]
