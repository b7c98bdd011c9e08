"""Reading everything again, because disks forget quietly.

A block that nobody reads can rot for years, and the day it is needed is the day its last good
copy on another site may be gone too. The scrub finds it while peers still have it. A pass goes
through four stages:

1. *index*: is the ledger sound as a file;
2. *catalogue*: the file, every record's signature, and every record block against its row, both
   ways (`repair/records.py`);
3. *segments*: every byte that the ledger knows a block in is read from its segment and hashed: in stretches
   whose sum is known from when they were written or last proven, or, where a sum does not agree and in every
   fourth pass, each block by its own id. So every entry of the ledger is proven to point at what it says;
4. *manifests*: every map is walked from its root, and every block that a snapshot needs is
   looked up. What the ledger has lost all trace of is looked for in the segments first, then
   asked of the peers.

What lies in a segment without an entry in the ledger, and is needed by no snapshot, was let go
on purpose, or belonged to a write that was never acknowledged: it is what collections remove.

How far a pass has come is kept, so a restart goes on where it was.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import msgspec
import trio

from replicator.catalog.catalog import Catalog
from replicator.core.errors import CatalogError, DatabaseDamaged
from replicator.core.facts import SENSELESS, read_fact
from replicator.core.logging import get_logger
from replicator.core.ports import Offload, WallClock
from replicator.core.progress import Progress
from replicator.repair.ask import Healed
from replicator.repair.coverage import find_touched
from replicator.repair.needs import NeedsCheck
from replicator.repair.pace import Standing
from replicator.repair.records import RecordCheck
from replicator.repair.verdict import Verdict, of_fault
from replicator.store.ports import BlockReader, BlockStore, Fault, ScrubCursor

PART_BYTES: Final = 32 * 1024 * 1024
"""Read between two looks at the clock: half a second of a fast disk, and little memory."""
_WHOLE_BYTES: Final = 4 * PART_BYTES
"""The same for a pass at full speed, which gives way to nobody: a whole segment, mostly. Each part ends with two
flushes: of the cursor, and of what was verified when."""
_SUMS_IN_A_ROW: Final = 3
"""Passes that go by sums before one that opens every block."""
_PASS: Final = "scrub.pass"
_FINDINGS: Final = "scrub.findings"
_KEPT_MAX: Final = 100

Heal = Callable[[Sequence[Fault]], Awaitable[Healed]]
"""`Healer.heal`."""


@dataclass(slots=True)
class ScrubReport:
    """What a pass read, found and mended."""

    blocks: int = 0
    sealed_bytes: int = 0
    soft_errors: int = 0
    faults: list[Fault] = field(default_factory=list)
    healed: int = 0
    unhealed: list[Fault] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(slots=True)
class Pass:
    """How far the present pass is. All of it is kept, in the catalogue."""

    started_ns: int = 0
    """0 before the first one."""
    ended_ns: int = 0
    """0 while it goes on."""
    stage: str = "index"
    cursor: str = ""
    read_bytes: int = 0
    is_deep: bool = False
    """Whether every block is opened, whatever its sum says (`store/sums.py`)."""
    until_deep: int = _SUMS_IN_A_ROW
    """How many passes may go by sums before the next deep one."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """One part of a pass: what it read, in how long, and whether the pass is complete."""

    read_bytes: int
    took_s: float
    is_complete: bool


class Scrubber:
    """Goes through one node. `heal` is None where no peer can be asked: then it only finds and lists."""

    def __init__(
        self,
        *,
        store: BlockStore,
        catalog: Catalog,
        reader: BlockReader,
        offload: Offload,
        clock: WallClock,
        heal: Heal | None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._clock = clock
        self._heal = heal
        self._needs = NeedsCheck(
            store=store,
            catalog=catalog,
            reader=reader,
            offload=offload,
            take_care=self._take_care,
            take_down=self._take_down,
        )
        self._records = RecordCheck(store=store, catalog=catalog, reader=reader, offload=offload, clock=clock)
        self._lock = trio.Lock()
        self._report = ScrubReport()
        self.pass_now = self._kept_pass()
        self.findings = self._kept_findings()
        """Of the last complete pass and since, newest last."""
        self.rate_seen = 0.0
        """Bytes a second that the disk gave lately."""

    @property
    def is_between_passes(self) -> bool:
        return self.pass_now.started_ns == 0 or self.pass_now.ended_ns != 0

    @property
    def left_bytes(self) -> int:
        """About: what was deleted or added since the pass began is not counted out."""
        read_bytes = 0 if self.is_between_passes else self.pass_now.read_bytes
        return max(0, self._store.statistics().sealed_bytes - read_bytes)

    async def run(self, progress: Progress, *, from_start: bool, is_deep: bool = False) -> ScrubReport:
        """One whole pass at full speed, from where the last one stopped or from the start.

        `is_deep`: every block is opened, also where the sum of its stretch is right; a pass that goes on anew as well.
        """
        async with self._lock:
            if from_start or self.is_between_passes:
                await self._begin(is_deep=is_deep)
            self.pass_now.is_deep |= is_deep
            progress.begin("reading every block", total=self.left_bytes)
            is_complete = False
            while not is_complete:
                stepped = await self._step(past_cache=False, bytes_max=_WHOLE_BYTES)
                progress.advance(stepped.read_bytes)
                progress.detail = self.pass_now.stage
                is_complete = stepped.is_complete
            return self._report

    async def step(self) -> Stepped:
        """One part of a pass, for the background; begins the next pass if the last one is complete."""
        async with self._lock:
            if self.is_between_passes:
                await self._begin()
            began = trio.current_time()
            stepped = await self._step(past_cache=True, bytes_max=PART_BYTES)
            took_s = max(1e-6, trio.current_time() - began)
            if stepped.read_bytes >= PART_BYTES // 4:
                rate = stepped.read_bytes / took_s
                self.rate_seen = rate if not self.rate_seen else 0.8 * self.rate_seen + 0.2 * rate
            return replace(stepped, took_s=took_s)

    async def _begin(self, *, is_deep: bool = False) -> None:
        await self._needs.stop()
        is_deep = is_deep or self.pass_now.until_deep == 0
        until_deep = _SUMS_IN_A_ROW if is_deep else self.pass_now.until_deep - 1
        self.pass_now = Pass(started_ns=self._clock.now_ns(), is_deep=is_deep, until_deep=until_deep)
        self._report = ScrubReport()
        self._keep_pass()

    async def _step(self, *, past_cache: bool, bytes_max: int) -> Stepped:
        now = self.pass_now
        read_bytes = 0
        match now.stage:
            case "index":
                await self._check_index()
                now.stage = "catalogue"
            case "catalogue":
                for verdict in await self._records.run():
                    self._take_down(verdict)
                now.stage = "segments"
            case "segments":
                read_bytes = await self._read_segments(past_cache=past_cache, bytes_max=bytes_max)
            case _:
                if await self._needs.walk_on():
                    await self._end()
        self._keep_pass()
        return Stepped(read_bytes, 0.0, now.ended_ns != 0)

    # -- the stages -----------------------------------------------------------------------

    async def _check_index(self) -> None:
        if wrong := await self._offload.run(self._store.check_index):
            done = "made anew from the segments"
            self._take_down(
                Verdict(what="index", subject="ledger", cause=wrong, place="the store", done=done, is_mended=True)
            )

    async def _read_segments(self, *, past_cache: bool, bytes_max: int) -> int:
        now, report = self.pass_now, self._report
        part = await self._offload.run(
            lambda at: self._store.verify(
                after=at, bytes_max=bytes_max, past_cache=past_cache, by_sums=not now.is_deep
            ),
            _cursor(now.cursor),
        )
        report.blocks += part.blocks
        report.sealed_bytes += part.sealed_bytes
        report.soft_errors += part.soft_errors
        await self._take_care(part.faults)
        now.read_bytes += part.sealed_bytes
        now.cursor = f"{part.cursor.segment}:{part.cursor.offset}" if part.cursor else ""
        if part.cursor is None:
            now.stage = "manifests"
        return part.sealed_bytes

    async def _end(self) -> None:
        report = self._report
        lost = [verdict.block_id for verdict in report.verdicts if not verdict.is_mended and verdict.block_id]
        if lost:
            try:
                touched = tuple(await find_touched(self._catalog, self._reader, lost))
            except CatalogError:
                touched = ()  # A row that could not be mended stands in the way; it has a verdict of its own.
            report.verdicts = [
                replace(one, touches=touched) if one.block_id and not one.is_mended else one for one in report.verdicts
            ]
        self.findings = [asdict(one) | {"block_id": None} for one in report.verdicts[-_KEPT_MAX:]]
        self._keep_findings()
        self.pass_now.ended_ns = max(self._clock.now_ns(), self.pass_now.started_ns + 1)

    # -- findings -------------------------------------------------------------------------

    async def _take_care(self, faults: Sequence[Fault]) -> None:
        report = self._report
        known = {fault.block_id for fault in report.faults}
        fresh = [fault for fault in faults if fault.block_id not in known]
        if not fresh:
            return
        report.faults += fresh
        if self._heal is None:
            await self._offload.run(self._store.quarantine, fresh)
            answer = Healed([], fresh)
        else:
            answer = await self._heal(fresh)
        report.healed += len(answer.healed)
        report.unhealed += answer.unhealed
        for fault in answer.healed:
            self._take_down(of_fault(fault, done="quarantined; a sound copy came from a peer", is_mended=True))
        nobody = "quarantined; no peer has a sound copy" if self._heal else "quarantined; peers are asked by the node"
        for fault in answer.unhealed:
            self._take_down(of_fault(fault, done=nobody, is_mended=False))

    def _take_down(self, verdict: Verdict) -> None:
        self._report.verdicts.append(verdict)
        self.findings = [*self.findings, asdict(verdict) | {"block_id": None}][-_KEPT_MAX:]
        self._keep_findings()
        get_logger().error(
            "scrub.finding", what=verdict.what, subject=verdict.subject, cause=verdict.cause, place=verdict.place,
            done=verdict.done,
        )  # fmt: skip

    # -- what is kept ---------------------------------------------------------------------

    def _kept_pass(self) -> Pass:
        try:
            return read_fact(self._catalog.fact(_PASS) or "{}", Pass, name="the pass of a scrub")
        except DatabaseDamaged as error:
            get_logger().warning("scrub.forgotten", found=error.message, then="beginning a new pass")
            return Pass()

    def _kept_findings(self) -> list[dict[str, object]]:
        try:
            kept = json.loads(self._catalog.fact(_FINDINGS) or "[]")
            return [asdict(one) for one in msgspec.convert(kept, list[Verdict])]
        except SENSELESS as error:
            # What still holds is found again by the next pass.
            get_logger().warning("scrub.forgotten", found=str(error), then="beginning a new list of findings")
            return []

    def _keep_pass(self) -> None:
        self._catalog.set_fact(_PASS, json.dumps(asdict(self.pass_now)))

    def _keep_findings(self) -> None:
        self._catalog.set_fact(_FINDINGS, json.dumps(self.findings))


def standing_of(scrubber: Scrubber, *, now_ns: int) -> Standing:
    """Where the present pass is, or, between passes, where the next one will begin."""
    now = scrubber.pass_now
    started_ns = now_ns if scrubber.is_between_passes else min(now.started_ns, now_ns)
    return Standing(started_ns=started_ns, left_bytes=scrubber.left_bytes, rate_seen=scrubber.rate_seen)


def _cursor(text: str) -> ScrubCursor | None:
    if not text:
        return None
    segment, offset = text.split(":")
    return ScrubCursor(int(segment), int(offset))
