"""Two honest ends of a connection, whatever somebody has them do, and the books of what should arrive."""

from collections import defaultdict
from collections.abc import Sequence

from protocol.errors import ErrorCode
from protocol.machines.events import BlocksReceived, Event, StreamOpened, StreamReset
from protocol.messages.blocks import WantBlocks
from protocol.wire.frames import Lane
from tests.support.wire import DIALER, LISTENER, Pair


class Talk:
    """Who drives it chooses the steps: a seed in one test, Hypothesis in another."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.pair.settle()
        self.known: tuple[list[int], list[int]] = ([], [])
        self._sent: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._got: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._ungranted: dict[tuple[int, int], int] = defaultdict(int)
        self._was_reset: set[int] = set()

    def open_streams(self, side: int) -> list[int]:
        return [one for one in self.known[side] if self.pair.sides[side].is_open(one)]

    def open(self, side: int, lane: Lane, *, end: bool) -> None:
        """Ask something, if one more stream may be open."""
        here = self.pair.sides[side]
        if here.can_open():
            self.known[side].append(here.open_stream(WantBlocks(ids=bytes(32)), lane=lane, end=end))

    def send(self, side: int, stream: int, size: int, *, end: bool) -> None:
        """So many bytes of blocks, or as many as the other end has granted."""
        here = self.pair.sides[side]
        if here.is_open(stream):
            size = min(size, here.send_credit(stream))
            here.send_blocks(stream, [bytes(size)], end=end)
            self._sent[side, stream].append(size)

    def reset(self, side: int, stream: int) -> None:
        self.pair.sides[side].reset(stream, ErrorCode.CANCELLED, "")
        self._was_reset.add(stream)

    def grant(self, side: int, stream: int, *, more: int = 0) -> None:
        """As much as has been taken, and perhaps some more."""
        self.pair.sides[side].grant(stream, self._ungranted.pop((side, stream), 0) + more)

    def deliver(self, side: int, count: int | None) -> None:
        """Let that many bytes arrive; all, for None."""
        self._take(side, self.pair.deliver(side, count))

    def _take(self, side: int, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case StreamOpened():
                    self.known[side].append(event.stream)
                case BlocksReceived():
                    self._got[side, event.stream].append(len(event.sealed))
                    self._ungranted[side, event.stream] += len(event.sealed)
                case StreamReset():
                    self._was_reset.add(event.stream)

    # -- what must be true ----------------------------------------------------------------

    def check_order(self) -> None:
        """At any time: what has arrived is what was sent, in that order."""
        for (side, stream), sizes in self._got.items():
            assert self._sent[1 - side, stream][: len(sizes)] == sizes

    def finish(self) -> None:
        """End every stream and let everything arrive: then all of it has, and nothing is left behind."""
        for _ in range(3):
            for side in (DIALER, LISTENER):
                for stream in self.open_streams(side):
                    self.send(side, stream, 0, end=True)
            for _ in range(40):
                for side in (DIALER, LISTENER):
                    while self.pair.write(side):
                        pass
                    self.deliver(1 - side, None)
        for (side, stream), sizes in self._sent.items():
            if stream not in self._was_reset:
                assert self._got[1 - side, stream] == sizes
        for end in self.pair.sides:
            assert (end.statistics().streams_open, end.statistics().queued_bytes, end.can_open()) == (0, 0, True)
