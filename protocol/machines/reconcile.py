"""Finding out which blocks two sites do not share: three round trips at most.

    turn  who        says
    1     initiator  root, cells at level 7, samples
    2     responder  roots equal: close. Few differ: answers, and an 8-way split of what is open.
                     Many: all cells of a level with two cells a difference. Most: lists everything.
    3     initiator  answers, and a split
    4     responder  answers, and a split of which every cell can be read with certainty
    5     initiator  answers, and lists of what is still open (a few large cells: one deep split)
    6     responder  what it lacks of these; close

Whoever has nothing open closes at once, so most sessions are shorter. A close carries the
root of what both hold, as the closer sees it. The other side subtracts what it found the peer
to lack from its own root: if that is the same 128 bits, both know everything. If not, some
suffix misled us, and a second attempt runs on the other lane of the tokens.

The one thing that needs care is a cell with one block of mine and two of yours. To me it looks
like a single block of yours; only your look-up can tell. Turns 2 and 3 pay for that with a
split in the next turn. Turn 4 has no next turn but a list, so its cells carry checks.

Invariant: after each turn both sides can name the open cells in the same order, so no prefix
is ever sent: `_work_in_answers` reads what `_reply` said on the other side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Final

import numpy as np

from protocol.errors import Malformed, Unexpected
from protocol.ids import SnapshotId
from protocol.limits import (
    SUMMARY_TURNS_MAX,
    SUMMARY_UNKNOWN_CELLS_SHARE,
    SUMMARY_UNKNOWN_CHECKED_SHARE,
    SUMMARY_UNKNOWN_SLACK,
)
from protocol.machines.reconcile_lane import LaneReader, SummaryView
from protocol.machines.reconcile_turn import (
    ROOT_PLACE,
    Answer,
    Batch,
    Inbox,
    Listed,
    Places,
    Sent,
    read_answers,
    read_cells,
    read_lists,
    read_marks,
    say_answers,
    say_cells,
    say_lacks,
    say_list,
    say_unknown,
)
from protocol.merkle import diff
from protocol.merkle.cells import I64, LANES, RECORD_BYTES, U64, Flags, Root, Sums, pack_records, unpack_records
from protocol.merkle.diff import TOP_LEVEL
from protocol.messages.registry import Message, encode
from protocol.messages.summary import SummaryCells, SummaryClose, SummaryList, SummaryOpen
from protocol.wire.frames import FRAME_HEADER_BYTES

_LAST_SPLIT_TURN: Final = 4
_TOP: Final = ROOT_PLACE.under(TOP_LEVEL)


class State(Enum):
    NEW = "not begun"
    WAITING = "waiting for the peer's turn"
    CLOSED = "closed by us; the peer may object"
    DONE = "closed by the peer and confirmed by us"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a session found."""

    peer_lacks: bytes
    """Ids of my blocks that the peer does not hold, joined, ascending."""
    peer_lacks_count: int
    shared_count: int
    """Blocks that both hold."""
    is_confirmed: bool
    """I compared the closing roots. False for the side that closed: then the peer did, or will object."""
    attempts_count: int
    turns_count: int
    wire_bytes: int
    """Both directions, with frame headers."""
    found_after: tuple[int, ...]
    """How many blocks that the peer lacks I knew of after each turn of the last attempt."""


