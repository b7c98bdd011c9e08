"""Collecting: marking what snapshots need, then letting go of the rest, step by step, as gently as was agreed."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import trio
from blake3 import blake3

from protocol.ids import BlockId, SnapshotId, split_ids
from replicator.catalog.manifest.walk import closure
from replicator.catalog.model import Snapshot
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.core.errors import BlockMissing, DeletionOff, StoreFull, UsageError
from replicator.core.logging import get_logger
from replicator.core.progress import Progress
from replicator.jobs.bulk import BulkGuard
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.repair.records import RecordCheck
from replicator.repair.unread import account_for_records
from replicator.store.collect import Collected, Mark, Plan, foretold
from replicator.store.marks import Marks, MarkSet, are_marked, prefixes

OFF_FACT: Final = "gc.off"
"""Why deletion is switched off, if it is."""
_HINT: Final = (
    "It is broken here, and a snapshot that is not in the catalogue needs it. When a peer that has it is linked, run "
    "this again; or give that snapshot up: `replicator gc --give-up`."
)
_LISTED_MAX: Final = 1000
_RUNS_MAX: Final = 64
"""Of one `gc --grace 0`: each frees at least what its sentences took."""


class CollectionJobs:
    """Jobs of the kinds `gc` and `foretell`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._guard = BulkGuard(parts.catalog, parts.store, parts.clock.now_ns)
        self._strays: dict[BlockId, float] = {}
        self._waiting: list[tuple[BlockId, bytes]] = []
        """Records without a row that may be about to get one: what they need is spared."""

    async def collect(self, context: JobContext) -> dict[str, Any]:
        """`{"grace_s": number|None, "dry_run": bool, "undo": bool, "confirmed": bool, "give_up": bool}`."""
        parts = self._parts
        if context.args.get("undo"):
            saved = await parts.offload.run(parts.ballast.with_room, "lifting sentences", parts.collector.undo)
            return {"undone": saved}
        grace_s = context.args.get("grace_s")
        grace_s = parts.grace_s if grace_s is None else float(grace_s)
        if grace_s < 0:
            raise UsageError(f"A grace of {grace_s:g} s cannot be.")
        # With no grace asked for, sentence and execution are two runs with a fresh mark between them.
        is_double = grace_s == 0
        await self._take_back_lost(give_up=bool(context.args.get("give_up")))
        if context.args.get("dry_run"):
            plan = await self._plan(context.progress, grace_s=grace_s, at_once=is_double, is_rehearsal=True)
            return describe_collected(foretold(plan, duration_s=0.0), share=plan.share, dry_run=True)
        if why := parts.collector.why_off():
            raise DeletionOff(f"Deletion is switched off: {why}.")
        confirmed = bool(context.args.get("confirmed"))
        progress = context.progress
        share, done = await self._run_with_room(progress, confirmed, grace_s=grace_s, shrinks=not is_double)
        last, runs = done, 0
        # On a disk that was too full for all sentences at once, each run makes room for more of them.
        while is_double and not last.held and not last.stopped and (not runs or last.blocks_condemned):
            _, last = await self._run_with_room(progress, confirmed, grace_s=0.0, shrinks=True)
            done, runs = done.joined(last), runs + 1
            if runs == _RUNS_MAX:
                break
        return describe_collected(done, share=share, dry_run=False)

    async def _take_back_lost(self, *, give_up: bool) -> None:
        """A snapshot that the catalogue has lost would be blocks that nothing needs. Raises `RecordsUnread`."""
        parts = self._parts
        check = RecordCheck(
            store=parts.store, catalog=parts.catalog, reader=parts.reader, offload=parts.offload, clock=parts.clock
        )
        if broken := await check.broken_strays():
            parts.catalog.lost.set_unread([*parts.catalog.lost.unread(), *broken])
        await account_for_records(parts.catalog, parts.reader, give_up=give_up)
        verdicts, self._waiting = await check.take_back_lost(self._strays, give_up=give_up)
        for verdict in verdicts:
            get_logger().warning("collect.snapshot_lost", snapshot=verdict.subject, done=verdict.done)

    async def _run_with_room(
        self, progress: Progress, confirmed: bool, *, grace_s: float, shrinks: bool
    ) -> tuple[float, Collected]:
        """A run; on a disk without a free byte, with what the ballast and the segments that are wholly dead leave."""
        parts = self._parts
        try:
            return await self._run(progress, confirmed, grace_s=grace_s, shrinks=shrinks)
        except StoreFull as error:
            freed = await self._free_dead(progress)
            gave_up = await parts.offload.run(parts.ballast.give_up, f"collecting: {error.message}")
            if not freed and not gave_up:
                raise
        return await self._run(progress, confirmed, grace_s=grace_s, shrinks=shrinks)

    async def _run(
        self, progress: Progress, confirmed: bool, *, grace_s: float, shrinks: bool
    ) -> tuple[float, Collected]:
        """One plan and its execution; also which share of the store the plan condemns."""
        plan = await self._plan(progress, grace_s=grace_s, at_once=False, is_rehearsal=False)
        alive = self._guard.alive()
        done = await self._carry_out(plan, progress, confirmed, shrinks=shrinks)

        def note() -> None:
            self._guard.note(plan, alive_before=alive, held=done.held, confirmed=confirmed)

        # On a disk that takes not even this, freeing goes before counting.
        with suppress(StoreFull):
            self._parts.ballast.with_room("counting what was let go", note)
        return plan.share, done

    async def _free_dead(self, progress: Progress) -> int:
        """A rehearsal writes nothing, so that there is a plan to hold dead segments against on a full disk too."""
        with suppress(StoreFull):
            plan = await self._plan(progress, grace_s=self._parts.grace_s, at_once=False, is_rehearsal=True)
            return await self._parts.offload.run(self._parts.collector.free_dead, plan)
        return 0

    async def _plan(self, progress: Progress, *, grace_s: float, at_once: bool, is_rehearsal: bool) -> Plan:
        parts = self._parts

        def begin() -> Mark:
            return parts.collector.begin(is_rehearsal=is_rehearsal)

        mark = await parts.offload.run(begin)
        marks = await self._mark(progress)
        progress.begin("looking for what nothing needs", unit="blocks")

        def plan(mark: Mark, marks: Marks) -> Plan:
            return parts.collector.plan(mark, marks, grace_s=grace_s, at_once=at_once)

        made = await parts.offload.run(plan, mark, marks)
        return replace(made, held=self._guard.judge(made, share_max=parts.collector.bulk_share_max))

    async def _mark(self, progress: Progress) -> Marks:
        """Walk everything that snapshots reach. A block that cannot be read ends the run: it is not "absent".

        Walking takes time, so whatever snapshots have appeared meanwhile are walked as well, until none has.
        """
        marks = MarkSet()
        walked: set[SnapshotId] = set()
        seen: set[BlockId] = set()
        while fresh := [one for one in self._parts.catalog.snapshots() if one.snapshot_id not in walked]:
            progress.begin("marking what snapshots need", unit="snapshots", total=len(fresh))
            for snapshot in fresh:
                await self._walk(snapshot, marks, seen)
                walked.add(snapshot.snapshot_id)
                progress.advance(1)
        for block, signed in self._waiting:
            try:
                await self._walk_record(block, open_record(signed), marks, seen)
            except BlockMissing as error:
                # Not whole: it can become no snapshot, and must not keep the rest from going. Unless it will be healed.
                if error.block_id in {fault.block_id for fault in self._parts.store.broken()}:
                    raise BlockMissing(error.block_id, hint=_HINT) from error
        return marks.finish()

    async def _walk(self, snapshot: Snapshot, marks: MarkSet, seen: set[BlockId]) -> None:
        await self._walk_record(snapshot.record_block, snapshot.record, marks, seen)

    async def _walk_record(self, block: BlockId, record: SnapshotRecord, marks: MarkSet, seen: set[BlockId]) -> None:
        marks.add(block)
        async for _, packed in closure(self._parts.reader, record.root, record.shape, seen=seen):
            if packed:
                marks.add(packed)

    async def _carry_out(self, plan: Plan, progress: Progress, confirmed: bool, *, shrinks: bool) -> Collected:
        """Step by step, each in a thread; what is moved on the disk is moved no faster than agreed."""
        parts = self._parts
        began = trio.current_time()
        run = parts.collector.carry_out(plan, confirmed=confirmed, shrinks=shrinks)
        progress.begin("letting go of what nothing needs", total=plan.sweep_bytes)
        steps = run.steps()
        while (moved := await parts.offload.run(next, steps, None)) is not None:
            progress.advance(moved)
            await trio.sleep(moved / parts.collector.rewrite_rate_bytes)
        return run.result(duration_s=trio.current_time() - began)

    async def foretell(self, context: JobContext) -> dict[str, Any]:
        """`{"snapshots": [id, …]}`: what deleting these would free: the blocks that no other snapshot needs."""
        parts = self._parts
        going = {SnapshotId(bytes.fromhex(text)) for text in context.args["snapshots"]}
        snapshots = parts.catalog.snapshots()
        chosen = [one for one in snapshots if one.snapshot_id in going]
        others, progress = MarkSet(), context.progress
        seen: set[BlockId] = set()
        progress.begin("adding up what other snapshots need", unit="snapshots", total=len(snapshots))
        for snapshot in snapshots:
            if snapshot.snapshot_id not in going:
                await self._walk(snapshot, others, seen)
                progress.advance(1)
        kept = others.finish()
        every, each = await self._only_theirs(chosen, kept, progress)
        return {
            "snapshots": [one.snapshot_id.hex() for one in chosen],
            "blocks_freed": every[0],
            "bytes_freed": every[1],
            "each": each,
        }

    async def _only_theirs(
        self, chosen: list[Snapshot], kept: Marks, progress: Progress
    ) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        """Blocks and bytes that only these need: together, and each of them alone if just it were to go."""
        needed = [await self._needed(snapshot) for snapshot in chosen]
        shared: dict[BlockId, int] = {}
        for ids in needed:
            for block in ids:
                shared[block] = shared.get(block, 0) + 1
        each: list[dict[str, Any]] = []
        for snapshot, ids in zip(chosen, needed, strict=True):
            progress.advance(1)
            alone = [block for block in ids if shared[block] == 1]
            count, size = await self._parts.offload.run(self._weigh, alone, kept)
            each.append({"snapshot": snapshot.snapshot_id.hex(), "blocks_freed": count, "bytes_freed": size})
        return await self._parts.offload.run(self._weigh, list(shared), kept), each

    async def _needed(self, snapshot: Snapshot) -> set[BlockId]:
        record = snapshot.record
        ids = {snapshot.record_block}
        async for _, packed in closure(self._parts.reader, record.root, record.shape):
            ids.update(split_ids(packed))
        return ids

    def _weigh(self, ids: list[BlockId], kept: Marks) -> tuple[int, int]:
        if not ids:
            return 0, 0
        spoken_for = are_marked(kept, prefixes(b"".join(ids)))
        theirs = [block for block, is_kept in zip(ids, spoken_for, strict=True) if not is_kept]
        return self._parts.collector.weigh(theirs)


