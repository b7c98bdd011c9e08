"""What is due: snapshots by their period, syncs by what a peer has not signed for.

Both are derived from the catalogue each time, so there is no queue that a crash could lose:
a sync is due when a snapshot exists without the peer's receipt, a snapshot is due when its
time has come. Periods missed while the node was down are made up for once, not many times.
"""

from collections.abc import Sequence
from typing import Final

from protocol.ids import SiteId, SnapshotId
from replicator.catalog.catalog import EVERY_VOLUME, Catalog
from replicator.catalog.model import Protection, SiteSync, Snapshot
from replicator.core.ports import WallClock
from replicator.core.workers import Idle, Outcome
from replicator.jobs.runner import JobRunner

_LOOK_S: Final = 1.0
_RETRY_FIRST_S: Final = 5.0
_RETRY_MOST_S: Final = 600.0


def is_due(protection: Protection, now_ns: int) -> bool:
    """Whether a snapshot should be taken now.

    One that is due in more than a period was planned by a clock that has been set back since. Waiting for that
    day would be years of silence, so it is due now.
    """
    return not now_ns < protection.next_run_ns <= now_ns + int(protection.every_s * 1e9)


def plan_next_run(protection: Protection, now_ns: int) -> int:
    """The first multiple of the period after now, counted from when it was last due."""
    period = int(protection.every_s * 1e9)
    if protection.next_run_ns > now_ns + period:
        return now_ns + period
    behind = max(0, now_ns - protection.next_run_ns)
    return protection.next_run_ns + (behind // period + 1) * period


def plan_retry_s(failures: int, *, jitter: float) -> float:
    """How long to wait after so many failures in a row: doubling, up to ten minutes, plus up to a half at random."""
    return min(_RETRY_MOST_S, _RETRY_FIRST_S * 2.0 ** min(failures, 16)) * (1 + jitter / 2)


def may_try(sync: SiteSync, now_ns: int) -> bool:
    """Whether a sync has waited long enough since it last failed, also if the clock was set back meanwhile."""
    return not now_ns < sync.next_try_ns <= now_ns + int(1.5 * _RETRY_MOST_S * 1e9)


def pending_snapshots(
    catalog: Catalog, sync: SiteSync, receipts: dict[tuple[SnapshotId, SiteId], int]
) -> list[Snapshot]:
    """What the sync's peer has not signed for, newest first: the freshest copy is the one that counts."""
    volumes = {
        volume.volume_id
        for volume in catalog.volumes()
        # "Every volume" does not send a site its own back; a sync that names the volume does: the way home.
        if volume.volume_id == sync.volume_id or (sync.volume_id == EVERY_VOLUME and volume.origin != sync.peer)
    }
    return [
        snapshot
        for snapshot in reversed(catalog.snapshots())
        if snapshot.record.volume_id in volumes and (snapshot.snapshot_id, sync.peer) not in receipts
    ]


class Scheduler:
    """The worker that submits what is due."""

    name = "scheduler"

    def __init__(self, *, catalog: Catalog, jobs: JobRunner, clock: WallClock) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._clock = clock

    async def step(self) -> Outcome:
        now = self._clock.now_ns()
        for protection in self._catalog.protections():
            if is_due(protection, now):
                self._submit_snapshot(protection, now)
        receipts = self._catalog.receipts()
        for sync in self._catalog.syncs():
            if not sync.paused and may_try(sync, now) and pending_snapshots(self._catalog, sync, receipts):
                self._submit_sync(sync)
        return Idle(_LOOK_S)

    def _submit_snapshot(self, protection: Protection, now: int) -> None:
        volume = protection.volume_id.hex()
        if not self._jobs.is_active("snapshot", volume):
            job_id = f"scheduled-{volume[:8]}-{protection.next_run_ns}"
            self._jobs.submit("snapshot", {"volumes": [volume], "tags": ["scheduled"]}, job_id=job_id)
        self._catalog.note_protection_run(protection.volume_id, next_run_ns=plan_next_run(protection, now))

    def _submit_sync(self, sync: SiteSync) -> None:
        if not self._jobs.is_active("sync", sync.sync_id):
            job_id = f"sync-{sync.sync_id}-{self._clock.now_ns()}"
            self._jobs.submit("sync", {"sync": sync.sync_id}, job_id=job_id)


def next_try_ns(now_ns: int, failures: int, *, jitter: float) -> int:
    """When a sync that just failed is tried again."""
    return now_ns + int(plan_retry_s(failures, jitter=jitter) * 1e9)


def exclusive_by_volume(volumes: Sequence[str]) -> str:
    """Snapshots of one volume take turns; a system snapshot takes turns with other system snapshots."""
    return volumes[0] if len(volumes) == 1 else "system"
