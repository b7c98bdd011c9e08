"""Two honest ends of a connection and a slow wire, in any order of events: nothing is lost, and nobody is accused.

The same promise as `tests/property/test_connection.py` walks at random; here Hypothesis chooses each
step, so a failure comes shrunk to the few frames that make it.
"""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import protocol.machines.connection as connection_module
from protocol.limits import STREAM_CREDIT
from protocol.wire.frames import Lane
from tests.support.talk import Talk
from tests.support.wire import DIALER, LISTENER

SIDES = st.sampled_from([DIALER, LISTENER])
SIZES = st.sampled_from([0, 10, 1000, 300_000, STREAM_CREDIT])
STREAMS_MAX = 3


class ConnectionMachine(RuleBasedStateMachine):
    @initialize()
    def greet(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(connection_module, "STREAMS_MAX", STREAMS_MAX)
        self.talk = Talk()

    def teardown(self) -> None:
        if hasattr(self, "talk"):
            try:
                self.talk.finish()
            finally:
                self.patch.undo()

    @rule(side=SIDES, lane=st.sampled_from(list(Lane)), end=st.booleans())
    def open(self, side: int, lane: Lane, end: bool) -> None:
        self.talk.open(side, lane, end=end)

    @rule(side=SIDES, pick=st.integers(0, 5), size=SIZES, end=st.booleans())
    def send(self, side: int, pick: int, size: int, end: bool) -> None:
        if streams := self.talk.open_streams(side):
            self.talk.send(side, streams[pick % len(streams)], min(size, 4_000_000), end=end)

    @rule(side=SIDES, pick=st.integers(0, 5))
    def reset(self, side: int, pick: int) -> None:
        if known := self.talk.known[side]:
            self.talk.reset(side, known[pick % len(known)])

    @rule(side=SIDES, pick=st.integers(0, 5))
    def grant(self, side: int, pick: int) -> None:
        if known := self.talk.known[side]:
            self.talk.grant(side, known[pick % len(known)])

    @rule(side=SIDES)
    def ping(self, side: int) -> None:
        self.talk.pair.sides[side].ping(bytes(8))

    @rule(side=SIDES, frames=st.integers(1, 4))
    def write(self, side: int, frames: int) -> None:
        for _ in range(frames):
            self.talk.pair.write(side)

    @rule(side=SIDES, count=st.sampled_from([1, 11, 12, 13, 500, None]))
    def deliver(self, side: int, count: int | None) -> None:
        self.talk.deliver(side, count)

    @invariant()
    @precondition(lambda self: hasattr(self, "talk"))
    def what_arrives_is_what_was_sent_in_that_order(self) -> None:
        self.talk.check_order()

    @invariant()
    @precondition(lambda self: hasattr(self, "talk"))
    def no_end_holds_more_streams_than_both_may_open(self) -> None:
        for side in self.talk.pair.sides:
            assert side.statistics().streams_open <= 2 * STREAMS_MAX


TestConnection = ConnectionMachine.TestCase
