"""Which snapshots a keep rule keeps. Pure: values and `now` in, a plan with reasons out.

`24h,7d,4w` keeps the last snapshot of each of the 24 newest hours, 7 newest days and 4 newest
weeks *that have one*, so a pause in taking them never empties a shelf. `10` keeps the 10
newest. Units: h, d, w (from Monday), m (calendar month), y. All in UTC, so that a clock
change neither doubles nor loses an hour, and by the time this site received the snapshot,
never by what the origin says (restic#22057 is what happens otherwise).

What is newest is told by sequence, not by time: after a day on which the clock said 2036,
the snapshots of that day would be the newest for ten years, and each new one would go at once.

The newest snapshot is always kept, whatever the rule says.
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


def plan_retention(rule: str, candidates: Sequence[Candidate], *, keep_first: bool = False) -> list[Verdict]:
    """A verdict for each candidate, newest first.

    `keep_first` is for copies from elsewhere: whatever a source that was taken over sends, and however often, the
    oldest copy from before that day stays.
    """
    shelves = parse_keep(rule)
    newest_first = sorted(candidates, key=lambda one: (one.sequence, one.snapshot_id), reverse=True)
    reasons: dict[SnapshotId, str] = {one.snapshot_id: f"held: {one.held}" for one in newest_first if one.held}
    if newest_first:
        reasons.setdefault(newest_first[0].snapshot_id, "newest")
        if keep_first:
            oldest = min(candidates, key=lambda one: (one.received_ns, one.sequence, one.snapshot_id))
            reasons.setdefault(oldest.snapshot_id, "first")
    if not shelves:
        return [Verdict(one.snapshot_id, reasons.get(one.snapshot_id, "no rule")) for one in newest_first]
    for count, unit in shelves:
        filled: set[object] = set()
        for index, one in enumerate(newest_first):
            if not unit:
                slot: object = index
            else:
                slot = _SHELVES[unit][1](datetime.fromtimestamp(one.received_ns / 1e9, UTC))
            if slot in filled:
                continue
            if len(filled) == count:
                break
            filled.add(slot)
            reasons.setdefault(one.snapshot_id, _SHELVES[unit][0] if unit else "among the newest")
    return [Verdict(one.snapshot_id, reasons.get(one.snapshot_id, "")) for one in newest_first]
