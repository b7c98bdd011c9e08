"""How fast a scrub goes, so that its promise is kept and nobody feels it. Pure.

The promise is that no byte goes unread for longer than `every_s`. A pass visits everything in
the same order, so it is kept if passes begin `every_s / 2` apart and take `every_s / 2` at
most: then two visits are never further apart than `every_s`, whatever either pass's pace was.

Within its half the pass spreads itself out evenly, never faster than `rate_bytes_max`. While
jobs, syncs or restores are at work it steps aside altogether, and makes up for it afterwards;
only when what is left could not be read in time any more, even at full rate, does it go on
beside them: a node that is never idle is the one whose disks wear.
"""

from dataclasses import dataclass
from typing import Final

_SPARE: Final = 1.25
"""Time that reading what is left takes, times this, is when a pass stops giving way: disks are slower when shared."""
_PAUSE_S_MAX: Final = 3600.0
"""A small store is read one part an hour, and is through long before its time."""
_ASIDE_S: Final = 5.0
"""How soon a scrub that stepped aside looks again."""
_RATE_MIN: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubPromise:
    """What was promised, and at which price."""

    every_s: float
    """Everything is read again within this span."""
    rate_bytes_max: int
    """Bytes a second that the background scrub reads at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a pass is."""

    started_ns: int
    left_bytes: int
    rate_seen: float
    """Bytes a second that the disk gave while it was read; 0 if that is not known yet."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait after a part, and why. `reads` False: do not even begin one."""

    pause_s: float
    reason: str
    reads: bool = True


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a pass will be complete at this pace, and when it has to be."""

    ends_ns: int
    due_ns: int

    @property
    def is_late(self) -> bool:
        return self.ends_ns > self.due_ns + 1_000_000_000


def due_ns(promise: ScrubPromise, started_ns: int) -> int:
    return started_ns + int(promise.every_s / 2 * 1e9)


def _full_rate(promise: ScrubPromise, standing: Standing) -> float:
    fastest = promise.rate_bytes_max
    return max(_RATE_MIN, min(fastest, standing.rate_seen) if standing.rate_seen else fastest)


def plan_pace(promise: ScrubPromise, standing: Standing, *, now_ns: int, part_bytes: int, is_busy: bool) -> Pace:
    """What to do next, `part_bytes` being what one part reads."""
    left_s = (due_ns(promise, standing.started_ns) - now_ns) / 1e9
    full_s = standing.left_bytes / _full_rate(promise, standing)
    has_time = left_s > full_s * _SPARE
    # How long the rest takes is only known once the disk has been seen: for that, one part is read at once.
    is_unknown = not standing.rate_seen and standing.left_bytes > part_bytes
    if is_busy and has_time and not is_unknown:
        return Pace(_ASIDE_S, "stepping aside for other work", reads=False)
    floor_s = part_bytes / promise.rate_bytes_max
    if not has_time:
        return Pace(floor_s, "catching up")
    even_s = left_s * part_bytes / max(part_bytes, standing.left_bytes)
    return Pace(min(_PAUSE_S_MAX, max(floor_s, even_s)), "on time")


def forecast(promise: ScrubPromise, standing: Standing, *, now_ns: int, part_bytes: int) -> Forecast:
    """As long as there is time the pass takes what it has, or less; after that it goes as fast as it may."""
    due = due_ns(promise, standing.started_ns)
    full_s = standing.left_bytes / _full_rate(promise, standing)
    left_s = (due - now_ns) / 1e9
    unhurried_s = (standing.left_bytes / part_bytes + 1) * _PAUSE_S_MAX
    takes_s = max(full_s, min(left_s, unhurried_s))
    return Forecast(now_ns + int(takes_s * 1e9), due)
