"""How each site sync stands, in the words that the whole project uses.

idle, waiting for window, throttled, syncing, retrying (n, next at), blocked (reason). A sync that
is well is never "offline", and one that fails is never silent: it is retrying, or blocked and
says what a person has to do; it is tried again all the same.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from replicator.catalog.model import EVERY_VOLUME, SiteSync, Snapshot
from replicator.catalog.terms import PULL
from replicator.jobs.due import Receipts, pending_snapshots
from replicator.jobs.parts import Parts
from replicator.jobs.pulls import Pulls
from replicator.jobs.runner import JobRunner
from replicator.net.mesh import Mesh
from replicator.net.pacing import IN, OUT

IDLE, WAITING, THROTTLED, SYNCING = "idle", "waiting for window", "throttled", "syncing"


@dataclass(frozen=True, slots=True)
class SyncSources:
    """Where the state of a sync is read from."""

    parts: Parts
    mesh: Mesh
    jobs: JobRunner
    pulls: Pulls | None


def state_of(
    sync: SiteSync, *, is_running: bool, is_throttled: bool, has_pending: bool, now_ns: int, why_not: str = ""
) -> str:
    """One of the six words, with what belongs to it. Pure."""
    if sync.paused:
        return "blocked (paused here; `replicator sync resume` goes on)"
    if is_running:
        return THROTTLED if is_throttled else SYNCING
    if sync.failures and has_pending and sync.needs_person:
        return f"blocked ({sync.last_error})"
    if sync.failures and has_pending:
        at = datetime.fromtimestamp(max(sync.next_try_ns, now_ns) / 1e9, UTC)
        return f"retrying ({sync.failures}, next at {at:%H:%M:%S}Z)"
    if has_pending and not sync.terms.open_hours.at(now_ns):
        return WAITING
    return f"blocked ({why_not})" if why_not else IDLE


def describe_sync(sources: SyncSources, sync: SiteSync, now: int, receipts: Receipts) -> dict[str, Any]:
    """One sync as the API tells it."""
    parts, catalog, terms = sources.parts, sources.parts.catalog, sync.terms
    is_pull = terms.direction == PULL
    is_running = sources.jobs.is_active("sync", sync.sync_id)
    pending: list[Snapshot] = [] if is_pull else pending_snapshots(catalog, sync, receipts)
    remote = sources.pulls.pending(sync) if is_pull and sources.pulls is not None else []
    records = [one.record for one in pending] + [one.record for one in remote]
    oldest = min((record.taken_ns for record in records), default=None)
    state = state_of(
        sync,
        is_running=is_running,
        is_throttled=sources.mesh.pacing.is_binding(sync.peer, IN if is_pull else OUT),
        has_pending=bool(records) or (is_pull and sync.failures > 0),
        now_ns=now,
    )
    return {
        "sync_id": sync.sync_id,
        "direction": terms.direction,
        "volume": _volume_name(parts, sync),
        "peer": catalog.peers.name_of(sync.peer),
        "state": state,
        "paused": sync.paused,
        "pending_snapshots": len(records),
        "lag_s": 0.0 if oldest is None else _age(now, oldest),
        "last_success_s": None if sync.last_success_ns is None else _age(now, sync.last_success_ns),
        "last_error": sync.last_error,
        "failures": sync.failures,
        "next_run_s": _in_s(now, sync.next_run_ns),
        "window_changes_s": _in_s(now, terms.open_hours.next_change_ns(now) or 0),
        "keep": sync.keep,
        "tenants": list(terms.tenants),
        "tags": list(terms.tags),
        "cron": terms.cron,
        "rpo_s": terms.rpo_s,
        "zone": terms.zone,
        "windows": terms.windows,
        "priority": terms.priority,
        "do_not_expire": terms.do_not_expire,
        "prefix": terms.prefix,
        "passive": terms.is_passive,
        "rate": terms.rate,
    }


def _volume_name(parts: Parts, sync: SiteSync) -> str:
    if sync.volume_id != EVERY_VOLUME:
        return parts.catalog.volume(sync.volume_id).name
    return sync.terms.volume or "every volume"


def queue(sources: SyncSources, now: int) -> list[dict[str, Any]]:
    """What is still to be brought over, by peer, the most urgent first, as it will be taken."""
    catalog, found = sources.parts.catalog, []
    receipts = catalog.receipts()
    for sync in catalog.syncs():
        items = pending_snapshots(catalog, sync, receipts)
        records = [one.record for one in items]
        if sync.terms.direction == PULL and sources.pulls is not None:
            records = [one.record for one in sources.pulls.pending(sync)]
        for place, record in enumerate(records):
            found.append(
                {
                    "peer": catalog.peers.name_of(sync.peer),
                    "priority": sync.terms.priority,
                    "sync_id": sync.sync_id,
                    "direction": sync.terms.direction,
                    "snapshot": record.snapshot_id.hex(),
                    "volume": record.volume_name,
                    "age_s": _age(now, record.taken_ns),
                    "size_bytes": record.size_bytes,
                    "place_in_sync": place,
                    "do_not_expire": sync.terms.do_not_expire,
                    "state": describe_sync(sources, sync, now, receipts)["state"],
                }
            )
    return sorted(found, key=lambda one: (one["peer"], one["priority"], one["place_in_sync"], one["sync_id"]))


def _age(now_ns: int, then_ns: int) -> float:
    return round((now_ns - then_ns) / 1e9, 3)


def _in_s(now_ns: int, at_ns: int) -> float | None:
    return round((at_ns - now_ns) / 1e9, 3) if at_ns else None