def switch_deletion(parts: Parts, *, is_off: bool, reason: str) -> dict[str, Any]:
    """The kill switch. A run that has begun stops at its next step.

    Switching deletion on is also the word of a person that the wall clock is right.
    """
    if not is_off:
        parts.brake.trust()
    parts.catalog.set_fact(OFF_FACT, (reason.strip()[:200] or "somebody said so") if is_off else "")
    return {"deletion_off": parts.collector.why_off()}


def describe_collected(done: Collected, *, share: float, dry_run: bool) -> dict[str, Any]:
    condemned, swept = (sorted(split_ids(b"".join(runs))) for runs in (done.condemned, done.swept))
    return {
        "dry_run": dry_run,
        "blocks_condemned": done.blocks_condemned,
        "bytes_condemned": done.bytes_condemned,
        "share_condemned": round(share, 4),
        "blocks_swept": done.blocks_swept,
        "bytes_swept": done.bytes_swept,
        "blocks_revived": done.blocks_revived,
        "segments_removed": done.segments_removed,
        "segments": list(done.segments),
        "segments_kept": list(done.segments_kept),
        "bytes_freed": done.bytes_freed,
        "bytes_moved": done.bytes_moved,
        "condemned": [block.hex() for block in condemned[:_LISTED_MAX]],
        "swept": [block.hex() for block in swept[:_LISTED_MAX]],
        # Of all ids, also those beyond the lists: a dry run and the run after it give the same.
        "condemned_digest": blake3(b"".join(condemned)).hexdigest()[:32],
        "swept_digest": blake3(b"".join(swept)).hexdigest()[:32],
        "held": done.held,
        "stopped": done.stopped,
        "writers_waited_for": done.writers_waited_for,
        "took_s": round(done.duration_s, 3),
    }
