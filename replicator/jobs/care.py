"""Looking after the store: scrub, repair, verify."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.manifest.walk import Layer, closure
from replicator.core.errors import BlockMissing, CatalogError, UsageError
from replicator.core.logging import get_logger
from replicator.core.progress import Progress
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.repair.ask import in_disk_order
from replicator.repair.coverage import find_touched
from replicator.repair.unread import RecordsUnread, account_for_records
from replicator.repair.verdict import Verdict, describe_place
from replicator.store.ports import Cause, Fault

_LISTED_MAX = 200
_RUNS_MAX = 64
"""Of one `gc --grace 0`: each frees at least what its sentences took."""


class CareJobs:
    """Jobs of the kinds `scrub`, `repair`, `verify`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def scrub(self, context: JobContext) -> dict[str, Any]:
        """`{"from_start": bool, "is_deep": bool}`: read everything again; mend what peers have."""
        args = context.args
        report = await self._parts.scrubber.run(
            context.progress, from_start=args.get("from_start", True), is_deep=args.get("is_deep", False)
        )
        return {
            "blocks": report.blocks,
            "sealed_bytes": report.sealed_bytes,
            "damaged": len(report.faults),
            "healed": report.healed,
            "unhealed": len(report.unhealed),
            "faults": [describe_fault(fault) for fault in report.faults[:_LISTED_MAX]],
            "causes": _count(report.faults),
            "soft_errors": report.soft_errors,
            "verdicts": [describe_verdict(one) for one in report.verdicts[:_LISTED_MAX]],
            "metadata_damaged": sum(one.what in ("index", "catalogue", "record") for one in report.verdicts),
            "metadata_unmended": sum(not one.is_mended and not one.block_id for one in report.verdicts),
            "touched": await self._touched(report.unhealed),
        }

    async def repair(self, context: JobContext) -> dict[str, Any]:
        """`{}`: try again for everything in quarantine."""
        parts = self._parts
        if parts.healer is None:
            raise UsageError("Repair needs the other sites.", hint="Start the node with `replicator up`, then repair.")
        broken = in_disk_order(parts.store.broken())
        context.progress.begin("asking peers for sound copies", unit="blocks", total=len(broken))
        answer = await parts.healer.heal(broken, tell=context.progress.advance)
        context.progress.set_done(len(broken))
        with suppress(RecordsUnread):  # There is an alert for it, and the broken records are among the broken blocks.
            await account_for_records(parts.catalog, parts.reader, give_up=False)
        return {
            "damaged": len(broken),
            "healed": len(answer.healed),
            "unhealed": len(answer.unhealed),
            "faults": [describe_fault(fault) for fault in answer.unhealed[:_LISTED_MAX]],
            "touched": await self._touched(answer.unhealed),
        }

    async def _touched(self, faults: list[Fault]) -> list[dict[str, str]]:
        lost = [fault.block_id for fault in faults]
        try:
            found = await find_touched(self._parts.catalog, self._parts.reader, lost)
        except CatalogError as error:
            get_logger().warning("touched.unknown", error=str(error))
            found = []  # A damaged row stands in the way; the verdicts name it.
        return [{"snapshot": one.snapshot, "volume": one.volume, "where": one.where} for one in found]

    async def verify(self, context: JobContext) -> dict[str, Any]:
        """`{"snapshot": id}` or `{}` for all: read every block that the snapshot needs, and prove it."""
        parts = self._parts
        wanted = context.args.get("snapshot")
        snapshots = [parts.catalog.snapshot(bytes.fromhex(wanted))] if wanted else parts.catalog.snapshots()
        below: set[BlockId] = set()
        blocks = 0
        faults: list[Fault] = []
        context.progress.begin("proving snapshots", unit="blocks")
        for snapshot in snapshots:
            record = snapshot.record
            context.progress.detail = record.volume_name
            seen = Layer(below)
            try:
                async for kind, packed in closure(parts.reader, record.root, record.shape, seen=seen):
                    ids = [BlockId(packed[at : at + BLOCK_ID_BYTES]) for at in range(0, len(packed), BLOCK_ID_BYTES)]
                    faults += await self._prove(ids, kind, context.progress)
                    blocks += len(ids)
                seen.merge()
            except BlockMissing as error:
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


def describe_verdict(verdict: Verdict) -> dict[str, Any]:
    return {key: value for key, value in asdict(verdict).items() if key != "block_id"}


def describe_fault(fault: Fault) -> dict[str, Any]:
    return {"block": fault.block_id.hex(), "cause": fault.cause.value, "where": describe_place(fault)}


def _count(faults: list[Fault]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for fault in faults:
        counts[fault.cause.value] = counts.get(fault.cause.value, 0) + 1
    return counts
