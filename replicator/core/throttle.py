"""Token buckets: how the operator's bandwidth rules become waiting time.

A bucket fills at `rate` bytes a second up to `burst_s` seconds of it. Taking is allowed while the
level is above zero and may drive it below: the debt is then waited off. This way a frame larger
than the burst still passes, and the long-run rate is exact, whatever the frame sizes.

Several buckets can bind one transfer (node, peer, job); the longest wait wins. They are plain
state machines over a clock that is handed in, so tests and the simulation need no sleeping.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.core.errors import UsageError
from replicator.core.timetable import Timetable, find_zone, parse_span_of_week, pieces
from replicator.core.units import parse_rate

Monotonic = Callable[[], float]

BURST_S: Final = 0.25
"""Tokens that an unlucky pause may leave unused. A machine that is busy with hashing wakes a task a tenth of a second
late now and then, and what the bucket cannot hold meanwhile is lost; over any 10 s this is 2.5 % on top."""
BURST_S_MAX: Final = 60.0
_BINDING_S: Final = 2.0
"""How long after a wait a bucket still counts as the one that holds things up: a frame of a slow rule apart."""


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
        # Nothing has been saved up yet: or a node that is started anew would pass two bursts in one moment.
        self._level = 0.0
        self._at = clock()
        self._passed = 0
        self._waited = 0.0
        self._waited_at = -math.inf

    @property
    def rate_bytes(self) -> int:
        return self._rate

    @property
    def burst_s(self) -> float:
        return self._burst_s

    @property
    def is_binding(self) -> bool:
        """Whether something has just had to wait for this bucket."""
        return bool(self._rate) and self._clock() - self._waited_at < _BINDING_S

    def set_rate(self, rate_bytes: int, *, burst_s: float | None = None) -> None:
        """Change the rate now; links stay up. A debt is kept, a surplus shrinks to the new burst.

        A bucket that bound nothing before begins without a surplus: what was never counted was not saved up.
        """
        self._refill()
        if not self._rate:
            self._level = min(self._level, 0.0)
        self._rate = rate_bytes
        self._burst_s = self._burst_s if burst_s is None else burst_s
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
        # Not everybody who is told of a wait is held up by *this* bucket: several may bind one transfer.
        if self._rate and self._level <= 0:
            self._waited_at = self._clock() + seconds

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


@dataclass(frozen=True, slots=True)
class RateRule:
    """A bandwidth rule as the operator wrote it: a rate, and other rates at certain hours of the week."""

    text: str
    zone: str
    burst_s: float
    table: Timetable[int]

    def at(self, now_ns: int) -> int:
        return self.table.at(now_ns)


def parse_rule(text: str, *, zone: str = "UTC", burst_s: float = BURST_S) -> RateRule:
    """`20MB/s`, or `20MB/s; mon-fri 08:00-18:00 2MB/s`: what holds, and what holds then. Raises `UsageError`.

    The last of several that cover the same hour counts.
    """
    if not 0.0 < burst_s <= BURST_S_MAX:
        raise UsageError("A burst is up to a minute of the rate.", hint="Say for instance --burst 1s.")
    first, *rest = pieces(text) or ["none"]
    rules = []
    for part in rest:
        when, _, rate = part.rpartition(" ")
        rules.append((parse_span_of_week(when), parse_rate(rate)))
    return RateRule(text, zone, burst_s, Timetable(parse_rate(first), tuple(rules), find_zone(zone)))
