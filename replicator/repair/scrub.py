"""Reading everything again, because disks forget quietly.

A block that nobody reads can rot for years, and the day it is needed is the day its last good
copy on another site may be gone too. The scrub finds it while peers still have it. It has two
halves:

1. every block that the ledger knows is read from its segment and proven by its hash;
2. every block that a snapshot needs is looked up, so that a block of which the ledger lost
   all trace is found too.

The first half's cursor is kept, so a restart goes on where it was.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.walk import closure
from replicator.core.errors import BlockMissing
from replicator.core.logging import get_logger
from replicator.core.ports import Offload
from replicator.core.progress import Progress
from replicator.repair.ask import Healed
from replicator.store.ports import BlockReader, BlockStore, Cause, Fault, ScrubCursor

_STEP_BYTES: Final = 32 * 1024 * 1024
_CURSOR: Final = "scrub.cursor"

Heal = Callable[[Sequence[Fault]], Awaitable[Healed]]
"""`Healer.heal`."""


@dataclass(slots=True)
class ScrubReport:
    """What a scrub read, found and mended."""

    blocks: int = 0
    sealed_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    healed: int = 0
    unhealed: list[Fault] = field(default_factory=list)


class Scrubber:
    """Goes through one store. `heal` is None where no peer can be asked: then it only finds and lists."""

    def __init__(
        self,
        *,
        store: BlockStore,
        catalog: Catalog,
        reader: BlockReader,
        offload: Offload,
        heal: Heal | None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._heal = heal

    async def run(self, progress: Progress, *, from_start: bool) -> ScrubReport:
        """One whole pass, from the kept cursor or from the start."""
        report = ScrubReport()
        total = self._store.statistics().sealed_bytes
        progress.begin("reading every block", total=total)
        cursor = None if from_start else self._cursor()
        while True:
            part = await self._offload.run(lambda at: self._store.verify(after=at, bytes_max=_STEP_BYTES), cursor)
            report.blocks += part.blocks
            report.sealed_bytes += part.sealed_bytes
            progress.advance(part.sealed_bytes)
            await self._take_care(part.faults, report)
            cursor = part.cursor
            self._keep_cursor(cursor)
            if cursor is None:
                break
        await self._look_for_lost(progress, report)
        return report

    async def step(self) -> tuple[int, bool]:
        """One part of a pass, for the background: bytes read, and whether the pass is complete."""
        part = await self._offload.run(lambda at: self._store.verify(after=at, bytes_max=_STEP_BYTES), self._cursor())
        await self._take_care(part.faults, ScrubReport())
        self._keep_cursor(part.cursor)
        return part.sealed_bytes, part.cursor is None

    async def _look_for_lost(self, progress: Progress, report: ScrubReport) -> None:
        """Second half: what snapshots need and the ledger does not know."""
        snapshots = self._catalog.snapshots()
        progress.begin("checking that snapshots are whole", unit="snapshots", total=len(snapshots))
        seen: set[BlockId] = set()
        for snapshot in snapshots:
            record = snapshot.record
            try:
                async for kind, packed in closure(self._reader, record.root, record.shape, seen=seen):
                    ids = [BlockId(packed[at : at + BLOCK_ID_BYTES]) for at in range(0, len(packed), BLOCK_ID_BYTES)]
                    lost = await self._offload.run(self._lost_among, ids)
                    await self._take_care([Fault(block, kind, Cause.MISSING, None) for block in lost], report)
            except BlockMissing as error:
                # A node that nobody has: what lies below it cannot even be named.
                seen.discard(record.root)
                report.unhealed.append(Fault(BlockId(error.block_id), 1, Cause.MISSING, None))
            progress.advance(1)

    def _lost_among(self, ids: list[BlockId]) -> list[BlockId]:
        lease = self._store.begin("scrub")
        try:
            here = self._store.have(lease, ids)
        finally:
            self._store.end(lease)
        return [block for block in dict.fromkeys(ids) if block not in here]

    async def _take_care(self, faults: list[Fault], report: ScrubReport) -> None:
        known = {fault.block_id for fault in report.faults}
        fresh = [fault for fault in faults if fault.block_id not in known]
        if not fresh:
            return
        report.faults += fresh
        log = get_logger()
        for fault in fresh[:20]:
            log.error(f"block.{fault.cause.value}", block=fault.block_id.hex(), place=str(fault.place))
        if self._heal is None:
            await self._offload.run(self._store.quarantine, fresh)
            report.unhealed += fresh
            return
        answer = await self._heal(fresh)
        report.healed += len(answer.healed)
        report.unhealed += answer.unhealed

    def _cursor(self) -> ScrubCursor | None:
        text = self._catalog.fact(_CURSOR)
        if not text:
            return None
        segment, offset = text.split(":")
        return ScrubCursor(int(segment), int(offset))

    def _keep_cursor(self, cursor: ScrubCursor | None) -> None:
        self._catalog.set_fact(_CURSOR, f"{cursor.segment}:{cursor.offset}" if cursor else "")
