"""How many copies of a volume come within an hour, and when that is a flood.

A source that was taken over may send as often as it likes, and a keep rule lets go as it comes: what is here never
shows how much has come. So arrivals are counted, by the hour of this site's clock, and the hours in which
more came than the quota are remembered for as long as `catalog/retention.py` treats them apart.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Final

from replicator.catalog.catalog import Catalog
from replicator.catalog.retention import GUARDED_DAYS, hour_of
from replicator.core.errors import UsageError
from replicator.core.facts import read_fact

QUOTA_PER_HOUR: Final = 120
"""One each half minute: more often than people take them by schedule."""
_PER_PROMISE: Final = 6
"""A continuous sync takes three snapshots within the time that it promises; twice that is no flood yet."""
_PROMISED_MOST: Final = 4000
"""Whatever a source promises: it could promise each second, and then come each second. The last of each day stays
beside any rule, so what a flood of so many could push out is an afternoon."""
QUOTA_LEAST: Final = 2
"""The first and the last of an hour always count."""
_REMEMBERED: Final = 24 * GUARDED_DAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Of one volume."""

    hour: int = 0
    count: int = 0
    """Copies that came in that hour."""
    counted_ns: int = 0
    """When the last one that is counted came."""
    crowded: tuple[int, ...] = ()


def arrivals(catalog: Catalog, volume_id: bytes) -> Arrivals:
    said = catalog.fact(_fact(volume_id))
    if said is None:
        return Arrivals()
    return read_fact(said, Arrivals, name="the copies of a volume")


def note_arrivals(catalog: Catalog, volume_id: bytes) -> None:
    """Count what has come since the last time. To be called before any of it may be let go."""
    before = seen = arrivals(catalog, volume_id)
    quota = quota_of(catalog, volume_id)
    for at_ns in sorted(one.received_ns for one in catalog.snapshots(volume_id) if one.received_ns > seen.counted_ns):
        hour = hour_of(at_ns)
        count = seen.count + 1 if hour == seen.hour else 1
        seen = replace(seen, hour=hour, count=count, counted_ns=at_ns)
        if quota and count > quota and hour not in seen.crowded:
            seen = replace(seen, crowded=(*seen.crowded, hour)[-_REMEMBERED:])
    if seen != before:
        catalog.set_fact(_fact(volume_id), json.dumps(asdict(seen)))


def crowded_hours(catalog: Catalog, volume_id: bytes) -> frozenset[int]:
    """Hours since 1970 in which more copies came than the quota that held then."""
    return frozenset(arrivals(catalog, volume_id).crowded)


def quota_of(catalog: Catalog, volume_id: bytes) -> int:
    """How many copies of a volume may come within an hour before it counts as a flood; 0 for no limit."""
    said = catalog.fact(f"quota:{volume_id.hex()}")
    if said is not None:
        return int(said)
    every_s = min((one.every_s for one in catalog.expectations() if one.volume_id == volume_id), default=0)
    promised = _PER_PROMISE * 3600 // every_s if every_s else 0
    return max(QUOTA_PER_HOUR, min(promised, _PROMISED_MOST))


def set_quota(catalog: Catalog, volume_id: bytes, quota: int) -> None:
    """The operator of this site decides. Raises `UsageError`."""
    if quota != 0 and quota < QUOTA_LEAST:
        raise UsageError(f"A quota of {quota} is too small.", hint=f"At least {QUOTA_LEAST} an hour, or 0 for none.")
    catalog.set_fact(f"quota:{volume_id.hex()}", str(quota))


def _fact(volume_id: bytes) -> str:
    return f"arrivals:{volume_id.hex()}"
