"""Token buckets: how the operator's bandwidth rules become waiting time.

A bucket fills at `rate` bytes a second up to `burst`. Taking is allowed while the level is
above zero and may drive it below: the debt is then waited off. This way a frame larger than
the burst still passes, and the long-run rate is exact, whatever the frame sizes.

Several buckets can bind one transfer (node, peer, job); the longest wait wins. They are plain
state machines over a clock that is handed in, so tests and the simulation need no sleeping.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Monotonic = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ThrottleStatistics:
    rate_bytes: int
    passed_bytes: int
    waited_s: float


class TokenBucket:
    """Binds one flow to a rate. A rate of 0 binds nothing."""

    def __init__(self, rate_bytes: int, *, clock: Monotonic, burst_s: float = 0.1) -> None:
        self._clock = clock
        self._burst_s = burst_s
        self._rate = rate_bytes
        self._level = rate_bytes * burst_s
        self._at = clock()
        self._passed = 0
        self._waited = 0.0

    @property
    def rate_bytes(self) -> int:
        return self._rate

    def set_rate(self, rate_bytes: int) -> None:
        """Change the rate now; links stay up. A debt is kept, a surplus shrinks to the new burst."""
        self._refill()
        self._rate = rate_bytes
        self._level = min(self._level, rate_bytes * self._burst_s)

    def delay_s(self) -> float:
        """Seconds until something may be taken; 0.0 for now."""
        if not self._rate:
            return 0.0
        self._refill()
        # One byte above zero: at a level of exactly zero the wait would be zero for ever.
        return 0.0 if self._level > 0 else (1 - self._level) / self._rate

    def take(self, count: int) -> None:
        """Account for `count` bytes that are about to move."""
        self._passed += count
        if self._rate:
            self._refill()
            self._level -= count

    def note_wait(self, seconds: float) -> None:
        self._waited += seconds

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._rate * self._burst_s, self._level + (now - self._at) * self._rate)
        self._at = now

    def statistics(self) -> ThrottleStatistics:
        return ThrottleStatistics(self._rate, self._passed, self._waited)


def longest_delay_s(buckets: Sequence[TokenBucket]) -> float:
    """How long a transfer that all of `buckets` bind has to wait."""
    return max((bucket.delay_s() for bucket in buckets), default=0.0)


def frame_goal_bytes(buckets: Sequence[TokenBucket], most: int) -> int:
    """How large a frame may be so that a slow link stays responsive: about a twentieth of a second of it."""
    slowest = min((bucket.rate_bytes for bucket in buckets if bucket.rate_bytes), default=0)
    return most if not slowest else min(most, max(16 * 1024, math.ceil(slowest / 20)))
