"""Which snapshots a keep rule keeps. Pure: values and `now` in, a plan with reasons out.

`24h,7d,4w` keeps the last snapshot of each of the 24 newest hours, 7 newest days and 4 newest
weeks *that have one*, so a pause in taking them never empties a shelf. `10` keeps the 10
newest. Units: h, d, w (from Monday), m (calendar month), y. All in UTC, so that a clock
change neither doubles nor loses an hour, and by the time this site received the snapshot,
never by what the origin says (restic#22057 is what happens otherwise).

What is newest is told by sequence, not by time: after a day on which the clock said 2036,
the snapshots of that day would be the newest for ten years, and each new one would go at once.

The newest snapshot is always kept, whatever the rule says.

Copies from elsewhere have a guard, because a source that was taken over may send what it likes as often as it likes.
Of an hour in which more came than the quota only the first and the last count, so a flood pushes out itself. The last
of each of some days stays beside the rule, so that a plain number cannot be filled in a minute. The very first stays.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from protocol.ids import SnapshotId
from replicator.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the rule looks at."""

    snapshot_id: SnapshotId
    sequence: int
    received_ns: int
    held: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One snapshot and why it stays; an empty reason means that it goes."""

    snapshot_id: SnapshotId
    reason: str


@dataclass(frozen=True, slots=True)
class CopyGuard:
    """What protects copies from their own source."""

    crowded: frozenset[int] = frozenset()
    """Hours of this site's clock, since 1970, in which more came than the quota. `jobs/arrivals.py` counts."""


GUARDED_DAYS: Final = 3
"""A weekend passes before somebody looks."""

_SHELVES: Final[dict[str, tuple[str, Callable[[datetime], object]]]] = {
    "h": ("hourly", lambda t: (t.year, t.month, t.day, t.hour)),
    "d": ("daily", lambda t: (t.year, t.month, t.day)),
    "w": ("weekly", lambda t: t.isocalendar()[:2]),
    "m": ("monthly", lambda t: (t.year, t.month)),
    "y": ("yearly", lambda t: t.year),
}


def parse_keep(rule: str) -> list[tuple[int, str]]:
    """`24h,7d` as [(24, "h"), (7, "d")]; an empty rule keeps everything. Raises `UsageError`."""
    parsed: list[tuple[int, str]] = []
    for part in filter(None, (piece.strip().lower() for piece in rule.split(","))):
        found = re.fullmatch(r"([1-9][0-9]{0,5})([hdwmy]?)", part)
        if not found:
            raise UsageError(f"{part!r} is not part of a keep rule.", hint="Write it like 24h,7d,4w,12m or just 10.")
        parsed.append((int(found[1]), found[2]))
    return parsed


def is_as_generous(rule: str, other: str) -> bool:
    """Whether a rule keeps at least what the other one keeps, whatever there is: each shelf as long or longer."""
    ours, theirs = parse_keep(rule), parse_keep(other)
    if not ours:
        return True
    longest = {unit: max(count for count, one in ours if one == unit) for unit in {unit for _, unit in ours}}
    return bool(theirs) and all(longest.get(unit, 0) >= count for count, unit in theirs)


def plan_retention(rule: str, candidates: Sequence[Candidate], *, guard: CopyGuard | None = None) -> list[Verdict]:
    """A verdict for each candidate, newest first. `guard` is for copies from elsewhere."""
    shelves = parse_keep(rule)
    newest_first = sorted(candidates, key=lambda one: (one.sequence, one.snapshot_id), reverse=True)
    reasons: dict[SnapshotId, str] = {one.snapshot_id: f"held: {one.held}" for one in newest_first if one.held}
    if newest_first:
        reasons.setdefault(newest_first[0].snapshot_id, "newest")
        if guard is not None:
            reasons.setdefault(min(candidates, key=_age).snapshot_id, "first")
    if not shelves:
        return [Verdict(one.snapshot_id, reasons.get(one.snapshot_id, "no rule")) for one in newest_first]
    counting = newest_first if guard is None else _without_floods(newest_first, guard, reasons)
    for count, unit in shelves:
        _fill(counting, count, unit, reasons, _SHELVES[unit][0] if unit else "among the newest")
    if guard is not None:
        _fill(counting, GUARDED_DAYS, "d", reasons, "the last of a day")
    return [Verdict(one.snapshot_id, reasons.get(one.snapshot_id, "")) for one in newest_first]


def _fill(
    newest_first: Sequence[Candidate], count: int, unit: str, reasons: dict[SnapshotId, str], reason: str
) -> None:
    """One shelf: the newest of each of the `count` newest slots that have one."""
    filled: set[object] = set()
    for index, one in enumerate(newest_first):
        slot = _SHELVES[unit][1](_received(one)) if unit else index
        if slot in filled:
            continue
        if len(filled) == count:
            break
        filled.add(slot)
        reasons.setdefault(one.snapshot_id, reason)


def _without_floods(
    newest_first: Sequence[Candidate], guard: CopyGuard, reasons: dict[SnapshotId, str]
) -> list[Candidate]:
    """What counts: of a crowded hour only its first and its last.

    The first stays beside the rule: of the newest hour, since it may become crowded yet; of a crowded one for days.
    """
    by_hour: dict[int, list[Candidate]] = {}
    for one in newest_first:
        by_hour.setdefault(hour_of(one.received_ns), []).append(one)
    newest_days = sorted({_received(one).date() for one in newest_first}, reverse=True)[:GUARDED_DAYS]
    counting: list[Candidate] = []
    for hour, came in by_hour.items():
        first = min(came, key=_age)
        if hour not in guard.crowded:
            counting += came
            if hour == max(by_hour):
                reasons.setdefault(first.snapshot_id, "the first of this hour")
            continue
        counting += [came[0], first] if came[0] is not first else [first]
        if _received(first).date() in newest_days:
            reasons.setdefault(first.snapshot_id, "the first of a crowded hour")
    return sorted(counting, key=lambda one: (one.sequence, one.snapshot_id), reverse=True)


def hour_of(received_ns: int) -> int:
    """The hour, since 1970."""
    return received_ns // 3_600_000_000_000


def _received(one: Candidate) -> datetime:
    return datetime.fromtimestamp(one.received_ns / 1e9, UTC)


def _age(one: Candidate) -> tuple[int, int, SnapshotId]:
    return (one.received_ns, one.sequence, one.snapshot_id)
