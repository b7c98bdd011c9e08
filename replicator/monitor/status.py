"""The whole node on one page: what `replicator status` and the API show.

How each site sync stands is told by `monitor/syncs.py`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from protocol.ids import SiteId
from replicator.catalog.model import Protection
from replicator.core.workers import WorkerRunner
from replicator.jobs.due import Receipts
from replicator.jobs.parts import Parts
from replicator.jobs.pulls import Pulls
from replicator.jobs.runner import JobRunner, JobView
from replicator.monitor.alerts import find_alerts
from replicator.monitor.scrub import scrub_page
from replicator.monitor.standing import classes_page, standing_page
from replicator.monitor.syncs import SyncSources, describe_sync
from replicator.net.mesh import Mesh
from replicator.sync.standing import Standing

_RECENT_REPAIRS = 20


@dataclass(frozen=True, slots=True)
class StatusSources:
    """Where the page is read from."""

    parts: Parts
    mesh: Mesh
    jobs: JobRunner
    workers: WorkerRunner
    started_ns: int
    version: str
    standing: Standing
    pulls: Pulls | None = None

    def name_of(self, site: SiteId) -> str:
        return self.parts.site_name if site == self.parts.site_id else self.parts.catalog.peers.name_of(site)


def node_status(sources: StatusSources) -> dict[str, Any]:
    """Everything, as plain values. Times are ages in seconds, so that no clock has to be compared."""
    parts = sources.parts
    now = parts.clock.now_ns()
    syncs = SyncSources(parts, sources.mesh, sources.jobs, sources.pulls)
    receipts = parts.catalog.receipts()
    trouble = sources.jobs.trouble
    members = {parts.site_id, *(peer.site_id for peer in parts.catalog.peers.all())}
    alerts = find_alerts(parts, sources.mesh, started_ns=sources.started_ns, jobs_trouble=trouble)
    return {
        "site": parts.site_name,
        "site_id": parts.site_id.hex(),
        "version": sources.version,
        "address": sources.mesh.address,
        "up_s": _age(now, sources.started_ns),
        "health": "alert" if alerts else "well",
        "alerts": [asdict(alert) for alert in alerts],
        "peers": _peers(sources, now),
        "volumes": _volumes(sources, now, receipts, members),
        "standing": standing_page(sources.standing, name_of=sources.name_of, may_show=members),
        "syncs": [describe_sync(syncs, sync, now, receipts) for sync in parts.catalog.syncs()],
        "jobs": [describe_job(view) for view in sources.jobs.running()],
        "store": _store(parts, now),
        "scrub": scrub_page(parts, with_segments=False),
        "repairs": {f"{role}.{outcome}": count for (role, outcome), count in parts.catalog.repair_counts().items()},
        "throttle": {
            "out_bytes_per_s": sources.mesh.pacing.node["out"].rate_bytes,
            "in_bytes_per_s": sources.mesh.pacing.node["in"].rate_bytes,
        },
        "workers": [asdict(state) for state in sources.workers.states.values()],
    }


def _age(now_ns: int, then_ns: int | None) -> float | None:
    return None if then_ns is None else round((now_ns - then_ns) / 1e9, 3)


def _peers(sources: StatusSources, now: int) -> list[dict[str, Any]]:
    page: list[dict[str, Any]] = []
    for peer in sources.parts.catalog.peers.all():
        link = sources.mesh.link_to(peer.site_id)
        counted = link.statistics() if link is not None else None
        page.append(
            {
                "name": peer.name,
                "site_id": peer.site_id.hex(),
                "addresses": list(peer.addresses),
                "linked": link is not None,
                "round_trip_s": link.round_trip_s if link is not None else None,
                "bytes_in": counted.bytes_in if counted else 0,
                "bytes_out": counted.bytes_out if counted else 0,
                "may": sorted(peer.rights.may),
                "introduced_by": None
                if peer.introduced_by is None
                else sources.parts.catalog.peers.name_of(peer.introduced_by),
                "last_seen_s": 0.0 if link is not None else _age(now, peer.last_seen_ns),
                "replaced_by": sources.name_of(other) if (other := _other(sources, peer.site_id)) is not None else None,
                "problem": "" if link is not None else sources.mesh.dial_errors.get(peer.site_id, ""),
            }
        )
    return page


def _other(sources: StatusSources, site: SiteId) -> SiteId | None:
    """The peer that answers at an unlinked one's address."""
    return None if sources.mesh.link_to(site) is not None else sources.mesh.replaced_by.get(site)


