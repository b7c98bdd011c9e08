"""Taking snapshots."""

from dataclasses import replace
from typing import Any

from protocol.ids import SnapshotId
from protocol.wire.hashing import derived_key
from replicator.catalog.manifest.nodes import EMPTY_ROOTS
from replicator.catalog.model import Volume
from replicator.catalog.records import SnapshotRecord, sign_record
from replicator.catalog.terms import TENANT
from replicator.core.errors import UsageError
from replicator.ingest.pipeline import take
from replicator.ingest.sources import Taken
from replicator.jobs.ahead import SendingAhead, sending_ahead
from replicator.jobs.parts import Parts
from replicator.jobs.pruning import prune_volume
from replicator.jobs.runner import JobContext
from replicator.store.ports import Lease
from replicator.sync.publish import publish_snapshot, store_record

_LISTED_MAX = 50
_RUNS = "snapshot.runs:"
"""And the job: how often it was begun anew. Gone when it is done."""


class SnapshotJobs:
    """Jobs of the kind `snapshot`: `{"volumes": [id, …], "tags": […]}`. Several volumes make one system snapshot."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, context: JobContext) -> dict[str, Any]:
        """The ids of the new snapshots derive from the job, so that a job that is run again takes none twice.

        And from how often it was run, so that no two records ever have one id: a run that was killed may have left a
        record in the store that no catalogue knew. If the catalogue were lost later, it would be found there beside the
        one that the peers hold, and whichever was entered first, the other would be refused for ever.
        """
        parts = self._parts
        runs = self._count_run(context)
        volumes = [parts.catalog.volume(bytes.fromhex(text)) for text in context.args["volumes"]]
        if not volumes:
            raise UsageError("Nothing is protected yet.", hint="Run `replicator protect PATH` first.")
        system_id = _derived(context.job_id, "system") if len(volumes) > 1 else b""
        results: list[dict[str, Any]] = []
        lease = parts.store.begin(f"snapshot {', '.join(volume.name for volume in volumes)}")
        signed: list[tuple[bytes, dict[str, Any]]] = []
        try:
            async with sending_ahead(parts) as ahead:
                for volume in volumes:
                    ids = [_snapshot_id(context.job_id, volume, run) for run in range(runs + 1)]
                    if any(map(parts.catalog.has_snapshot, ids)):
                        continue
                    snapshot_id = ids[-1]
                    context.progress.detail = volume.name
                    signed.append(await self._take(volume, snapshot_id, context, lease, system_id, len(volumes), ahead))
                for record, result in signed:
                    name = await parts.offload.run(store_record, parts.store, lease, record)
                    publish_snapshot(parts.catalog, parts.store, lease, record, name)
                    results.append(result)
                parts.wake_scheduler()
        except Exception as error:
            for volume in volumes:
                parts.catalog.note_protection_result(volume.volume_id, error=str(error))
            raise
        finally:
            parts.store.end(lease)
        if runs:
            parts.catalog.forget_fact(_RUNS + context.job_id)
        for volume in volumes:
            parts.catalog.note_protection_result(volume.volume_id, error="")
        pruned = sum(prune_volume(parts, volume) for volume in volumes)
        parts.wake_scheduler()
        return {"snapshots": results, "system_id": system_id.hex(), "pruned": pruned}

    def _count_run(self, context: JobContext) -> int:
        """How often the job was begun before: 0 for nearly all. Noted before anything can be stored."""
        if not context.is_again:
            return 0
        runs = int(self._parts.catalog.fact(_RUNS + context.job_id) or 0) + 1
        self._parts.catalog.set_fact(_RUNS + context.job_id, str(runs))
        return runs

    async def _take(
        self,
        volume: Volume,
        snapshot_id: SnapshotId,
        context: JobContext,
        lease: Lease,
        system_id: bytes,
        members: int,
        ahead: SendingAhead,
    ) -> tuple[bytes, dict[str, Any]]:
        parts = self._parts
        taken_ns = parts.clock.now_ns()
        # Read once: blocks go ahead by this label, and what went ahead for one tenant must not become another's.
        tags = self._tags(volume, context)
        taken = await take(
            parts.sources.open(volume),
            store=parts.store,
            lease=lease,
            offload=parts.offload,
            progress=context.progress,
            clock=parts.clock,
            memo=parts.memo_folder and parts.memo_folder / volume.volume_id.hex(),
            config=replace(parts.ingest, image_block_bytes=volume.block_bytes or parts.ingest.image_block_bytes),
            ahead=ahead.of(volume, snapshot_id, tags),
        )
        record = SnapshotRecord(
            snapshot_id=snapshot_id,
            origin=parts.site_id,
            volume_id=volume.volume_id,
            volume_name=volume.name,
            kind=volume.kind,
            sequence=parts.catalog.next_sequence(volume.volume_id),
            taken_ns=taken_ns,
            root=taken.root,
            size_bytes=taken.size_bytes,
            entries=taken.entries,
            block_bytes=volume.block_bytes,
            consistency="crash",
            tags=tags,
            system_id=system_id,
            system_size=members,
            skipped=len(taken.skipped),
        )
        return sign_record(record, parts.sign), describe_taken(record, taken)

    def _tags(self, volume: Volume, context: JobContext) -> tuple[str, ...]:
        """Whose data it is travels with the snapshot, so that other sites can go by it."""
        tenant = self._parts.catalog.tenant_of(volume.volume_id)
        return (*context.args.get("tags", ()), *([TENANT + tenant] if tenant else []))


def describe_taken(record: SnapshotRecord, taken: Taken) -> dict[str, Any]:
    return {
        "snapshot": record.snapshot_id.hex(),
        "volume": record.volume_name,
        "kind": record.kind,
        "root": record.root.hex(),
        "is_empty": record.root in EMPTY_ROOTS.values(),
        "size_bytes": taken.size_bytes,
        "entries": taken.entries,
        "blocks_new": taken.blocks_new,
        "bytes_new": taken.bytes_new,
        "bytes_read": taken.bytes_read,
        "files_unopened": taken.files_unopened,
        "skipped_count": len(taken.skipped),
        "skipped": [{"path": _text(one.path), "reason": one.reason} for one in taken.skipped[:_LISTED_MAX]],
        "changed_while_read": [_text(path) for path in taken.changed_while_read[:_LISTED_MAX]],
    }


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _snapshot_id(job_id: str, volume: Volume, run: int) -> SnapshotId:
    again = f"/{run}" if run else ""
    return SnapshotId(_derived(job_id, volume.volume_id.hex() + again))


def _derived(job_id: str, what: str) -> bytes:
    return derived_key("replicator 2026-11-22 ids of a job v1", f"{job_id}/{what}".encode())[:16]
