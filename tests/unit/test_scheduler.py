"""When work is due: by a plan that no restart, pause or clock can confuse."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import SiteId, VolumeId
from replicator.catalog.model import Protection, SiteSync
from replicator.jobs.scheduler import is_due, may_try, next_try_ns, plan_next_run, plan_retry_s

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