def _volumes(sources: StatusSources, now: int, receipts: Receipts, members: set[SiteId]) -> list[dict[str, Any]]:
    catalog = sources.parts.catalog
    promises = {one.volume_id: one for one in catalog.protections()}
    held_by: dict[bytes, list[SiteId]] = {}
    for snapshot_id, site in receipts:
        held_by.setdefault(snapshot_id, []).append(site)
    page: list[dict[str, Any]] = []
    for volume in catalog.volumes():
        snapshots = catalog.snapshots(volume.volume_id)
        newest = snapshots[-1] if snapshots else None
        classes = classes_page(sources.standing, volume.volume_id, name_of=sources.name_of, may_show=members)
        page.append(
            {
                "name": volume.name,
                "volume_id": volume.volume_id.hex(),
                "kind": volume.kind,
                "origin": sources.name_of(volume.origin),
                "path": None if volume.path is None else volume.path.decode(errors="backslashreplace"),
                "snapshots": len(snapshots),
                "newest": None if newest is None else newest.snapshot_id.hex(),
                "newest_age_s": None if newest is None else _age(now, newest.record.taken_ns),
                "size_bytes": 0 if newest is None else newest.record.size_bytes,
                "skipped": 0 if newest is None else newest.record.skipped,
                "protection": _promise(promises.get(volume.volume_id), now),
                "held_by": sorted(
                    catalog.peers.name_of(site)
                    for site in (() if newest is None else held_by.get(newest.snapshot_id, ()))
                ),
                "classes": classes,
                "sessions_needed": max(0, len(classes) - 1),
            }
        )
    return page


def _promise(promise: Protection | None, now: int) -> dict[str, Any] | None:
    if promise is None:
        return None
    return {
        "every_s": promise.every_s,
        "keep": promise.keep,
        "last_success_s": _age(now, promise.last_success_ns),
        "next_run_s": round((promise.next_run_ns - now) / 1e9, 3),
        "last_error": promise.last_error,
    }


def _store(parts: Parts, now: int) -> dict[str, Any]:
    counted = parts.store.statistics()
    logical = sum(snapshot.record.size_bytes for snapshot in parts.catalog.snapshots())
    return {
        "blocks": counted.blocks,
        "sealed_bytes": counted.sealed_bytes,
        "disk_bytes": counted.disk_bytes,
        "segments": counted.segments,
        "logical_bytes": logical,
        "dedup_ratio": round(logical / counted.sealed_bytes, 3) if counted.sealed_bytes else 0.0,
        "compression_ratio": round(counted.body_bytes / counted.sealed_bytes, 3) if counted.sealed_bytes else 0.0,
        "broken_blocks": counted.broken_blocks,
        "condemned_blocks": counted.condemned_blocks,
        "read_only": counted.read_only,
        "soft_errors": counted.soft_errors,
        "deletion_off": parts.collector.why_off(),
        "ballast_bytes": parts.ballast.bytes_here,
        "oldest_verified_s": _age(now, counted.oldest_verified_ns),
    }


def describe_job(view: JobView) -> dict[str, Any]:
    """One job as the API tells it."""
    row, progress = view.row, view.progress
    return {
        "job_id": row.job_id,
        "kind": row.kind,
        "state": row.state,
        "args": row.args,
        "created_ns": row.created_ns,
        "started_ns": row.started_ns,
        "finished_ns": row.finished_ns,
        "progress": None if progress is None else asdict(progress),
        "result": row.result,
        "error": row.error,
    }
