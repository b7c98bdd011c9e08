"""Which blocks do our two sets not share? The words of a reconciliation.

Two sites that hold block sets A and B take turns. A turn is a run of these messages in the
order of their numbers: what I say about your last turn (`Answers`, `Unknown`, `Lacks`), then
a way on: for each run of cells still open `Cells` (look closer) or `List` (here is all I have
there); or, if none is, `Close` (this is what we share). `protocol.machines.reconcile` is the grammar.

Whatever there may be a million of is one `bytes` field. A *record* is three to five bytes,
big-endian: a value, and 4 bits of count or tag at its low end. Prefixes are never sent: both sides know which
cells were left open, and speak of them in that order.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from protocol.limits import ROOTS_MAX, SUMMARY_CELLS_MAX, SUMMARY_MARKS_MAX, SUMMARY_SAMPLES_MAX
from protocol.merkle.cells import RECORD_BYTES
from protocol.merkle.diff import SAMPLE_BYTES, SAMPLE_CELLS, TOP_LEVEL
from protocol.messages.fields import Nonce16, Snapshot
from protocol.messages.registry import Message, Size, message

ROOTS_DIGEST_BYTES: Final = 8
ROOT_BYTES: Final = 40

_Records = Annotated[bytes, Size(RECORD_BYTES, multiple=True, most=SUMMARY_CELLS_MAX)]
_Packed = Annotated[bytes, Size(1, multiple=True, most=SUMMARY_CELLS_MAX * RECORD_BYTES)]
_Checks = Annotated[bytes, Size(2, multiple=True, most=SUMMARY_CELLS_MAX)]
_TopCells = Annotated[bytes, Size(RECORD_BYTES << TOP_LEVEL)]
_Samples = Annotated[bytes, Size(SAMPLE_CELLS * SAMPLE_BYTES, multiple=True, most=SUMMARY_SAMPLES_MAX)]
_Code = Annotated[bytes, Size(1, multiple=True, most=SUMMARY_MARKS_MAX // 8 + 1)]


@message(code=0x40, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryOpen(Message):
    """The first turn: my set in two kilobytes. You may find that it is yours."""

    snapshot_id: Snapshot
    """The scope: both sides compare the blocks that this snapshot needs and that they hold."""
    nonce: Nonce16
    """Random. Both sides derive the key of the tokens from it and the scope, so that tenants, who choose what
    blocks contain, never know what is summed."""
    lane: int
    """Which half of the tokens the cells sum: 0, or 1 in the second attempt."""
    count: int
    sum_a: int
    sum_b: int
    cells: _TopCells
    samples: _Samples
    """From some deeper levels, the low 8 bits of 64 cells each: they tell how much will differ."""


@message(code=0x41, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryAnswers(Message):
    """What became of the next `cells_count` of the cells that you sent."""

    cells_count: int
    states: _Code
    """An `Answer` for each: packed, or only those that differ (`protocol.merkle.codes`)."""
    asks: _Packed
    """For each answer ASK, in order, the suffix of the one block that I lack there, as wide as the cells were."""


@message(code=0x42, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryUnknown(Message):
    """Of the next `asks_count` suffixes you asked for, these are none of mine: that cell needs a closer look."""

    asks_count: int
    marks: _Code


@message(code=0x43, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryLacks(Message):
    """Of the next `listed_count` short ids you listed, I lack these."""

    listed_count: int
    marks: _Code


@message(code=0x44, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryCells(Message):
    """My cells at `level` under the cells that are open; in the second turn, without answers, all of them."""

    group: int
    """Which run of open cells these belong to: cells of one level are one run."""
    level: int
    width: int
    """Bytes of a record in `cells`, and of what is asked for in the answer: 3, 4 or 5."""
    cells: _Packed
    checks: _Checks
    """None, or two bytes a cell: the sum of the mixed suffixes, so that one look tells a single block from three."""
    more: bool
    """Another message of this turn follows."""


@message(code=0x45, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryList(Message):
    """The suffixes of all my blocks under the open cells, cell by cell at `level`."""

    group: int
    level: int
    records: _Records
    """Suffixes, tagged: `FIRST` of a cell, `NEXT` of the same; or `EMPTY` for a cell where I hold nothing."""
    more: bool


@message(code=0x46, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryClose(Message):
    """I see nothing more to tell apart: this is the root of the blocks that both of us hold."""

    count: int
    sum_a: int
    sum_b: int


@message(code=0x47, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class StandingRoots(Message):
    """What I hold, with each heartbeat. Answered by the same, or by the stream's end if the digests are equal."""

    digest: Annotated[bytes, Size(ROOTS_DIGEST_BYTES)]
    """Of all my roots. Only this is sent while nothing has changed on this link."""
    roots: Annotated[bytes, Size(ROOT_BYTES, multiple=True, most=ROOTS_MAX)]
    """Empty, or all of them in ascending order: scope (16 bytes), count, sum of lane A, sum of lane B (8 each)."""


SummaryMessage = (
    SummaryOpen | SummaryAnswers | SummaryUnknown | SummaryLacks | SummaryCells | SummaryList | SummaryClose
)
TURN_ORDER: Final[tuple[type[Message], ...]] = (
    SummaryOpen,
    SummaryAnswers,
    SummaryUnknown,
    SummaryLacks,
    SummaryCells,
    SummaryList,
    SummaryClose,
)
