"""What holds at which hour of the week, in the operator's own time zone.

`mon-fri 08:00-18:00` is a time of day as people mean it, so it is looked up by local wall time
at each look: nothing is planned ahead in UTC, and a change to summer time neither doubles nor
loses an hour of it. An hour that comes twice in autumn is the same hour both times; one that
does not come in spring is simply not there.

A span may pass midnight (`22:00-06:00`): it then belongs to the day on which it begins.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from replicator.core.errors import UsageError

_V = TypeVar("_V")
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
_SPANS_MAX: Final = 100
"""More is not a rule that a person can check."""
_HORIZON: Final = timedelta(days=9)
"""A weekly table has shown all it has after a week; the rest is for changes of the clock."""


def find_zone(name: str) -> ZoneInfo:
    """Raises `UsageError`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(f"{name!r} is not a time zone.", hint="Write it like Europe/Berlin or UTC.") from None


@dataclass(frozen=True, slots=True)
class Span:
    """Some hours of some days. `end` may be over 24 hours: then it reaches into the next day."""

    days: frozenset[int]
    start_minute: int
    end_minute: int

    def covers(self, local: datetime) -> bool:
        minute = local.hour * 60 + local.minute
        today, yesterday = local.weekday(), (local.weekday() - 1) % 7
        return (today in self.days and self.start_minute <= minute < self.end_minute) or (
            yesterday in self.days and minute + _DAY_MINUTES < self.end_minute
        )


def parse_span_of_week(text: str) -> Span:
    """`mon-fri 08:00-18:00`, `sat,sun` (all day), `22:00-06:00` (every day). Raises `UsageError`."""
    words = text.lower().split()
    wrong = UsageError(f"{text!r} is not a time of the week.", hint="Write it like `mon-fri 22:00-06:00` or `sat,sun`.")
    if not words or len(words) > 2:
        raise wrong
    times = words.pop() if words[-1][0].isdigit() else "00:00-24:00"
    found = re.fullmatch(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", times)
    if found is None or len(words) > 1:
        raise wrong
    start, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if int(found[2]) > 59 or int(found[4]) > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES or start == end:
        raise wrong
    days = frozenset(_days(words[0], wrong)) if words else frozenset(range(7))
    return Span(days, start, end if end > start else end + _DAY_MINUTES)


def _days(text: str, wrong: UsageError) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise wrong
        at, end = DAYS.index(first), DAYS.index(last or first)
        yield from (day % 7 for day in range(at, (end if end >= at else end + 7) + 1))


@dataclass(frozen=True, slots=True)
class Timetable(Generic[_V]):
    """A value that depends on the hour of the week: the last rule that covers the moment wins."""

    default: _V
    rules: tuple[tuple[Span, _V], ...] = ()
    zone: ZoneInfo = ZoneInfo("UTC")  # noqa: RUF009  (a ZoneInfo never changes)

    def __post_init__(self) -> None:
        if len(self.rules) > _SPANS_MAX:
            raise UsageError(f"A table has up to {_SPANS_MAX} times of the week.", hint="Join some of them.")

    def at(self, now_ns: int) -> _V:
        local = datetime.fromtimestamp(now_ns // 10**9, self.zone)
        return next((value for span, value in reversed(self.rules) if span.covers(local)), self.default)

    def next_change_ns(self, now_ns: int) -> int | None:
        """When another value begins to hold; None if none ever does."""
        if not self.rules:
            return None
        now = self.at(now_ns)
        return next((at for at in self._moments(now_ns) if self.at(at) != now), None)

    def _moments(self, now_ns: int) -> list[int]:
        """Every moment at which the value can change: borders of spans, and each half-hour, since clocks are changed
        at those."""
        start = datetime.fromtimestamp(now_ns // 10**9, UTC)
        half_hour = start.replace(minute=0, second=0, microsecond=0)
        found = {half_hour + timedelta(minutes=30 * n) for n in range(int(_HORIZON / timedelta(minutes=30)))}
        day = start.astimezone(self.zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        borders = {minute % _DAY_MINUTES for span, _ in self.rules for minute in (span.start_minute, span.end_minute)}
        for number in range(_HORIZON.days):
            for minute in borders:
                wall = day + timedelta(days=number, minutes=minute)
                found |= {wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
        return sorted(int(one.timestamp()) * 10**9 for one in found if one > start)


def pieces(text: str) -> Sequence[str]:
    """The parts of a rule that is written `this; that; that`."""
    return [part.strip() for part in text.split(";") if part.strip()]


def parse_windows(text: str, *, zone: str) -> Timetable[bool]:
    """When something may run: `mon-fri 22:00-06:00; sat,sun`. Nothing said means always. Raises `UsageError`."""
    spans = tuple((parse_span_of_week(part), True) for part in pieces(text))
    return Timetable(not spans, spans, find_zone(zone))
