"""Looking after the store: scrub, repair, verify, collect."""

from typing import Any

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.manifest.walk import closure
from replicator.core.errors import BlockMissing, StoreFull, UsageError
from replicator.core.progress import Progress
from replicator.jobs.parts import Parts
from replicator.jobs.recovery import recover_snapshots
from replicator.jobs.runner import JobContext
from replicator.repair.coverage import find_touched
from replicator.store.collect import Collected, Mark, Marks, MarkSet
from replicator.store.ports import Cause, Fault

_LISTED_MAX = 200
_RUNS_MAX = 64
"""Of one `gc --grace 0`: each frees at least what its sentences took."""


class CareJobs:
    """Jobs of the kinds `scrub`, `repair`, `verify`, `gc`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def scrub(self, context: JobContext) -> dict[str, Any]:
        """`{"from_start": bool}`: read everything again; mend what peers have."""
        report = await self._parts.scrubber.run(context.progress, from_start=context.args.get("from_start", True))
        return {
            "blocks": report.blocks,
            "sealed_bytes": report.sealed_bytes,
            "damaged": len(report.faults),
            "healed": report.healed,
            "unhealed": len(report.unhealed),
            "faults": [describe_fault(fault) for fault in report.faults[:_LISTED_MAX]],
            "causes": _count(report.faults),
            "touched": await self._touched(report.unhealed),
        }

    async def repair(self, context: JobContext) -> dict[str, Any]:
        """`{}`: try again for everything in quarantine."""
        parts = self._parts
        if parts.healer is None:
            raise UsageError("Repair needs the other sites.", hint="Start the node with `replicator up`, then repair.")
        broken = parts.store.broken()
        context.progress.begin("asking peers for sound copies", unit="blocks", total=len(broken))
        healed = 0
        unhealed: list[Fault] = []
        for at in range(0, len(broken), 256):
            answer = await parts.healer.heal(broken[at : at + 256])
            healed += len(answer.healed)
            unhealed += answer.unhealed
            context.progress.set_done(min(len(broken), at + 256))
        return {
            "damaged": len(broken),
            "healed": healed,
            "unhealed": len(unhealed),
            "faults": [describe_fault(fault) for fault in unhealed[:_LISTED_MAX]],
            "touched": await self._touched(unhealed),
        }

    async def _touched(self, faults: list[Fault]) -> list[dict[str, str]]:
        lost = [fault.block_id for fault in faults]
        found = await find_touched(self._parts.catalog, self._parts.reader, lost)
        return [{"snapshot": one.snapshot, "volume": one.volume, "where": one.where} for one in found]

    async def verify(self, context: JobContext) -> dict[str, Any]:
        """`{"snapshot": id}` or `{}` for all: read every block that the snapshot needs, and prove it."""
        parts = self._parts
        wanted = context.args.get("snapshot")
        snapshots = [parts.catalog.snapshot(bytes.fromhex(wanted))] if wanted else parts.catalog.snapshots()
        seen: set[BlockId] = set()
        blocks = 0
        faults: list[Fault] = []
        context.progress.begin("proving snapshots", unit="blocks")
        for snapshot in snapshots:
            record = snapshot.record
            context.progress.detail = record.volume_name
            try:
                async for kind, packed in closure(parts.reader, record.root, record.shape, seen=seen):
                    ids = [BlockId(packed[at : at + BLOCK_ID_BYTES]) for at in range(0, len(packed), BLOCK_ID_BYTES)]
                    faults += await self._prove(ids, kind, context.progress)
                    blocks += len(ids)
            except BlockMissing as error:
                seen.discard(record.root)
                faults.append(Fault(BlockId(error.block_id), 1, Cause.MISSING, None))
        return {
            "snapshots": len(snapshots),
            "blocks": blocks,
            "damaged": len(faults),
            "faults": [describe_fault(fault) for fault in faults[:_LISTED_MAX]],
            "touched": await self._touched(faults),
        }

    async def _prove(self, ids: list[BlockId], kind: int, progress: Progress) -> list[Fault]:
        faults: list[Fault] = []
        for at in range(0, len(ids), 64):
            part = ids[at : at + 64]
            try:
                await self._parts.reader.read(part)
            except BlockMissing:
                found = await self._parts.offload.run(self._parts.store.read, part)
                faults += found.faults
            progress.advance(len(part))
        return faults

    async def collect(self, context: JobContext) -> dict[str, Any]:
        """`{"grace_s": number|None, "dry_run": bool, "undo": bool}`."""
        parts = self._parts
        if context.args.get("undo"):
            saved = await parts.offload.run(parts.collector.undo)
            return {"undone": saved}
        grace_s = context.args.get("grace_s")
        dry_run = bool(context.args.get("dry_run"))
        grace_s = parts.grace_s if grace_s is None else float(grace_s)
        done = await self._collect_with_room(context.progress, grace_s=grace_s, dry_run=dry_run)
        if grace_s == 0 and not dry_run:
            # With no grace asked for, sentence and execution are two runs with a fresh mark between them. On a disk
            # that was too full for all sentences at once, each run makes room for more of them.
            last, runs = done, 0
            while last.blocks_condemned and runs < _RUNS_MAX:
                last = await self._collect_with_room(context.progress, grace_s=0.0, dry_run=False)
                done, runs = _joined(done, last), runs + 1
        return describe_collected(done, dry_run=dry_run)

    async def _collect_with_room(self, progress: Progress, *, grace_s: float, dry_run: bool) -> Collected:
        """A run; on a disk without a free byte, with what the ballast and the segments that are wholly dead leave."""
        try:
            return await self._collect_once(progress, grace_s=grace_s, dry_run=dry_run)
        except StoreFull as error:
            freed = await self._parts.offload.run(self._parts.collector.free_dead)
            gave_up = await self._parts.offload.run(self._parts.ballast.give_up, f"collecting: {error.message}")
            if not freed and not gave_up:
                raise
        return await self._collect_once(progress, grace_s=grace_s, dry_run=dry_run)

    async def _collect_once(self, progress: Progress, *, grace_s: float, dry_run: bool) -> Collected:
        parts = self._parts
        mark = await parts.offload.run(parts.collector.begin)
        recover_snapshots(parts.store, parts.catalog, await parts.offload.run(parts.collector.records))
        marks = await self._mark(progress)
        progress.begin("letting go of what nothing needs", unit="blocks")

        def finish(mark: Mark, marks: Marks) -> Collected:
            return parts.collector.finish(mark, marks, grace_s=grace_s, dry_run=dry_run)

        return await parts.offload.run(finish, mark, marks)

    async def _mark(self, progress: Progress) -> Marks:
        """Walk everything that snapshots reach. A block that cannot be read ends the run: it is not "absent"."""
        parts = self._parts
        snapshots = parts.catalog.snapshots()
        progress.begin("marking what snapshots need", unit="snapshots", total=len(snapshots))
        marks = MarkSet()
        seen: set[BlockId] = set()
        for snapshot in snapshots:
            marks.add(snapshot.record_block)
            record = snapshot.record
            async for _, packed in closure(parts.reader, record.root, record.shape, seen=seen):
                if packed:
                    marks.add(packed)
            progress.advance(1)
        return marks.finish()


def describe_fault(fault: Fault) -> dict[str, Any]:
    place = fault.place
    where = f"segment {place.segment} at {place.offset}" if place is not None else "no known place"
    return {"block": fault.block_id.hex(), "cause": fault.cause.value, "where": where}


def _count(faults: list[Fault]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for fault in faults:
        counts[fault.cause.value] = counts.get(fault.cause.value, 0) + 1
    return counts


def _joined(first: Collected, second: Collected) -> Collected:
    return Collected(
        blocks_condemned=first.blocks_condemned + second.blocks_condemned,
        bytes_condemned=first.bytes_condemned + second.bytes_condemned,
        blocks_swept=first.blocks_swept + second.blocks_swept,
        bytes_swept=first.bytes_swept + second.bytes_swept,
        blocks_revived=first.blocks_revived + second.blocks_revived,
        segments_removed=first.segments_removed + second.segments_removed,
        bytes_freed=first.bytes_freed + second.bytes_freed,
        writers_waited_for=second.writers_waited_for,
        duration_s=first.duration_s + second.duration_s,
    )


def describe_collected(done: Collected, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "blocks_condemned": done.blocks_condemned,
        "bytes_condemned": done.bytes_condemned,
        "blocks_swept": done.blocks_swept,
        "bytes_swept": done.bytes_swept,
        "blocks_revived": done.blocks_revived,
        "segments_removed": done.segments_removed,
        "bytes_freed": done.bytes_freed,
        "writers_waited_for": done.writers_waited_for,
        "took_s": round(done.duration_s, 3),
    }
