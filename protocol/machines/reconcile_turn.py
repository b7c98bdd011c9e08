"""One turn of a reconciliation: from messages to arrays, and back.

A turn may take many frames. Its messages are kept as they came, in bounds that follow from
what was said before, until the last is here; then each kind is checked and joined once. The
functions named `say_…` are the way back: they cut arrays into messages that fit a frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import groupby
from typing import Final, NamedTuple, TypeVar

import numpy as np

from protocol.errors import Malformed, TooLarge, Unexpected
from protocol.limits import (
    SUMMARY_CELLS_GOAL,
    SUMMARY_LEVEL_MAX,
    SUMMARY_MARKS_MAX,
    SUMMARY_TURN_CELLS_MAX,
    SUMMARY_TURN_LIST_MAX,
    SUMMARY_TURN_MESSAGES_MAX,
)
from protocol.merkle.cells import (
    I64,
    RECORD_BYTES,
    RECORD_BYTES_MIN,
    U8,
    U64,
    Flags,
    Sums,
    pack_checks,
    pack_records,
    unpack_checks,
    unpack_records,
)
from protocol.merkle.codes import decode_flags, decode_states, encode_flags, encode_states
from protocol.messages.registry import Message
from protocol.messages.summary import (
    TURN_ORDER,
    SummaryAnswers,
    SummaryCells,
    SummaryClose,
    SummaryLacks,
    SummaryList,
    SummaryUnknown,
)


class Answer(IntEnum):
    """What I say about a cell of yours."""

    SETTLED = 0
    """We hold the same there, or I know what you lack there."""
    ASK = 1
    """You hold one block there that I lack: this one."""
    OPEN = 2
    """Several differ."""
    NONE = 3
    """I hold nothing there: I lack all that you have."""


class Tag(IntEnum):
    """The four spare bits of a listed suffix."""

    NEXT = 0
    FIRST = 1
    EMPTY = 2


class Places(NamedTuple):
    """A run of cells of one level."""

    level: int
    prefixes: U64

    def only(self, chosen: Flags) -> "Places":
        return Places(self.level, self.prefixes[chosen])

    def under(self, level: int) -> "Places":
        """Their descendants at a deeper level, in the same order."""
        fan = np.arange(1 << (level - self.level), dtype=np.uint64)
        return Places(level, ((self.prefixes[:, None] << np.uint64(level - self.level)) | fan).reshape(-1))


ROOT_PLACE: Final = Places(0, np.zeros(1, np.uint64))


class Sent(NamedTuple):
    """Cells that we sent, or asked about, and how wide their records are."""

    places: Places
    width: int


class Batch(NamedTuple):
    """Cells that the peer sent."""

    places: Places
    width: int
    theirs: Sums
    checks: U64 | None


class Listed(NamedTuple):
    """Short ids that the peer sent: `cells[i]` says in which of the places `suffixes[i]` is."""

    places: Places
    cells: I64
    suffixes: U64


@dataclass(slots=True)
class Inbox:
    """The messages of one turn, as they came."""

    answers: list[SummaryAnswers] = field(default_factory=list)
    unknown: list[SummaryUnknown] = field(default_factory=list)
    lacks: list[SummaryLacks] = field(default_factory=list)
    cells: list[SummaryCells] = field(default_factory=list)
    lists: list[SummaryList] = field(default_factory=list)
    close: SummaryClose | None = None
    _rank: int = 0
    _messages_count: int = 0
    _cells_count: int = 0
    _listed_count: int = 0
    _answers_count: int = 0

    def take(self, message: Message, *, questions_count: int) -> bool:
        """Keep it; answers whether the turn is whole. Raises `ProtocolError` if it cannot belong to one.

        `questions_count` is how many things we have left to be answered.
        """
        if type(message) not in TURN_ORDER:
            raise Unexpected(f"{type(message).__name__} in a reconciliation")
        rank = TURN_ORDER.index(type(message))
        if rank < self._rank:
            raise Unexpected(f"{type(message).__name__} too late in its turn")
        self._rank = rank
        self._messages_count += 1
        if self._messages_count > SUMMARY_TURN_MESSAGES_MAX:
            raise TooLarge(f"over {SUMMARY_TURN_MESSAGES_MAX} messages in one turn")
        match message:
            case SummaryAnswers():
                self._count_answers(message.cells_count, message.states, questions_count)
                self.answers.append(message)
            case SummaryUnknown():
                self._count_answers(message.asks_count, message.marks, questions_count)
                self.unknown.append(message)
            case SummaryLacks():
                self._count_answers(message.listed_count, message.marks, questions_count)
                self.lacks.append(message)
            case SummaryCells():
                if not RECORD_BYTES_MIN <= message.width <= RECORD_BYTES:
                    raise Malformed(f"records of {message.width} bytes")
                self._cells_count += _records(message.cells, message.width)
                if self._cells_count > SUMMARY_TURN_CELLS_MAX:
                    raise TooLarge(f"over {SUMMARY_TURN_CELLS_MAX} cells in one turn")
                self.cells.append(message)
                return not message.more
            case SummaryList():
                self._listed_count += _records(message.records, RECORD_BYTES)
                if self._listed_count > SUMMARY_TURN_LIST_MAX:
                    raise TooLarge(f"over {SUMMARY_TURN_LIST_MAX} short ids in one turn")
                self.lists.append(message)
                return not message.more
            case _:
                assert isinstance(message, SummaryClose), message
                self.close = message
                return True
        return False

    def _count_answers(self, count: int, code: bytes, questions_count: int) -> None:
        """An answer about nothing would let a turn go on for ever."""
        self._answers_count += count
        if count == 0 or self._answers_count > questions_count:
            raise Malformed(f"answers about {self._answers_count} things; {questions_count} were asked")
        if len(code) > count // 4 + 2:
            raise Malformed(f"a code of {len(code)} bytes for {count} answers")


def _records(packed: bytes, width: int) -> int:
    if not packed or len(packed) % width:
        raise Malformed(f"{len(packed)} bytes are no records of {width}")
    return len(packed) // width


# -- from messages ------------------------------------------------------------------------


def read_answers(parts: Sequence[SummaryAnswers], sent: Sequence[Sent]) -> Iterator[tuple[Places, U8, U64]]:
    """For each run of cells that we sent: a state for each cell, and the suffixes asked for. Raises `Malformed`."""
    rest = iter(parts)
    for places, width in sent:
        states, asks, missing = [np.zeros(0, np.uint8)], [np.zeros(0, np.uint64)], len(places.prefixes)
        while missing > 0 and (part := next(rest, None)) is not None:
            missing -= part.cells_count
            states.append(decode_states(part.states, part.cells_count))
            if len(part.asks) != width * np.count_nonzero(states[-1] == Answer.ASK):
                raise Malformed("not one suffix for each cell that is asked for")
            asks.append(unpack_records(part.asks, width=width)[0])
        if missing:
            raise Malformed(f"not every one of {len(places.prefixes)} cells is answered once")
        yield places, np.concatenate(states), np.concatenate(asks)
    if next(rest, None) is not None:
        raise Malformed("answers about cells that were never sent")


def read_marks(parts: Sequence[tuple[int, bytes]], count: int) -> Flags:
    """A flag for each of `count` things; no message at all means none. Raises `Malformed`."""
    if not parts:
        return np.zeros(count, np.bool_)
    if sum(size for size, _ in parts) != count:
        raise Malformed(f"not every one of {count} things is marked once")
    return np.concatenate([decode_flags(marks, size) for size, marks in parts])


def read_cells(parts: Sequence[SummaryCells], groups: Sequence[Places]) -> dict[int, Batch]:
    """The cells of each open group that has any. Raises `Malformed`."""
    batches = {}
    for (group, level), run in _by_group(parts, groups):
        places = groups[group]
        packed = b"".join(part.cells for part in run)
        checks = b"".join(part.checks for part in run)
        width = run[0].width
        if any(part.width != width for part in run):
            raise Malformed("cells of one run are not of one width")
        if level <= places.level or len(packed) != (len(places.prefixes) << (level - places.level)) * width:
            raise Malformed(f"cells at level {level} do not cover the open cells at level {places.level}")
        if checks and len(checks) // 2 != len(packed) // width:
            raise Malformed("not one check for each cell")
        sums = Sums(*unpack_records(packed, width=width))
        batches[group] = Batch(places.under(level), width, sums, unpack_checks(checks) if checks else None)
    return batches


def read_lists(parts: Sequence[SummaryList], groups: Sequence[Places]) -> dict[int, Listed]:
    """The short ids of each open group that is listed. Raises `Malformed`."""
    lists = {}
    for (group, level), run in _by_group(parts, groups):
        places = groups[group]
        suffixes, tags = unpack_records(b"".join(part.records for part in run))
        if level < places.level or np.count_nonzero(tags) != len(places.prefixes) << (level - places.level):
            raise Malformed(f"lists at level {level} do not cover the open cells at level {places.level}")
        follows = np.append(tags[1:], Tag.FIRST)
        if tags[0] == Tag.NEXT or tags.max() > Tag.EMPTY or ((tags == Tag.EMPTY) & (follows == Tag.NEXT)).any():
            raise Malformed("a list whose cells have no beginning")
        held = tags != Tag.EMPTY
        cells = np.cumsum(tags != Tag.NEXT) - 1
        lists[group] = Listed(places.under(level), cells[held], suffixes[held])
    return lists


_Part = TypeVar("_Part", SummaryCells, SummaryList)


def _by_group(parts: Sequence[_Part], groups: Sequence[Places]) -> Iterator[tuple[tuple[int, int], list[_Part]]]:
    last = -1
    for (group, level), run in groupby(parts, key=lambda part: (part.group, part.level)):
        if not last < group < len(groups) or level > SUMMARY_LEVEL_MAX:
            raise Malformed(f"group {group} of {len(groups)} at level {level}")
        last = group
        # The size of what is claimed is checked before anything of that size is made.
        if len(groups[group].prefixes) << max(level - groups[group].level, 0) > SUMMARY_TURN_LIST_MAX:
            raise TooLarge(f"level {level} below {len(groups[group].prefixes)} cells")
        yield (group, level), list(run)


# -- to messages --------------------------------------------------------------------------


def say_answers(states: U8, asks: U64, *, width: int) -> list[Message]:
    parts: list[Message] = []
    asked = 0
    for at in range(0, len(states), SUMMARY_CELLS_GOAL):
        some = states[at : at + SUMMARY_CELLS_GOAL]
        count = int(np.count_nonzero(some == Answer.ASK))
        packed = pack_records(asks[asked : asked + count], np.zeros(count, np.uint64), width=width)
        parts.append(SummaryAnswers(cells_count=len(some), states=encode_states(some), asks=packed))
        asked += count
    return parts


def say_unknown(flags: Flags) -> list[Message]:
    return _say_marks(flags, lambda count, marks: SummaryUnknown(asks_count=count, marks=marks))


def say_lacks(flags: Flags) -> list[Message]:
    return _say_marks(flags, lambda count, marks: SummaryLacks(listed_count=count, marks=marks))


def _say_marks(flags: Flags, make: Callable[[int, bytes], Message]) -> list[Message]:
    if not flags.any():
        return []
    runs = [flags[at : at + SUMMARY_MARKS_MAX] for at in range(0, len(flags), SUMMARY_MARKS_MAX)]
    return [make(len(run), encode_flags(run)) for run in runs]


def say_cells(group: int, level: int, sums: Sums, checks: U64 | None, *, width: int) -> list[SummaryCells]:
    """All but the very last message of a turn have `more` set; the caller clears that one."""
    parts = []
    for at in range(0, len(sums.sums), SUMMARY_CELLS_GOAL):
        some = slice(at, at + SUMMARY_CELLS_GOAL)
        packed = b"" if checks is None else pack_checks(checks[some])
        cells = pack_records(sums.sums[some], sums.counts[some], width=width)
        parts.append(SummaryCells(group=group, level=level, width=width, cells=cells, checks=packed, more=True))
    return parts


def say_list(group: int, level: int, suffixes: U64, edges: I64) -> list[SummaryList]:
    """`edges` are where each cell begins in `suffixes`, and the end of the last."""
    starts, sizes = edges[:-1], np.diff(edges)
    slots = np.maximum(sizes, 1)  # An empty cell takes a record too.
    firsts = np.cumsum(slots) - slots
    tags = np.full(int(slots.sum()), Tag.NEXT, np.uint64)
    tags[firsts] = np.where(sizes > 0, Tag.FIRST, Tag.EMPTY)
    if len(tags) > SUMMARY_TURN_LIST_MAX:
        raise TooLarge(f"{len(suffixes)} blocks to list; the limit is {SUMMARY_TURN_LIST_MAX}")
    values = np.zeros(len(tags), np.uint64)
    values[tags != Tag.EMPTY] = suffixes[starts[0] :]
    runs = range(0, len(tags), SUMMARY_CELLS_GOAL)
    packed = (pack_records(values[at : at + SUMMARY_CELLS_GOAL], tags[at : at + SUMMARY_CELLS_GOAL]) for at in runs)
    return [SummaryList(group=group, level=level, records=records, more=True) for records in packed]
