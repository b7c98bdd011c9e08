"""Two honest ends of a connection and a slow wire, in any order of events: nothing is lost, and nobody is accused.

The same promise as `tests/property/test_connection.py` walks at random; here Hypothesis chooses each
step, so a failure comes shrunk to the few frames that make it.
"""

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import protocol.machines.connection as connection_module
from protocol.errors import ErrorCode
from protocol.limits import STREAM_CREDIT
from protocol.machines.events import BlocksReceived, Event, StreamOpened, StreamReset
from protocol.messages.blocks import WantBlocks
from protocol.wire.frames import Lane
from tests.support.wire import DIALER, LISTENER, Pair

SIDES = st.sampled_from([DIALER, LISTENER])
SIZES = st.sampled_from([0, 10, 1000, 300_000, STREAM_CREDIT])
STREAMS_MAX = 3


class ConnectionMachine(RuleBasedStateMachine):
    @initialize()
    def greet(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(connection_module, "STREAMS_MAX", STREAMS_MAX)
        self.pair = Pair()
        self.pair.settle()
        self.known: dict[int, list[int]] = {DIALER: [], LISTENER: []}
        self.sent: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.got: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.ungranted: dict[tuple[int, int], int] = defaultdict(int)
        self.reset_streams: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            try:
                self.finish()
            finally:
                self.patch.undo()

    def streams(self, side: int) -> list[int]:
        return [one for one in self.known[side] if self.pair.sides[side].is_open(one)]

    @rule(side=SIDES, lane=st.sampled_from(list(Lane)), end=st.booleans())
    def open(self, side: int, lane: Lane, end: bool) -> None:
        if self.pair.sides[side].can_open():
            self.known[side].append(self.pair.sides[side].open_stream(WantBlocks(ids=bytes(32)), lane=lane, end=end))

    @rule(
        side=SIDES,
        pick=st.integers(0, 5),
        size=SIZES,
        end=st.booleans(),
    )
    def send(self, side: int, pick: int, size: int, end: bool) -> None:
        if streams := self.streams(side):
            stream = streams[pick % len(streams)]
            size = min(size, self.pair.sides[side].send_credit(stream), 4_000_000)
            self.pair.sides[side].send_blocks(stream, [bytes(size)], end=end)
            self.sent[side, stream].append(size)

    @rule(side=SIDES, pick=st.integers(0, 5))
    def reset(self, side: int, pick: int) -> None:
        if self.known[side]:
            stream = self.known[side][pick % len(self.known[side])]
            self.pair.sides[side].reset(stream, ErrorCode.CANCELLED, "")
            self.reset_streams.add(stream)

    @rule(side=SIDES, pick=st.integers(0, 5))
    def grant(self, side: int, pick: int) -> None:
        if self.known[side]:
            stream = self.known[side][pick % len(self.known[side])]
            self.pair.sides[side].grant(stream, self.ungranted.pop((side, stream), 0))

    @rule(side=SIDES)
    def ping(self, side: int) -> None:
        self.pair.sides[side].ping(bytes(8))

    @rule(side=SIDES, frames=st.integers(1, 4))
    def write(self, side: int, frames: int) -> None:
        for _ in range(frames):
            self.pair.write(side)

    @rule(side=SIDES, count=st.sampled_from([1, 11, 12, 13, 500, None]))
    def deliver(self, side: int, count: int | None) -> None:
        self.take(side, self.pair.deliver(side, count))

    def take(self, side: int, events: list[Event]) -> None:
        for event in events:
            match event:
                case StreamOpened():
                    self.known[side].append(event.stream)
                case BlocksReceived():
                    self.got[side, event.stream].append(len(event.sealed))
                    self.ungranted[side, event.stream] += len(event.sealed)
                case StreamReset():
                    self.reset_streams.add(event.stream)

    @invariant()
    @precondition(lambda self: hasattr(self, "pair"))
    def what_arrives_is_what_was_sent_in_that_order(self) -> None:
        for (side, stream), sizes in self.got.items():
            assert self.sent[1 - side, stream][: len(sizes)] == sizes

    @invariant()
    @precondition(lambda self: hasattr(self, "pair"))
    def no_end_holds_more_streams_than_both_may_open(self) -> None:
        for side in self.pair.sides:
            assert side.statistics().streams_open <= 2 * STREAMS_MAX

    def finish(self) -> None:
        """End every stream and let everything arrive: then all of it has, and nothing is left behind."""
        for _ in range(3):
            for side in (DIALER, LISTENER):
                for stream in self.streams(side):
                    self.pair.sides[side].send_blocks(stream, [], end=True)
                    self.sent[side, stream].append(0)
            for _ in range(40):
                for side in (DIALER, LISTENER):
                    while self.pair.write(side):
                        pass
                    self.take(1 - side, self.pair.deliver(1 - side))
        for (side, stream), sizes in self.sent.items():
            if stream not in self.reset_streams:
                assert self.got[1 - side, stream] == sizes
        for end in self.pair.sides:
            assert (end.statistics().streams_open, end.statistics().queued_bytes, end.can_open()) == (0, 0, True)


TestConnection = ConnectionMachine.TestCase
