"""What is due: snapshots by their period, syncs by what a peer has not signed for.

Both are derived from the catalogue each time, so there is no queue that a crash could lose:
a sync is due when a snapshot exists without the peer's receipt, a snapshot is due when its
time has come. Periods missed while the node was down are made up for once, not many times.
"""

from collections.abc import Callable, Sequence
from typing import Final

from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Protection, SiteSync
from replicator.catalog.terms import PULL
from replicator.core.ports import WallClock
from replicator.core.workers import Idle, Outcome
from replicator.jobs.due import decide, may_try, pending_snapshots, tags_of_continuous, volumes_to_snapshot
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


class Scheduler:
    """The worker that submits what is due."""

    name = "scheduler"

    def __init__(
        self,
        *,
        catalog: Catalog,
        jobs: JobRunner,
        clock: WallClock,
        has_remote: Callable[[SiteSync], bool] = lambda _: False,
    ) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._clock = clock
        self._has_remote = has_remote
        """Whether there is something to fetch for a pull."""
        self._owing: frozenset[str] = frozenset()
        self._owing_at: int | None = None

    async def step(self) -> Outcome:
        now = self._clock.now_ns()
        for protection in self._catalog.protections():
            if is_due(protection, now):
                self._submit_snapshot(protection, now)
        # The most urgent first: where several could begin in this second, it gets the place.
        syncs = sorted(self._catalog.syncs(), key=lambda one: one.terms.priority)
        owing = self._owing_now(syncs)
        for sync in syncs:
            self._look_at(sync, now, has_pending=sync.sync_id in owing)
        return Idle(_LOOK_S)

    def _owing_now(self, syncs: Sequence[SiteSync]) -> frozenset[str]:
        """The pushes with something to bring over. The catalogue alone says so: while that rests, so does this."""
        changes = self._catalog.db.changes_count
        if changes != self._owing_at:
            receipts = self._catalog.receipts()
            self._owing = frozenset(s.sync_id for s in syncs if pending_snapshots(self._catalog, s, receipts))
            self._owing_at = changes
        return self._owing

    def _look_at(self, sync: SiteSync, now: int, *, has_pending: bool) -> None:
        for volume in volumes_to_snapshot(self._catalog, sync, now):
            if not self._jobs.is_active("snapshot", volume.volume_id.hex()):
                args = {"volumes": [volume.volume_id.hex()], "tags": tags_of_continuous(sync)}
                self._jobs.submit("snapshot", args, job_id=f"continuous-{volume.volume_id.hex()[:8]}-{now}")
        if sync.terms.direction == PULL:
            has_pending = bool(sync.terms.cron) or self._has_remote(sync)
        decision = decide(sync, now, has_pending=has_pending)
        if decision.is_due:
            self._submit_sync(sync)
        if decision.next_run_ns != sync.next_run_ns:
            self._catalog.plan_sync(sync.sync_id, next_run_ns=decision.next_run_ns)

    def _submit_snapshot(self, protection: Protection, now: int) -> None:
        volume = protection.volume_id.hex()
        if not self._jobs.is_active("snapshot", volume):
            job_id = f"scheduled-{volume[:8]}-{protection.next_run_ns}"
            self._jobs.submit("snapshot", {"volumes": [volume], "tags": ["scheduled"]}, job_id=job_id)
        self._catalog.note_protection_run(protection.volume_id, next_run_ns=plan_next_run(protection, now))

    def _submit_sync(self, sync: SiteSync) -> None:
        if not self._jobs.is_active("sync", sync.sync_id):
            job_id = f"sync-{sync.sync_id}-{self._clock.now_ns()}"
            self._jobs.submit("sync", {"sync": sync.sync_id, "scheduled": True}, job_id=job_id)


def next_try_ns(now_ns: int, failures: int, *, jitter: float) -> int:
    """When a sync that just failed is tried again."""
    return now_ns + int(plan_retry_s(failures, jitter=jitter) * 1e9)


def exclusive_by_volume(volumes: Sequence[str]) -> str:
    """Snapshots of one volume take turns; a system snapshot takes turns with other system snapshots."""
    return volumes[0] if len(volumes) == 1 else "system"


__all__ = [
    "Scheduler",
    "exclusive_by_volume",
    "is_due",
    "may_try",
    "next_try_ns",
    "pending_snapshots",
    "plan_next_run",
    "plan_retry_s",
]
