"""Token buckets: over any stretch of time no more passes than the operator allowed."""

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.throttle import TokenBucket, frame_goal_bytes, longest_delay_s
from tests.support.clocks import FakeMonotonic

BURST_S = 0.1
FRAMES = st.lists(
    st.tuples(st.integers(1, 200_000), st.floats(0, 2, allow_nan=False)), min_size=1, max_size=40
)  # Bytes of a frame, and how long the sender idles before it.


@given(rate=st.integers(1000, 10_000_000), frames=FRAMES)
def test_over_any_window_no_more_than_the_rate_a_burst_and_a_frame_passes(
    rate: int, frames: list[tuple[int, float]]
) -> None:
    clock = FakeMonotonic()
    bucket = TokenBucket(rate, clock=clock, burst_s=BURST_S)
    passed: list[tuple[float, int]] = []
    for size, idle_s in frames:
        clock.now += idle_s
        waits = 0
        while (delay := bucket.delay_s()) > 0:
            clock.now += delay
            waits += 1
            assert waits < 4
        bucket.take(size)
        passed.append((clock.now, size))
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window = passed[last][0] - passed[first][0]
            total = sum(size for _, size in passed[first : last + 1])
            largest = max(size for _, size in passed[first : last + 1])
            assert total <= rate * window + rate * BURST_S + largest + 2


@given(rate=st.integers(1000, 10_000_000), size=st.integers(1, 10_000_000))
def test_the_long_run_rate_is_exact_whatever_the_frames(rate: int, size: int) -> None:
    clock = FakeMonotonic()
    bucket = TokenBucket(rate, clock=clock, burst_s=BURST_S)
    began = clock.now
    for _ in range(50):
        clock.now += bucket.delay_s()
        bucket.take(size)
    clock.now += bucket.delay_s()
    spent = rate * (clock.now - began)
    assert spent - 2 <= 50 * size <= spent + rate * BURST_S + size + 2


@given(rates=st.lists(st.integers(0, 1_000_000), min_size=2, max_size=10), sizes=st.integers(1, 100_000))
def test_changing_the_rate_forgives_no_debt(rates: list[int], sizes: int) -> None:
    clock = FakeMonotonic()
    bucket = TokenBucket(rates[0], clock=clock, burst_s=BURST_S)
    for rate in rates[1:]:
        while (delay := bucket.delay_s()) > 0:
            clock.now += delay
        bucket.take(sizes)
        debt_before = bucket._level
        bucket.set_rate(rate)
        assert bucket._level <= debt_before
        assert bucket._level <= rate * BURST_S


def test_a_rate_of_nothing_binds_nothing() -> None:
    bucket = TokenBucket(0, clock=FakeMonotonic())
    bucket.take(10**12)
    assert bucket.delay_s() == 0.0
    assert bucket.statistics().passed_bytes == 10**12


def test_the_slowest_of_several_buckets_decides() -> None:
    clock = FakeMonotonic()
    slow, fast = TokenBucket(1000, clock=clock), TokenBucket(1_000_000, clock=clock)
    for bucket in (slow, fast):
        bucket.take(10_000)
    assert longest_delay_s([slow, fast]) == slow.delay_s() > 9
    assert longest_delay_s([]) == 0.0


@given(rates=st.lists(st.integers(0, 10**9), max_size=3), most=st.integers(1, 2**21))
def test_a_frame_is_never_larger_than_asked_for(rates: list[int], most: int) -> None:
    buckets = [TokenBucket(rate, clock=FakeMonotonic()) for rate in rates]
    assert 0 < frame_goal_bytes(buckets, most) <= most
