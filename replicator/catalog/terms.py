"""The terms of a site sync: what goes, when, how urgently, and what the copy should be. Pure.

Three ways to say *when*, and one that limits all of them:

- nothing: each snapshot, as soon as it is there;
- `cron`: at these times, by the clock of `zone`;
- `rpo_s`: continuously. The sync takes snapshots itself, often enough that the peer's newest
  copy is never older than that while the link can carry it;
- `windows`: only within these hours of the week. Outside, a sync waits, and says so.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec
from cronsim import CronSim, CronSimError

from replicator.catalog.records import SnapshotRecord
from replicator.core.errors import UsageError
from replicator.core.timetable import Timetable, find_zone, parse_windows
from replicator.core.units import parse_rate

PUSH: Final = "push"
PULL: Final = "pull"
TENANT: Final = "tenant:"
CONTINUOUS_TAG: Final = "continuous"
PRIORITY_LAST: Final = 9
_RPO_LEAST_S: Final = 2.0
"""Taking a snapshot and bringing it over takes a moment of its own; the scheduler looks once a second."""


class SyncTerms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a site sync says besides whose it is."""

    direction: str = PUSH
    volume: str = ""
    """For a pull: the name there, or the beginning of the id, of the only volume that is wanted."""
    tenants: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Only snapshots with one of these; likewise for tenants. Nothing means all."""
    cron: str = ""
    rpo_s: float = 0.0
    zone: str = "UTC"
    windows: str = ""
    priority: int = 5
    """0 goes first, 9 last. Syncs with one peer take turns, snapshot by snapshot."""
    do_not_expire: bool = False
    """A snapshot that is still to go is not pruned."""
    prefix: str = ""
    is_passive: bool = False
    rate: str = "none"

    @property
    def rate_bytes(self) -> int:
        return parse_rate(self.rate)

    @property
    def open_hours(self) -> Timetable[bool]:
        return _windows(self.windows, self.zone)

    def wants(self, record: SnapshotRecord) -> bool:
        """Whether a snapshot passes the filters."""
        return self.wants_tags(record.tags)

    def wants_tags(self, tags: Collection[str]) -> bool:
        return _meets(self.tags, tags) and _meets([TENANT + one for one in self.tenants], tags)

    def wants_volume(self, record: SnapshotRecord) -> bool:
        """For a pull: whether the snapshot is of the volume that is wanted."""
        wanted = self.volume
        is_id = len(wanted) >= 4 and record.volume_id.hex().startswith(wanted.lower())
        return not wanted or record.volume_name == wanted or is_id


ANY_SNAPSHOT: Final = SyncTerms()
"""Each snapshot, pushed as soon as it is there."""


def _meets(wanted: Collection[str], tags: Collection[str]) -> bool:
    return not wanted or any(tag in tags for tag in wanted)


@lru_cache(maxsize=256)
def _windows(text: str, zone: str) -> Timetable[bool]:
    return parse_windows(text, zone=zone)


def check_terms(terms: SyncTerms) -> None:
    """Raises `UsageError` for terms that cannot be kept."""
    if terms.direction not in (PUSH, PULL):
        raise UsageError(f"{terms.direction!r} is not a direction.", hint="Say push or pull.")
    if terms.cron and terms.rpo_s:
        raise UsageError("A sync runs at set times or continuously, not both.", hint="Say --cron or --rpo.")
    if not 0 <= terms.priority <= PRIORITY_LAST:
        raise UsageError(f"{terms.priority} is not a priority.", hint="From 0 (first) to 9 (last).")
    if terms.rpo_s and terms.rpo_s < _RPO_LEAST_S:
        raise UsageError(f"Copies no older than {terms.rpo_s:g} s cannot be promised.", hint="From 2s up.")
    if terms.direction == PULL and terms.do_not_expire:
        raise UsageError("Only the site that has the snapshots can keep them until they are fetched.")
    if "/" in terms.prefix or len(terms.prefix) > 60:
        raise UsageError("A prefix is up to 60 letters, without a slash.")
    find_zone(terms.zone)
    parse_rate(terms.rate)
    parse_windows(terms.windows, zone=terms.zone)
    if terms.cron:
        next_cron_ns(terms.cron, terms.zone, after_ns=0)


def next_cron_ns(cron: str, zone: str, *, after_ns: int) -> int:
    """The first time after a moment that a schedule names. Raises `UsageError`.

    Local times that a change of the clock skips run right after it; those that come twice run once.
    """
    local = datetime.fromtimestamp(after_ns // 10**9, find_zone(zone))
    try:
        coming = CronSim(cron, local)
        at = next(coming)
        while at.astimezone(UTC) <= local.astimezone(UTC):
            at = next(coming)  # It has been: we are in the hour that comes a second time on an autumn night.
    except (CronSimError, StopIteration):
        hint = "Five fields: minute, hour, day, month, weekday; for instance `30 2 * * mon-fri`."
        raise UsageError(f"{cron!r} is not a schedule that ever comes.", hint=hint) from None
    return int(at.timestamp()) * 10**9


def encode_terms(terms: SyncTerms) -> str:
    return msgspec.json.encode(terms).decode()


def decode_terms(text: str) -> SyncTerms:
    return msgspec.json.decode(text, type=SyncTerms)