class Reconciliation:
    """One side of a session. Feed it the peer's messages; send what it returns.

    The initiator calls `start`; the responder's first `receive` is the peer's `SummaryOpen`.
    `done` says that we have nothing more to say. If we closed, the peer ends the stream when it
    agrees; until then what it sends must still be given to `receive`, and may undo `done`.
    """

    def __init__(self, view: SummaryView, *, snapshot_id: SnapshotId, nonce: bytes) -> None:
        self._view = view
        self._snapshot_id = snapshot_id
        self._nonce = nonce
        self._state = State.NEW
        self._turns_before = 0
        self._wire_bytes = 0
        self._begin(lane=0)

    def _begin(self, *, lane: int) -> None:
        """Forget all that was found: a new attempt, on another lane."""
        self._lane = lane
        self._reader = LaneReader(self._view, lane)
        self._turn = 0
        self._splits = 0
        self._found: list[I64] = []
        self._found_after: list[int] = []
        self._inbox = Inbox()
        self._forget_sent()

    def _forget_sent(self) -> None:
        self._sent_cells: list[Sent] = []
        self._sent_checks = False
        self._sent_asks: list[Places] = []
        self._sent_rows: I64 = np.zeros(0, np.int64)

    @property
    def done(self) -> bool:
        return self._state in (State.CLOSED, State.DONE)

    @property
    def result(self) -> Reconciled:
        assert self.done, self._state
        rows = self._lacked_rows()
        return Reconciled(
            peer_lacks=self._view.ids(rows),
            peer_lacks_count=len(rows),
            shared_count=self._view.root().count - len(rows),
            is_confirmed=self._state is State.DONE,
            attempts_count=self._lane + 1,
            turns_count=self._turns_before + self._turn,
            wire_bytes=self._wire_bytes,
            found_after=tuple(self._found_after),
        )

    def start(self) -> list[Message]:
        """The first turn."""
        assert self._state is State.NEW, self._state
        return self._sent(self._open())

    def receive(self, message: Message) -> list[Message]:
        """Work in one message of the peer; answers our turn when the peer's is whole.

        Raises `ProtocolError` if the peer breaks the rules, or if two attempts leave the closing roots
        unequal. Large sets take tens of milliseconds here: call it where that hurts nobody.
        """
        self._wire_bytes += _wire_bytes(message)
        if isinstance(message, SummaryOpen):
            return self._sent(self._on_open(message))
        if self._state not in (State.WAITING, State.CLOSED):
            raise Unexpected(f"{type(message).__name__} while {self._state.value}")
        if not self._inbox.take(message, questions_count=self._questions_count()):
            return []
        inbox, self._inbox = self._inbox, Inbox()
        return self._sent(self._on_turn(inbox))

    def _sent(self, messages: list[Message]) -> list[Message]:
        self._wire_bytes += sum(map(_wire_bytes, messages))
        known = sum(map(len, self._found))
        self._found_after += [known] * (self._turn - len(self._found_after))
        return messages

    # -- the opening ----------------------------------------------------------------------

    def _open(self) -> list[Message]:
        root = self._view.root()
        top = self._reader.cells(_TOP)
        samples = [self._reader.sample(self._nonce, level) for level in diff.sample_levels(root.count)]
        self._turn = 1
        self._sent_cells = [Sent(_TOP, RECORD_BYTES)]
        self._state = State.WAITING
        return [
            SummaryOpen(
                snapshot_id=self._snapshot_id,
                nonce=self._nonce,
                lane=self._lane,
                count=root.count,
                sum_a=root.sum_a,
                sum_b=root.sum_b,
                cells=pack_records(*top),
                samples=b"".join(sample.astype(np.uint8).tobytes() for sample in samples),
            )
        ]

    def _on_open(self, opening: SummaryOpen) -> list[Message]:
        is_second = self._state is State.CLOSED and opening.lane == self._lane + 1 < LANES
        if not is_second and not (self._state is State.NEW and opening.lane == 0):
            raise Unexpected(f"attempt {opening.lane + 1} while {self._state.value}")
        if (opening.snapshot_id, opening.nonce) != (self._snapshot_id, self._nonce):
            raise Unexpected("a summary of another scope")
        self._turns_before += self._turn
        self._begin(lane=opening.lane)
        self._turn = 1
        if Root(opening.count, opening.sum_a, opening.sum_b) == self._view.root():
            return self._close()
        top = Batch(_TOP, RECORD_BYTES, Sums(*unpack_records(opening.cells)), None)
        mine_count, theirs_count = self._view.root().count, opening.count
        guess = self._reader.estimate(top, opening.samples, nonce=self._nonce)
        # The sizes alone tell a least number: a sample can be wrong, they cannot.
        differences = max(guess, abs(mine_count - theirs_count))
        first = diff.plan_first(differences, mine_count=mine_count, theirs_count=theirs_count)
        if first.list_all:
            return self._end_turn([], self._list(0, ROOT_PLACE))
        if first.level:
            return self._end_turn(self._cells(0, ROOT_PLACE, first.level, with_checks=False), [])
        return self._reply([top], [], np.zeros(0, np.bool_), [])

    # -- the peer's turn ------------------------------------------------------------------

    def _on_turn(self, inbox: Inbox) -> list[Message]:
        self._turn += 1
        if self._turn > SUMMARY_TURNS_MAX:
            raise Unexpected(f"a reconciliation that goes on after {SUMMARY_TURNS_MAX} turns")
        self._state = State.WAITING
        failed, failed_groups, groups = self._work_in_answers(inbox)
        self._forget_sent()
        if inbox.close is not None:
            if inbox.cells or inbox.lists:
                raise Malformed("cells after which nothing more is to be said")
            if not failed_groups or self._turn == SUMMARY_TURNS_MAX:
                return self._settle(inbox.close)
            return self._reply([], [], failed, failed_groups)
        batches, lists = read_cells(inbox.cells, groups), read_lists(inbox.lists, groups)
        if sorted([*batches, *lists]) != list(range(len(groups))):
            raise Malformed("not every open cell is looked at")
        return self._reply(list(batches.values()), list(lists.values()), failed, failed_groups)

    def _work_in_answers(self, inbox: Inbox) -> tuple[Flags, list[Places], list[Places]]:
        """Which of the peer's asks failed, the cells these were about, and the cells that the peer has open."""
        lacked = read_marks([(part.listed_count, part.marks) for part in inbox.lacks], len(self._sent_rows))
        self._found.append(self._sent_rows[lacked])
        asked_count = sum(len(asked.prefixes) for asked in self._sent_asks)
        unknown = read_marks([(part.asks_count, part.marks) for part in inbox.unknown], asked_count)
        if self._turn == 2 and self._sent_cells and not inbox.answers:
            return np.zeros(0, np.bool_), [], [ROOT_PLACE]
        answered = list(read_answers(inbox.answers, self._sent_cells))
        open_groups = [places.only(states == Answer.OPEN) for places, states, _ in answered]
        asked_groups = [places.only(states == Answer.ASK) for places, states, _ in answered]
        for places, states, _ in answered:
            self._found.append(self._reader.rows(places.only(states == Answer.NONE))[0])
        failed = self._look_up(asked_groups, [asks for _, _, asks in answered])
        return failed, _cut(asked_groups, failed), _not_empty([*open_groups, *_cut(self._sent_asks, unknown)])

    def _questions_count(self) -> int:
        return self._cells_count() + sum(len(places.prefixes) for places in self._sent_asks) + len(self._sent_rows)

    def _cells_count(self) -> int:
        return sum(len(sent.places.prefixes) for sent in self._sent_cells)

    def _look_up(self, groups: Sequence[Places], asks: Sequence[U64]) -> Flags:
        """Find the blocks that the peer asked for; a flag for each that is not ours."""
        flags = [np.zeros(0, np.bool_)]
        for places, suffixes, sent in zip(groups, asks, self._sent_cells, strict=True):
            rows = self._reader.find(places, suffixes, width=sent.width)
            self._found.append(rows[rows >= 0])
            flags.append(rows < 0)
        failed = np.concatenate(flags)
        count = int(np.count_nonzero(failed))
        if count > SUMMARY_UNKNOWN_SLACK + self._unknown_allowance(len(failed)):
            raise Malformed(f"{count} of {len(failed)} suffixes asked for are unknown here")
        return failed

    def _unknown_allowance(self, asks_count: int) -> int:
        if self._sent_checks:
            return asks_count // SUMMARY_UNKNOWN_CHECKED_SHARE
        return self._cells_count() // SUMMARY_UNKNOWN_CELLS_SHARE

    def _settle(self, close: SummaryClose) -> list[Message]:
        """Both are done, if what the peer believes to be shared is what we believe to be shared."""
        if self._shared_root() == Root(close.count, close.sum_a, close.sum_b):
            self._state = State.DONE
            return []
        if self._lane + 1 == LANES:
            raise Malformed("neither lane of the tokens explains how the sets differ")
        self._turns_before += self._turn
        self._begin(lane=self._lane + 1)
        return self._open()

    def _lacked_rows(self) -> I64:
        return np.unique(np.concatenate([np.zeros(0, np.int64), *self._found]))

    def _shared_root(self) -> Root:
        return self._view.root().minus(self._view.total(self._lacked_rows()))

    # -- our turn -------------------------------------------------------------------------

    def _reply(
        self, batches: Sequence[Batch], lists: Sequence[Listed], failed: Flags, failed_groups: list[Places]
    ) -> list[Message]:
        """Answer what came, and look closer at what it left open."""
        read = [self._reader.read(batch) for batch in batches]
        asked = [batch.places.only(one.states == Answer.ASK) for batch, one in zip(batches, read, strict=True)]
        groups = [batch.places.only(one.states == Answer.OPEN) for batch, one in zip(batches, read, strict=True)]
        answers: list[Message] = []
        for batch, one in zip(batches, read, strict=True):
            self._found.append(one.rows)
            answers += say_answers(one.states, one.asks, width=batch.width)
        answers += say_unknown(failed)
        if lists:
            matches = [self._reader.match(listed) for listed in lists]
            self._found += [match.rows for match in matches]
            answers += say_lacks(np.concatenate([match.lacks for match in matches]))
        self._sent_asks = asked
        return answers + self._look_closer(_not_empty([*groups, *failed_groups]))

    def _look_closer(self, groups: list[Places]) -> list[Message]:
        """Split or list each group of open cells; close if there is none, or no turn left to be answered."""
        turn = self._turn + 1
        if not groups or turn == SUMMARY_TURNS_MAX:
            return self._close()
        is_first = self._splits == 0 and turn < _LAST_SPLIT_TURN
        may_split = turn <= _LAST_SPLIT_TURN and self._splits < 2
        self._splits += 1
        cells: list[SummaryCells] = []
        lists: list[SummaryList] = []
        for group, places in enumerate(groups):
            level = self._plan(places, is_first=is_first) if may_split else self._plan_last(places)
            if level > places.level:
                cells += self._cells(group, places, level, with_checks=may_split and not is_first)
            else:
                lists += self._list(group, places)
        return self._end_turn(cells, lists)

    def _plan(self, places: Places, *, is_first: bool) -> int:
        blocks = self._reader.blocks_count(places)
        held = self._view.root().count
        return diff.plan_next(len(places.prefixes), level=places.level, blocks=blocks, held=held, is_first=is_first)

    def _plan_last(self, places: Places) -> int:
        """Whether to list, or to split so far that the peer can read everything in its last turn.

        The second attempt always lists, and so does the first where blocks crowd: a list cannot fail.
        """
        blocks, held = self._reader.blocks_count(places), self._view.root().count
        level = diff.plan_last(len(places.prefixes), level=places.level, blocks=blocks, held=held)
        if self._lane or level == places.level or self._reader.is_crowded(places.under(level)):
            return places.level
        return level

    def _cells(self, group: int, parents: Places, level: int, *, with_checks: bool) -> list[SummaryCells]:
        places = parents.under(level)
        width = diff.plan_width(
            self._reader.blocks_count(parents),
            len(places.prefixes),
            held=self._view.root().count,
            with_checks=with_checks,
            is_first=parents.level == 0,
        )
        self._sent_cells.append(Sent(places, width))
        self._sent_checks = with_checks
        checks = self._reader.checks(places, width=width) if with_checks else None
        return say_cells(group, level, self._reader.cells(places), checks, width=width)

    def _list(self, group: int, parents: Places) -> list[SummaryList]:
        level = diff.plan_list(len(parents.prefixes), level=parents.level, blocks=self._reader.blocks_count(parents))
        rows, edges = self._reader.rows(parents.under(level))
        self._sent_rows = np.concatenate([self._sent_rows, rows])
        return say_list(group, level, self._reader.suffixes(rows), edges)

    def _end_turn(self, cells: list[SummaryCells], lists: list[SummaryList]) -> list[Message]:
        self._turn += 1
        self._state = State.WAITING
        parts: list[SummaryCells | SummaryList] = [*cells, *lists]
        return [*parts[:-1], replace(parts[-1], more=False)]

    def _close(self) -> list[Message]:
        self._turn += 1
        self._state = State.CLOSED
        root = self._shared_root()
        return [SummaryClose(count=root.count, sum_a=root.sum_a, sum_b=root.sum_b)]


def _not_empty(groups: Sequence[Places]) -> list[Places]:
    return [places for places in groups if len(places.prefixes)]


def _cut(groups: Sequence[Places], flags: Flags) -> list[Places]:
    """The flagged cells; `flags` run over all groups. Groups of which nothing is left are dropped."""
    edges = np.cumsum([0, *(len(places.prefixes) for places in groups)])
    parts = [flags[start:stop] for start, stop in pairwise(edges)]
    return _not_empty([places.only(part) for places, part in zip(groups, parts, strict=True)])


def _wire_bytes(message: Message) -> int:
    return len(encode(message)) + FRAME_HEADER_BYTES


__all__ = ["Reconciled", "Reconciliation", "State", "SummaryView"]
