"""All kinds of job, in one table."""

from replicator.jobs.audit import AuditJobs
from replicator.jobs.care import CareJobs
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.parts import Parts
from replicator.jobs.replicate import SyncJobs
from replicator.jobs.restoration import RestoreJobs
from replicator.jobs.runner import JobKind
from replicator.jobs.scheduler import exclusive_by_volume
from replicator.jobs.seeding import SeedJobs
from replicator.jobs.snapshot import SnapshotJobs


def job_kinds(parts: Parts, syncs: SyncJobs | None = None) -> dict[str, JobKind]:
    """What this node can be asked to do. Jobs with equal exclusion keys take turns."""
    care, seeds, collection = CareJobs(parts), SeedJobs(parts), CollectionJobs(parts)
    return {
        "snapshot": JobKind(SnapshotJobs(parts).run, lambda args: exclusive_by_volume(args.get("volumes", []))),
        "sync": JobKind((syncs or SyncJobs(parts)).run, lambda args: str(args.get("sync", ""))),
        "scrub": JobKind(care.scrub, lambda args: "scrub"),
        "repair": JobKind(care.repair, lambda args: "repair"),
        "verify": JobKind(care.verify, lambda args: ""),
        "gc": JobKind(collection.collect, lambda args: "gc"),
        "foretell": JobKind(collection.foretell, lambda args: ""),
        "audit": JobKind(AuditJobs(parts).run, lambda args: ""),
        "seed-export": JobKind(seeds.export, lambda args: str(args.get("path", ""))),
        "seed-import": JobKind(seeds.take_in, lambda args: str(args.get("path", ""))),
        "restore": JobKind(RestoreJobs(parts).run, lambda args: str(args.get("target", ""))),
    }
