"""What becomes of snapshots by rule: the promise's for what was taken here, this site's own for copies."""

from collections.abc import Mapping, Sequence
from typing import Final

from protocol.ids import SnapshotId
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import SiteSync, Snapshot, Volume
from replicator.catalog.retention import Candidate, CopyGuard, Verdict, plan_retention
from replicator.catalog.terms import CONTINUOUS_TAG
from replicator.jobs.arrivals import crowded_hours, note_arrivals
from replicator.jobs.due import owed
from replicator.jobs.parts import Parts

_CONTINUOUS_KEPT: Final = 10
"""Of a volume without a keep rule: enough that a peer which was away for a little finds a base among them."""


def prune_volume(parts: Parts, volume: Volume) -> int:
    """Forget the snapshots that the volume's keep rule lets go; their blocks are the collector's business.

    On a full disk with the ballast's help, as a person's delete: a node whose disk has filled up over the weekend
    would otherwise wait for somebody to do by hand what its rule says. Returns how many; none while the clock
    is not trusted, for a rule counts in hours and days.
    """
    if volume.path is None:
        note_arrivals(parts.catalog, volume.volume_id)
    gone = [verdict.snapshot_id for verdict in plan_pruning(parts.catalog, volume) if not verdict.reason]
    if not gone or parts.brake.why():
        return 0
    parts.ballast.with_room("pruning", lambda: parts.catalog.delete_snapshots(gone))
    return len(gone)


def _candidates(snapshots: Sequence[Snapshot]) -> list[Candidate]:
    return [Candidate(s.snapshot_id, s.record.sequence, s.received_ns, s.held) for s in snapshots]


def plan_pruning(catalog: Catalog, volume: Volume) -> list[Verdict]:
    """What becomes of each snapshot of a volume, newest first, and why.

    What was taken here is kept by the promise that was made here; a copy by what this site has decided about copies.
    Snapshots that a continuous sync takes for itself are many, and kept only while they are of use.
    """
    snapshots = catalog.snapshots(volume.volume_id)
    is_copy = volume.path is None
    candidates = _candidates(snapshots)
    if is_copy:
        rule, guard = catalog.copy_rules().get(volume.volume_id), CopyGuard(crowded_hours(catalog, volume.volume_id))
        verdicts = plan_retention("" if rule is None else rule.keep, candidates, guard=guard)
    else:
        promises = {one.volume_id: one.keep for one in catalog.protections()}
        verdicts = plan_retention(promises.get(volume.volume_id, ""), candidates)
        if not promises.get(volume.volume_id, ""):
            passing = {s.snapshot_id for s in snapshots[:-_CONTINUOUS_KEPT] if CONTINUOUS_TAG in s.record.tags}
            verdicts = [
                Verdict(v.snapshot_id, "" if v.reason == "no rule" and v.snapshot_id in passing else v.reason)
                for v in verdicts
            ]
    owing = owed(catalog)
    return [_with_debts(catalog, volume, verdict, owing) for verdict in verdicts]


def _with_debts(
    catalog: Catalog, volume: Volume, verdict: Verdict, owing: Mapping[SnapshotId, Sequence[SiteSync]]
) -> Verdict:
    if verdict.reason:
        return verdict
    if syncs := owing.get(verdict.snapshot_id):
        names = ", ".join(sorted({catalog.peers.name_of(sync.peer) for sync in syncs}))
        return Verdict(verdict.snapshot_id, f"owed to {names}")
    if _is_awaited(catalog, verdict.snapshot_id, volume):
        return Verdict(verdict.snapshot_id, "the base of the next difference")
    return verdict


def _is_awaited(catalog: Catalog, snapshot_id: SnapshotId, volume: Volume) -> bool:
    """Whether a peer's last receipt is for this one: it is the base of the next difference (zrepl#340)."""
    receipts = catalog.receipts()
    order = [snapshot.snapshot_id for snapshot in catalog.snapshots(volume.volume_id)]
    for sync in catalog.syncs():
        proven = [one for one in order if (one, sync.peer) in receipts]
        if proven and proven[-1] == snapshot_id:
            return True
    return False
