"""A bandwidth rule that an operator keeps changing: in no window does more pass than its rules allow."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replicator.core.throttle import TokenBucket, longest_delay_s
from tests.support.clocks import FakeMonotonic

BURST_S = 0.1
RATES = st.sampled_from([0, 1000, 50_000, 2_000_000])


class ThrottleMachine(RuleBasedStateMachine):
    """Two buckets bind one flow, as a node's and a job's do."""

    @initialize(one=RATES, other=RATES)
    def start(self, one: int, other: int) -> None:
        self.clock = FakeMonotonic()
        self.buckets = [TokenBucket(rate, clock=self.clock, burst_s=BURST_S) for rate in (one, other)]
        self.since = [self.clock.now, self.clock.now]
        self.passed: list[tuple[float, int]] = []

    @rule(seconds=st.floats(0, 30))
    def idle(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(size=st.integers(1, 500_000))
    def send(self, size: int) -> None:
        waits = 0
        while (delay := longest_delay_s(self.buckets)) > 0:
            self.clock.now += delay
            waits += 1
            assert waits < 6, "it waits, and waits, and may never send"
        for bucket in self.buckets:
            bucket.take(size)
        self.passed.append((self.clock.now, size))

    @rule(which=st.sampled_from([0, 1]), rate=RATES)
    def change(self, which: int, rate: int) -> None:
        self.buckets[which].set_rate(rate)
        self.since[which] = self.clock.now

    @invariant()
    @precondition(lambda self: hasattr(self, "passed"))
    def no_window_since_the_last_change_exceeds_the_rule(self) -> None:
        for bucket, since in zip(self.buckets, self.since, strict=True):
            sent = [(at, size) for at, size in self.passed if at > since]
            if not bucket.rate_bytes:
                continue
            for first in range(len(sent)):
                total = largest = 0
                for at, size in sent[first:]:
                    total, largest = total + size, max(largest, size)
                    allowed = bucket.rate_bytes * (at - sent[first][0] + BURST_S) + largest
                    assert total <= allowed + 2, (total, allowed)

    @invariant()
    @precondition(lambda self: hasattr(self, "passed"))
    def what_passed_is_counted(self) -> None:
        for bucket in self.buckets:
            assert bucket.statistics().passed_bytes == sum(size for _, size in self.passed)


TestThrottle = ThrottleMachine.TestCase
