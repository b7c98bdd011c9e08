"""What a sync will cost, before it is begun: bytes that are missing there, seeds that are there, and the time it takes.

The difference of the two manifests is walked as the sync itself would do it, but nothing is
sent except questions: *which of these blocks do you lack?* Of a difference that is too large
to ask about block by block, a sample is asked for, chosen by the blocks' own hashes, and the
answer is scaled up; the plan then says that it is an estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import Unexpected
from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK, BlockId
from protocol.limits import HAVE_ROOTS_MAX, WANT_BLOCKS_MAX
from protocol.messages.mesh import ProbeAnswer, ProbeBlocks
from protocol.messages.snapshots import DiffBase, WantDiff
from protocol.wire.frames import Lane
from replicator.catalog.manifest.entries import decode_entry, pieces_of
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import entries
from replicator.catalog.records import SnapshotRecord
from replicator.core.timetable import Timetable
from replicator.core.units import format_size, format_span
from replicator.net.link import Link, SentAhead
from replicator.sync.difference import DifferenceReader
from replicator.sync.incoming import lacking_ids
from replicator.sync.walks import Walks

SAMPLE_MAX: Final = 32 * 1024
"""Ids that are asked for: a mebibyte of questions. The error of an estimate from so many is under one percent."""
SAMPLE_AHEAD_MAX: Final = 4 * 1024
"""Of a snapshot whose blocks were sent ahead, and asked about one by one: little is left, and so is the error small."""
_STEP_S: Final = 300.0
_HORIZON_S: Final = 31 * 86_400.0
"""Longer than this, and the number of days is of no use to anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPlan:
    """What one snapshot will take. Bytes are those on the wire: packed as they lie."""

    logical_bytes: int
    """What the snapshot holds."""
    changed_bytes: int
    """Blocks of it that the common base does not name."""
    seed_bytes: int
    """Of these, what the destination has all the same: from other volumes, or from an attempt that was cut."""
    ahead_bytes: int
    """Of these, what has been sent already, while the snapshot was being taken."""
    missing_bytes: int
    """What will be sent."""
    missing_blocks: int
    is_estimate: bool
    from_base: bool
    rate_bytes: int
    """The limit that will bind first; 0 for none."""
    took_s: float | None
    """How long at the limits of the hours to come; None if no limit binds and nothing has been measured yet."""

    @property
    def seed_share(self) -> float:
        return self.seed_bytes / self.changed_bytes if self.changed_bytes else 0.0

    def sentence(self) -> str:
        told = f"{format_size(self.missing_bytes)} of {format_size(self.logical_bytes)} missing"
        if self.changed_bytes:
            told += f", {100 * self.seed_share:.0f} % of what changed from local seeds"
        if self.took_s is None:
            told += ", at the speed of the link"
        else:
            told += f", {format_span(self.took_s)}"
            told += f" at the limit of {format_size(self.rate_bytes)}/s" if self.rate_bytes else " at the usual speed"
        return told + (" (estimated)" if self.is_estimate else "")


@dataclass(slots=True)
class Sample:
    """Blocks and their sizes, or, of very many, an even part of them: those whose hash begins with enough zeros."""

    sizes: dict[BlockId, int] = field(default_factory=dict)
    level: int = 0
    """Each level halves the part. A hash is as good as a die, and the same block is drawn each time or never."""
    most: int = SAMPLE_MAX

    def add(self, block: BlockId, size: int) -> None:
        if block == ZERO_BLOCK or not self._is_drawn(block):
            return
        self.sizes[block] = size
        while len(self.sizes) > self.most:
            self.level += 1
            self.sizes = {one: size for one, size in self.sizes.items() if self._is_drawn(one)}

    def _is_drawn(self, block: BlockId) -> bool:
        return not int.from_bytes(block[-4:], "big") & ((1 << self.level) - 1)

    @property
    def factor(self) -> int:
        return 1 << self.level


async def changed_blocks(
    walks: Walks, record: SnapshotRecord, base: BlockId | None, *, sample_max: int = SAMPLE_MAX
) -> Sample:
    """The blocks that a snapshot names and a base does not, as far as manifests tell. Both are here."""
    sample = Sample(most=sample_max)
    async for _, value in walks.changes(record, base):
        if value is None:
            continue
        for root in _note(sample, record, value):
            async for _, piece in entries(walks.reader, root, Shape.PIECES):
                sample.add(BlockId(piece[:BLOCK_ID_BYTES]), int.from_bytes(piece[BLOCK_ID_BYTES:], "big"))
    return sample


def _note(sample: Sample, record: SnapshotRecord, value: bytes) -> list[BlockId]:
    """Note the blocks of one entry. Returns the roots of large files' own maps."""
    if record.shape is Shape.NUMBERS:
        sample.add(BlockId(value[:BLOCK_ID_BYTES]), record.block_bytes)
        return []
    lengths, ids, root = pieces_of(value)
    for number, size in enumerate(lengths):
        sample.add(BlockId(ids[number * BLOCK_ID_BYTES : (number + 1) * BLOCK_ID_BYTES]), size)
    return [BlockId(root)] if root else []


