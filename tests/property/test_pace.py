"""The pace of a scrub: whatever the store, the disk and the other work are like, the promise is kept if it can be."""

from hypothesis import given
from hypothesis import strategies as st

from replicator.repair.pace import Pace, ScrubPromise, Standing, due_ns, forecast, plan_pace

PART = 32 << 20
DAY_S = 86_400.0

promises = st.builds(
    ScrubPromise,
    every_s=st.floats(3600, 400 * DAY_S),
    rate_bytes_max=st.integers(1_000_000, 2_000_000_000),
)


def play(
    promise: ScrubPromise, total: int, *, disk: float, busy_share: float, started_ns: int = 0
) -> tuple[float, float]:
    """A whole pass on a clock of our own: seconds it took, and the highest rate over its reading."""
    now, left, seen, number, fastest = 0.0, total, 0.0, 0, 0.0
    while left > 0:
        number += 1
        assert number < 1_000_000
        standing = Standing(started_ns=started_ns, left_bytes=left, rate_seen=seen)
        is_busy = busy_share >= 1 or (number % 100) / 100 < busy_share
        pace = plan_pace(promise, standing, now_ns=int(now * 1e9), part_bytes=PART, is_busy=is_busy)
        if not pace.reads:
            now += max(pace.pause_s, promise.every_s / 5000)  # It looks again; we need not watch all of it.
            continue
        read = min(left, PART)
        left -= read
        took = max(pace.pause_s, PART / disk)
        fastest = max(fastest, read / took)
        now, seen = now + took, disk
    return now, fastest


@given(promises, st.integers(0, 200), st.floats(0.1, 3.0), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_pass_ends_in_half_of_the_span_whenever_the_rates_allow_it_also_on_a_node_that_is_never_idle(
    promise: ScrubPromise, parts: int, disk_share: float, busy_share: float
) -> None:
    total, disk = parts * PART, promise.rate_bytes_max * disk_share
    took, fastest = play(promise, total, disk=disk, busy_share=busy_share)
    at_best = total / min(disk, promise.rate_bytes_max)
    assert fastest <= promise.rate_bytes_max * 1.001
    if at_best * 2 + PART / disk * 4 < promise.every_s / 2:
        looks_s = promise.every_s / 5000 + 10.0
        assert took <= promise.every_s / 2 + looks_s + 4 * PART / min(disk, promise.rate_bytes_max)


@given(promises, st.integers(0, 10**15), st.floats(0, 1e9), st.integers(0, 400 * 86_400), st.booleans())
def test_it_never_reads_faster_than_it_may_and_never_sleeps_through_its_time(
    promise: ScrubPromise, left: int, seen: float, age_s: int, is_busy: bool
) -> None:
    standing = Standing(started_ns=0, left_bytes=left, rate_seen=seen)
    pace = plan_pace(promise, standing, now_ns=age_s * 10**9, part_bytes=PART, is_busy=is_busy)
    if pace.reads:
        assert pace.pause_s >= PART / promise.rate_bytes_max * 0.999
        assert pace.pause_s <= max(3600.0, PART / promise.rate_bytes_max)
    else:
        assert is_busy and pace.pause_s <= 5.0
        assert left / promise.rate_bytes_max < (due_ns(promise, 0) / 1e9 - age_s)


@given(promises, st.integers(1, 10**15), st.integers(0, 400 * 86_400))
def test_the_forecast_is_late_just_when_the_fastest_allowed_pace_is_too_slow(
    promise: ScrubPromise, left: int, age_s: int
) -> None:
    now_ns = age_s * 10**9
    ahead = forecast(promise, Standing(started_ns=0, left_bytes=left, rate_seen=0.0), now_ns=now_ns, part_bytes=PART)
    at_best_ns = now_ns + left / promise.rate_bytes_max * 1e9
    assert ahead.is_late == (at_best_ns > ahead.due_ns + 1e9)
    assert ahead.ends_ns >= at_best_ns - at_best_ns * 1e-12


def test_a_busy_node_is_left_alone_while_there_is_time_and_not_a_second_longer() -> None:
    promise = ScrubPromise(every_s=2 * 1000.0, rate_bytes_max=1_000_000)

    def at(second: int) -> Pace:
        standing = Standing(started_ns=0, left_bytes=400 * 1_000_000, rate_seen=1e6)
        return plan_pace(promise, standing, now_ns=second * 10**9, part_bytes=PART, is_busy=True)

    assert [at(second).reads for second in (0, 400, 499, 501, 999, 5000)] == [False, False, False, True, True, True]
    assert at(501).reason == "catching up"
