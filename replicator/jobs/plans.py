"""Planning a sync before it runs, and comparing afterwards."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import trio

from protocol.ids import BlockId, SiteId
from protocol.messages.mesh import ProbeBlocks
from replicator.catalog.model import SiteSync, Snapshot
from replicator.catalog.records import SnapshotRecord
from replicator.core.errors import Refused
from replicator.jobs.parts import Parts
from replicator.net.link import Link
from replicator.net.pacing import IN, OUT
from replicator.sync.plan import (
    SAMPLE_AHEAD_MAX,
    SAMPLE_MAX,
    Missing,
    Sample,
    SyncPlan,
    changed_blocks,
    make_plan,
    probe,
    remote_difference,
)
from replicator.sync.told import Told
from replicator.sync.walks import Walks

_MEMORY: Final = 0.5
"""How much the last sync counts for what is usual: the network of an hour ago is not that of last week."""


class Planner:
    """Plans, and remembers how fast each peer usually is."""

    def __init__(self, parts: Parts, walks: Walks) -> None:
        self._parts = parts
        self._walks = walks
        self._usual: dict[SiteId, float] = {}

    def note_rate(self, site: SiteId, *, count: int, took_s: float) -> None:
        """A sync has moved so much. Small ones say more about round trips than about the link."""
        if count >= 1_000_000 and took_s > 0:
            before = self._usual.get(site)
            rate = count / took_s
            self._usual[site] = rate if before is None else _MEMORY * rate + (1 - _MEMORY) * before

    async def plan_push(self, link: Link, sync: SiteSync, snapshot: Snapshot) -> SyncPlan:
        """What it will take to bring a snapshot of ours to the peer: what is still missing there, now.

        Of one whose blocks were sent ahead that is what did not go in time, and what lay here before.
        Raises `Refused` if the peer runs a release that cannot be asked, or does not let us ask.
        """
        parts = self._parts
        if not link.speaks(ProbeBlocks):
            raise Refused(f"{link.name} runs an older release, which cannot be asked what it lacks.")
        receipts = parts.catalog.receipts()
        proven = [
            one
            for one in parts.catalog.snapshots(snapshot.record.volume_id)
            if (one.snapshot_id, link.peer) in receipts
        ]
        base = BlockId(proven[-1].record.root) if proven else None
        ahead = link.sent_ahead.get(snapshot.snapshot_id)
        if ahead is not None and base is None:
            found = Missing.of_first(ahead)
        else:
            most = SAMPLE_MAX if ahead is None else SAMPLE_AHEAD_MAX
            sample = await changed_blocks(self._walks, snapshot.record, base, sample_max=most)
            found = self._missing(
                sample, await probe(link, sample), ahead_bytes=0 if ahead is None else ahead.sealed_bytes
            )
        return self._finish(sync, snapshot.record, found, from_base=base is not None, way=OUT)

    async def plan_pull(self, link: Link, sync: SiteSync, record: SnapshotRecord) -> SyncPlan:
        """What it will take to fetch a snapshot of the peer."""
        parts = self._parts
        roots = [one.record.root for one in reversed(parts.catalog.snapshots(record.volume_id))]
        sample, from_base = await remote_difference(link, record, roots)
        lease = parts.store.begin(f"a plan for {link.name}")
        try:
            here = await parts.offload.run(parts.store.have, lease, list(sample.sizes))
        finally:
            parts.store.end(lease)
        found = self._missing(sample, sample.sizes.keys() - here)
        return self._finish(sync, record, found, from_base=from_base, way=IN)

    def of_told(self, sync: SiteSync, record: SnapshotRecord, told: Told) -> SyncPlan:
        """The plan of a snapshot that is being fetched: its difference is told, most of its blocks have not come."""
        ratio = self._packed_ratio()
        found = Missing(
            changed_bytes=int(told.changed_bytes * ratio),
            missing_bytes=int(told.missing_bytes * ratio),
            missing_blocks=told.missing_blocks,
            is_estimate=False,
        )
        return self._finish(sync, record, found, from_base=told.from_base, way=IN)

    def _missing(self, sample: Sample, lacking: set[BlockId], *, ahead_bytes: int = 0) -> Missing:
        return Missing.of_sample(sample, lacking, packed_ratio=self._packed_ratio(), ahead_bytes=ahead_bytes)

    def _packed_ratio(self) -> float:
        """What a byte of content takes in this store, on average."""
        counted = self._parts.store.statistics()
        return counted.sealed_bytes / counted.body_bytes if counted.body_bytes else 1.0

    def _finish(
        self,
        sync: SiteSync,
        record: SnapshotRecord,
        found: Missing,
        *,
        from_base: bool,
        way: str,
    ) -> SyncPlan:
        parts = self._parts
        assert parts.mesh is not None
        pacing, job_rate = parts.mesh.pacing, sync.terms.rate_bytes
        rate_at: Callable[[int], int] = lambda ns: pacing.limit_bytes(sync.peer, way, now_ns=ns, job_rate=job_rate)  # noqa: E731
        return make_plan(
            record,
            found,
            from_base=from_base,
            now_ns=parts.clock.now_ns(),
            rate_at=rate_at,
            usual_rate=self._usual.get(sync.peer, 0.0),
            open_hours=sync.terms.open_hours,
        )


def describe_plan(plan: SyncPlan) -> dict[str, Any]:
    """A plan as the API tells it."""
    return {**asdict(plan), "seed_share": round(plan.seed_share, 4), "sentence": plan.sentence()}


def compare(plan: SyncPlan | None, sent: dict[str, Any]) -> dict[str, Any]:
    """Planned and actual, side by side."""
    actual = {"bytes": sent["block_bytes"], "blocks": sent["blocks"], "took_s": sent["took_s"]}
    if plan is None:
        return {"planned": None, "actual": actual}
    planned = {"bytes": plan.missing_bytes, "blocks": plan.missing_blocks, "took_s": plan.took_s}
    return {"planned": {**planned, "seed_share": round(plan.seed_share, 4)}, "actual": actual}


async def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of some asynchronous work, or None if it takes too long."""
    result = None
    with trio.move_on_after(seconds):
        result = await work()
    return result
