"""When a site sync is due, and what it still owes. Pure, but for what it reads in the catalogue.

A sync is due when there is something to bring over, its time has come, its window is open, it
is not paused, and it has waited long enough since it last failed. What was due while it could
not run stays due: it runs once, when it can.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from protocol.ids import SiteId, SnapshotId
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import EVERY_VOLUME, SiteSync, Snapshot, Volume
from replicator.catalog.terms import CONTINUOUS_TAG, PUSH, next_cron_ns
from replicator.sync.policy import names_snapshot

_RETRY_MOST_S = 600.0
_RPO_SHARE = 3
"""The next one is taken when the last is a third of the promise old; the rest is for bringing it over."""

Receipts = Mapping[tuple[SnapshotId, SiteId], int]


def may_try(sync: SiteSync, now_ns: int) -> bool:
    """Whether a sync has waited long enough since it last failed, also if the clock was set back meanwhile."""
    return not now_ns < sync.next_try_ns <= now_ns + int(1.5 * _RETRY_MOST_S * 1e9)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to run now, and when its schedule comes next (0: it has none)."""

    is_due: bool
    next_run_ns: int
    waits_for_window: bool = False


def decide(sync: SiteSync, now_ns: int, *, has_pending: bool) -> Decision:
    """What to do about a sync at this moment."""
    terms = sync.terms
    coming, time_has_come = 0, True
    if terms.cron:
        coming = next_cron_ns(terms.cron, terms.zone, after_ns=now_ns)
        # A plan beyond the next time was made by a clock that has been set back since, or by other terms.
        time_has_come = 0 < sync.next_run_ns <= now_ns
        if sync.next_run_ns == 0 or sync.next_run_ns > coming:
            return Decision(False, coming)
    wants = has_pending and (time_has_come or sync.failures > 0)
    is_open = terms.open_hours.at(now_ns)
    if wants and (sync.paused or not is_open or not may_try(sync, now_ns)):
        return Decision(False, sync.next_run_ns, waits_for_window=not is_open and not sync.paused)
    if terms.cron and not time_has_come:
        return Decision(wants, sync.next_run_ns)
    return Decision(wants, coming)


def pending_snapshots(catalog: Catalog, sync: SiteSync, receipts: Receipts) -> list[Snapshot]:
    """What the sync's peer has not signed for, newest first: the freshest copy is the one that counts."""
    if sync.terms.direction != PUSH:
        return []
    # A site with a sync for each of a thousand volumes must not read everything a thousand times.
    candidates = catalog.snapshots(None if sync.volume_id == EVERY_VOLUME else sync.volume_id)
    rules = catalog.copy_rules()
    origins = {volume.volume_id: volume.origin for volume in catalog.volumes()}
    passive = {volume for volume, rule in rules.items() if rule.is_passive}
    return [
        snapshot
        for snapshot in reversed(candidates)
        if (snapshot.snapshot_id, sync.peer) not in receipts
        and names_snapshot(
            sync,
            snapshot,
            origin=origins[snapshot.record.volume_id],
            is_passive=snapshot.record.volume_id in passive,
        )
    ]


def ships_at_once(sync: SiteSync, volume: Volume, tags: Collection[str], now_ns: int) -> bool:
    """Whether a snapshot of ours that is being taken now will be brought over by this sync as soon as it is there."""
    terms = sync.terms
    return (
        terms.direction == PUSH
        and sync.volume_id in (EVERY_VOLUME, volume.volume_id)
        and not terms.cron
        and not sync.paused
        and terms.open_hours.at(now_ns)
        and may_try(sync, now_ns)
        and terms.wants_tags(tags)
    )


def owed(catalog: Catalog) -> dict[SnapshotId, list[SiteSync]]:
    """Snapshots that must not be pruned yet, because a sync that promised so has still to bring them over."""
    receipts = catalog.receipts()
    found: dict[SnapshotId, list[SiteSync]] = {}
    for sync in catalog.syncs():
        if sync.terms.do_not_expire:
            for snapshot in pending_snapshots(catalog, sync, receipts):
                found.setdefault(snapshot.snapshot_id, []).append(sync)
    return found


def volumes_to_snapshot(catalog: Catalog, sync: SiteSync, now_ns: int) -> list[Volume]:
    """For a continuous sync: which of our volumes need a new snapshot for the promise to be kept.

    What is protected no more is not among "every volume".
    """
    if not sync.terms.rpo_s or sync.terms.direction != PUSH or sync.paused or not sync.terms.open_hours.at(now_ns):
        return []
    found: list[Volume] = []
    for volume in catalog.volumes():
        if volume.path is None or sync.volume_id not in (EVERY_VOLUME, volume.volume_id):
            continue
        if sync.volume_id == EVERY_VOLUME and catalog.is_ended(volume.volume_id):
            continue
        if sync.terms.tenants and catalog.tenant_of(volume.volume_id) not in sync.terms.tenants:
            continue
        newest = catalog.newest(volume.volume_id)
        age_ns = None if newest is None else now_ns - newest.record.taken_ns
        # A negative age is a clock that was set back: nothing is known of the real one.
        if age_ns is None or age_ns < 0 or age_ns >= sync.terms.rpo_s / _RPO_SHARE * 1e9:
            found.append(volume)
    return found


def tags_of_continuous(sync: SiteSync) -> list[str]:
    """What a snapshot must carry that a continuous sync takes for itself: also whatever its own filter asks for."""
    return [CONTINUOUS_TAG, *sync.terms.tags[:1]]