async def remote_difference(link: Link, record: SnapshotRecord, have_roots: Sequence[bytes]) -> tuple[Sample, bool]:
    """The same for a snapshot that is at the peer: read from the difference that it tells. Returns whether from a base.

    The maps of large files are not here, so such a file counts in one piece, as if all of it had changed.
    """
    sample, unpack = Sample(), DifferenceReader(record.shape)
    request = WantDiff(snapshot_id=record.snapshot_id, have_roots=b"".join(have_roots[:HAVE_ROOTS_MAX]))
    from_base = False
    async with link.open(request, lane=Lane.SYNC) as stream:
        first = await stream.receive()
        if not isinstance(first, DiffBase):
            raise Unexpected("a difference does not begin with a base")
        from_base = bool(first.base_root)
        while (item := await stream.receive()) is not None:
            if isinstance(item, DiffBase):
                break
            if isinstance(item, bytes):
                raise Unexpected("blocks in a difference")
            for _, value in unpack.changes(item):
                if value is not None:
                    for root in _note(sample, record, value):
                        sample.add(root, decode_entry(value).size)
    return sample, from_base


async def probe(link: Link, sample: Sample) -> set[BlockId]:
    """Which of the sampled blocks the peer lacks. Raises `PeerError`, `Unexpected`."""
    ids, lacking = sorted(sample.sizes), set[BlockId]()
    for at in range(0, len(ids), WANT_BLOCKS_MAX):
        part = ids[at : at + WANT_BLOCKS_MAX]
        async with link.open(ProbeBlocks(ids=b"".join(part)), lane=Lane.CONTROL) as stream:
            answer = await stream.receive()
        if not isinstance(answer, ProbeAnswer):
            raise Unexpected("a probe is not answered")
        lacking |= lacking_ids(part, answer)
    return lacking


@dataclass(frozen=True, slots=True)
class Missing:
    """What a plan rests on. Bytes as they will be sent."""

    changed_bytes: int
    missing_bytes: int
    missing_blocks: int
    is_estimate: bool
    ahead_bytes: int = 0

    @classmethod
    def of_sample(cls, sample: Sample, lacking: set[BlockId], *, packed_ratio: float, ahead_bytes: int) -> "Missing":
        """`packed_ratio` is what a byte of content takes when sealed, on average."""
        scale = sample.factor * packed_ratio
        return cls(
            changed_bytes=int(sum(sample.sizes.values()) * scale),
            missing_bytes=int(sum(sample.sizes[block] for block in lacking) * scale),
            missing_blocks=len(lacking) * sample.factor,
            is_estimate=sample.level > 0,
            ahead_bytes=ahead_bytes,
        )

    @classmethod
    def of_first(cls, ahead: SentAhead) -> "Missing":
        """Of a first copy that was sent ahead: every new block was asked about, and to walk the whole map would take
        longer than to bring what is left. What lay here before, for another volume, is not counted."""
        return cls(
            changed_bytes=ahead.sealed_bytes + ahead.there_bytes + ahead.left_bytes,
            missing_bytes=ahead.left_bytes,
            missing_blocks=ahead.left_blocks,
            is_estimate=True,
            ahead_bytes=ahead.sealed_bytes,
        )


def make_plan(
    record: SnapshotRecord,
    found: Missing,
    *,
    from_base: bool,
    now_ns: int,
    rate_at: Callable[[int], int],
    usual_rate: float,
    open_hours: Timetable[bool],
) -> SyncPlan:
    """Put the numbers together."""
    missing = found.missing_bytes
    return SyncPlan(
        logical_bytes=record.size_bytes,
        changed_bytes=found.changed_bytes,
        seed_bytes=max(0, found.changed_bytes - missing - found.ahead_bytes),
        ahead_bytes=found.ahead_bytes,
        missing_bytes=missing,
        missing_blocks=found.missing_blocks,
        is_estimate=found.is_estimate,
        from_base=from_base,
        rate_bytes=rate_at(now_ns),
        took_s=plan_duration_s(missing, now_ns=now_ns, rate_at=rate_at, usual_rate=usual_rate, open_hours=open_hours),
    )


def plan_duration_s(
    count: int,
    *,
    now_ns: int,
    rate_at: Callable[[int], int],
    usual_rate: float,
    open_hours: Timetable[bool],
) -> float | None:
    """How long so many bytes take from now on, through windows and the limits of each hour.

    None if nothing is known to go by, or if it would take longer than a month.
    """
    left, at_s = float(count), 0.0
    while at_s < _HORIZON_S:
        moment = now_ns + int(at_s * 1e9)
        if open_hours.at(moment):
            limit = rate_at(moment)
            rate = min(limit, usual_rate) if limit and usual_rate else limit or usual_rate
            if not rate:
                return None
            if left <= rate * _STEP_S:
                return at_s + left / rate
            left -= rate * _STEP_S
        at_s += _STEP_S
    return None
