"""One live connection to a peer: the protocol machine, a transport, and the tasks between.

    transport ─▶ reader ─▶ machine ─▶ events ─▶ streams ─▶ whoever asked, or a handler
    transport ◀─ writer ◀─ machine ◀─────────── streams ◀─ the same

The writer is where bandwidth rules bind: bulk lanes wait for tokens, and while they wait a
repair or a ping still goes out, because the wait ends whenever something new is queued. What
comes in is paced by credit: a stream whose bytes are over the rule is granted more only when
the bucket allows, so the *peer* slows down and nothing piles up here.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import ErrorCode, ProtocolError
from protocol.ids import SiteId, SnapshotId, StreamId
from protocol.limits import BLOCKS_FRAME_GOAL, CONTROL_FRAME_MAX, HANDSHAKE_S, HEARTBEAT_S, SILENCE_S, STREAM_CREDIT
from protocol.machines.connection import Connection, ConnectionStatistics, State
from protocol.machines.events import (
    BlocksReceived,
    CreditGranted,
    Event,
    HelloReceived,
    MessageReceived,
    PeerLeft,
    PongReceived,
    StreamOpened,
    StreamReset,
)
from protocol.messages.registry import Message
from protocol.messages.session import Hello
from protocol.wire.envelope import Buffer
from protocol.wire.frames import Lane
from replicator.core.errors import PeerError, Refused, ReplicatorError, Stalled, Unreachable, Untrusted
from replicator.core.logging import get_logger
from replicator.core.ports import Entropy
from replicator.core.throttle import TokenBucket, frame_goal_bytes, longest_delay_s
from replicator.net.ports import Transport

Item = Message | bytes
"""What a stream delivers: a message, or a run of whole sealed blocks."""

_QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
"""What one stream may have waiting to be written: enough to keep a fat link busy between two turns."""
_THROTTLED: Final = frozenset({Lane.RESTORE, Lane.SYNC, Lane.SEED})
_GRANT_AT: Final = STREAM_CREDIT // 4


@dataclass(frozen=True, slots=True)
class Pace:
    """The buckets that bind a link, for what goes out and for what comes in."""

    outgoing: tuple[TokenBucket, ...] = ()
    incoming: tuple[TokenBucket, ...] = ()


class Stream:
    """One question and its answers. Use it in one task at a time for each direction."""

    def __init__(self, link: "Link", number: StreamId, lane: Lane) -> None:
        self._link = link
        self.number = number
        self.lane = lane
        self._items: deque[tuple[Item, int]] = deque()
        self._arrived = trio.Event()
        self._room = trio.Event()
        self._awaited = 0
        self._ended = False
        self._error: ReplicatorError | None = None
        self._owed = 0
        self.message_bytes_in = 0

    @property
    def peer(self) -> SiteId:
        return self._link.peer

    @property
    def link(self) -> "Link":
        return self._link

    async def receive(self) -> Item | None:
        """The next message or run of sealed blocks; None at the stream's end.

        Raises `Refused` if the peer ended it with a reason, `Unreachable` if the link broke.
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._arrived = trio.Event()
            await self._arrived.wait()
        item, size = self._items.popleft()
        await self._link.settle(self, size, is_bulk=isinstance(item, bytes))
        return item

    def arrived_blocks(self) -> list[bytes]:
        """Take the runs of blocks that have come and nobody has received yet: the last thing to do with a stream."""
        runs = [item for item, _ in self._items if isinstance(item, bytes)]
        self._items.clear()
        return runs

    async def send(self, message: Message, *, end: bool = False) -> None:
        """Raises what `receive` raises."""
        # The size is not known before it is encoded; a message is at most a control frame.
        await self._wait_for_room(CONTROL_FRAME_MAX)
        self._link.connection.send_message(self.number, message, end=end)
        self._link.wake()

    async def send_blocks(self, parts: Sequence[Buffer], *, end: bool = False) -> None:
        """Whole sealed blocks, joined no larger than a frame may be."""
        await self._wait_for_room(sum(map(len, parts)))
        self._link.connection.send_blocks(self.number, parts, end=end)
        self._link.wake()

    async def _wait_for_room(self, size: int) -> None:
        # Also if there is room: a handler with much to say must not keep the link from hearing.
        await trio.lowlevel.checkpoint()
        while True:
            if self._error is not None:
                raise self._error
            if not self._link.connection.is_open(self.number):
                raise Unreachable(f"The stream to {self._link.name} is closed.")
            if self._fits(size):
                return
            self._awaited = size
            self._room = trio.Event()
            await self._room.wait()

    def _fits(self, size: int) -> bool:
        connection = self._link.connection
        return connection.send_credit(self.number) >= size and connection.queued_bytes(self.number) < _QUEUE_BYTES_MAX

    def fail(self, error: ReplicatorError) -> None:
        if self._error is None and not self._ended:
            self._error = error
        self._arrived.set()
        self._room.set()

    def deliver(self, item: Item, size: int, *, ended: bool) -> None:
        self._items.append((item, size))
        self._ended |= ended
        self._arrived.set()

    def end_of_input(self) -> None:
        self._ended = True
        self._arrived.set()

    def has_room(self) -> None:
        """Something has left, or credit has come. A sender is woken only if there is something new for it."""
        if not self._room.is_set() and (self._fits(self._awaited) or not self._link.connection.is_open(self.number)):
            self._room.set()

    def reset(self, code: ErrorCode, reason: str) -> None:
        """End it both ways. Harmless if it is over."""
        self._link.connection.reset(self.number, code, reason)
        self._link.wake()


Handler = Callable[[Stream, Message], Awaitable[None]]
"""Answers one kind of request. What it raises is sent to the asker as the stream's end."""

Handlers = dict[type[Message], Handler]


@dataclass(slots=True)
class SentAhead:
    """What became of the new blocks of a snapshot before it was offered. Bytes are sealed ones."""

    blocks: int = 0
    sealed_bytes: int = 0
    there_bytes: int = 0
    """What the peer had."""
    left_blocks: int = 0
    left_bytes: int = 0
    """What did not go in time."""


class Link:
    """A connection that has been proven to be with `peer`."""

    def __init__(
        self,
        transport: Transport,
        *,
        peer: SiteId,
        name: str,
        is_dialer: bool,
        hello: Hello,
        handlers: Handlers,
        pace: Pace,
        address: str,
        entropy: Entropy,
    ) -> None:
        self._transport = transport
        self.peer = peer
        self.name = name
        self.is_dialer = is_dialer
        self.address = address
        self.connection = Connection(is_dialer=is_dialer, hello=hello)
        self.peer_hello: Hello | None = None
        self.round_trip_s: float | None = None
        self._handlers = handlers
        self._pace = pace
        self._entropy = entropy
        self._streams: dict[int, Stream] = {}
        self._wake = trio.Event()
        self._slot = trio.Event()
        self.offered: set[SnapshotId] = set()
        """What we are offering the peer just now: it may read that, whatever else it may."""
        self.bulk_turn = trio.Lock()
        """Held by the one who brings a snapshot over, or sends blocks of one ahead."""
        self.sent_ahead: dict[SnapshotId, SentAhead] = {}
        """Of snapshots that are still to be offered."""
        self.ready = trio.Event()
        self.closed = trio.Event()
        self.opened_at = trio.current_time()
        self._heard_at = trio.current_time()
        self._ping_sent: tuple[bytes, float] | None = None
        self._scope = trio.CancelScope()
        self.why_closed = ""

    # -- life -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the link until either side ends it. Never raises: `why_closed` says how it went."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._beat)
                    await self._read(nursery)
                    nursery.cancel_scope.cancel()
        except* (PeerError, ProtocolError, OSError) as group:
            self.why_closed = self.why_closed or str(group.exceptions[0])
        except* Exception:  # noqa: BLE001  (the last line of defence, and it is logged)
            # A mistake of ours met on one link must not take the others, or the node, with it.
            self.why_closed = "an internal error"
            get_logger().exception("link.bug", peer=self.name)
        finally:
            self._finish()
            await self._transport.close()

    def _finish(self) -> None:
        self.why_closed = self.why_closed or "closed"
        self.closed.set()
        self.ready.set()
        for stream in list(self._streams.values()):
            stream.fail(Unreachable(f"The link to {self.name} ended: {self.why_closed}"))
        self._streams.clear()
        self.connection.forget()  # Somebody may remember this link for long: megabytes must not hang on it.
        self._slot_may_be_free()

    def close(self, code: ErrorCode, reason: str) -> None:
        """Say goodbye and end the link; pending streams fail with `Unreachable`."""
        self.why_closed = self.why_closed or reason
        self.connection.goodbye(code, reason)
        self.wake()
        # The writer gets a moment to say it; a peer that does not read is cut off.
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + 0.5)

    def wake(self) -> None:
        self._wake.set()

    # -- asking ---------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, request: Message, *, lane: Lane, end: bool = True) -> AsyncIterator[Stream]:
        """Ask the peer for something; leaving the block ends the stream, finished or not.

        Raises `Unreachable` if the link is down or goes down.
        """
        await self._wait_for_slot()
        if not self.is_open:
            raise Unreachable(f"The link to {self.name} ended: {self.why_closed or 'it is closing'}")
        number = self.connection.open_stream(request, lane=lane, end=end)
        stream = self._streams[number] = Stream(self, number, lane)
        self.wake()
        try:
            yield stream
        finally:
            self._streams.pop(number, None)
            stream.reset(ErrorCode.CANCELLED, "no longer wanted")
            self._slot_may_be_free()

    @property
    def is_open(self) -> bool:
        """Whether streams may be opened: greeted, and neither side has said goodbye."""
        return self.connection.state is State.OPEN and not self.closed.is_set()

    def speaks(self, kind: type[Message]) -> bool:
        """Whether the peer knows a message: one that it does not know would end the link."""
        return kind.since <= self.connection.version

    async def _wait_for_slot(self) -> None:
        """Until the bound on open streams leaves room: some thirty syncs at once are enough to reach it."""
        while self.is_open and not self.connection.can_open():
            await self._slot.wait()

    def _slot_may_be_free(self) -> None:
        """Let everybody who waits look again: one event for all of them, and a fresh one for the next time."""
        self._slot.set()
        self._slot = trio.Event()

    # -- the reader -----------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            data = await self._transport.receive()
            if not data:
                raise Unreachable("the peer closed the connection")
            self._heard_at = trio.current_time()
            self.connection.receive_data(data)
            try:
                while (event := self.connection.next_event()) is not None:
                    self._apply(event, nursery)
                    if isinstance(event, PeerLeft):
                        return
            except ProtocolError as error:
                get_logger().warning("link.protocol_error", peer=self.name, error=error.why, code=error.code.name)
                self.close(error.code, error.why)
                await trio.sleep(0.5)
                raise
            if self.connection.next_lane() is not None:
                self.wake()

    def _apply(self, event: Event, nursery: trio.Nursery) -> None:
        match event:
            case MessageReceived(number, message, size, ended):
                if (stream := self._streams.get(number)) is not None:
                    stream.message_bytes_in += size
                    stream.deliver(message, size, ended=ended)
            case BlocksReceived(number, sealed, ended):
                if (stream := self._streams.get(number)) is not None:
                    stream.deliver(sealed, len(sealed), ended=ended)
            case CreditGranted(number):
                if (stream := self._streams.get(number)) is not None:
                    stream.has_room()
            case StreamReset(number, code, reason):
                if (stream := self._streams.get(number)) is not None:
                    stream.fail(self._refusal(code, reason))
            case StreamOpened(number, lane, request, ended):
                stream = self._streams[number] = Stream(self, number, lane)
                if ended:
                    stream.end_of_input()
                nursery.start_soon(self._handle, stream, request)
            case HelloReceived(hello, _):
                if hello.site_id != self.peer:
                    raise Unreachable("the peer's hello names another site than its key")
                self.peer_hello = hello
                self.ready.set()
            case PongReceived(token):
                if self._ping_sent is not None and self._ping_sent[0] == token:
                    self.round_trip_s = trio.current_time() - self._ping_sent[1]
            case PeerLeft(_, reason):
                self.why_closed = self.why_closed or f"the peer left: {reason}"

    def _refusal(self, code: ErrorCode, reason: str) -> ReplicatorError:
        if code in (ErrorCode.BUSY, ErrorCode.STOPPING, ErrorCode.STORAGE, ErrorCode.CANCELLED):
            return Stalled(f"{self.name} could not do it now: {reason}")
        return Refused(f"{self.name} refused: {reason}")

    async def _handle(self, stream: Stream, request: Message) -> None:
        handler = self._handlers.get(type(request))
        try:
            if handler is None:
                stream.reset(ErrorCode.FORBIDDEN, f"{type(request).__name__} is not answered here")
                return
            await handler(stream, request)
        except Untrusted as error:
            get_logger().error("request.untrusted", peer=self.name, request=type(request).__name__, error=error.message)
            stream.reset(ErrorCode.FORBIDDEN, error.message)
        except PeerError:
            stream.reset(ErrorCode.CANCELLED, "the link or the stream ended")
        except ProtocolError as error:
            stream.reset(error.code, error.why)
        except (ReplicatorError, OSError) as error:
            get_logger().warning("request.failed", peer=self.name, request=type(request).__name__, error=str(error))
            stream.reset(ErrorCode.STORAGE, str(error))
        finally:
            self._streams.pop(stream.number, None)

    async def settle(self, stream: Stream, size: int, *, is_bulk: bool) -> None:
        """The consumer has taken `size` bytes: pay the bandwidth rule, then let the peer send as much again."""
        if is_bulk and stream.lane in _THROTTLED:
            for bucket in self._pace.incoming:
                bucket.take(size)
            await self._wait_for_tokens(self._pace.incoming)
        stream._owed += size
        if stream._owed >= _GRANT_AT or (self.is_paced and stream._owed):
            self.connection.grant(stream.number, stream._owed)
            stream._owed = 0
            self.wake()

    @property
    def is_paced(self) -> bool:
        """Whether a rule holds back what comes in."""
        return any(bucket.rate_bytes for bucket in self._pace.incoming)

    async def _wait_for_tokens(self, buckets: Sequence[TokenBucket]) -> None:
        while (delay := longest_delay_s(buckets)) > 0:
            for bucket in buckets:
                bucket.note_wait(delay)
            await trio.sleep(delay)

    # -- the writer -----------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            turn = self.connection.next_lane()
            if turn is None:
                if self.connection.state is self.connection.state.CLOSED:
                    return
                await self._sleep_until_woken(None)
                continue
            lane, size = turn
            if lane in _THROTTLED and (delay := longest_delay_s(self._pace.outgoing)) > 0:
                for bucket in self._pace.outgoing:
                    bucket.note_wait(delay)
                await self._sleep_until_woken(delay)
                continue
            if lane in _THROTTLED:
                for bucket in self._pace.outgoing:
                    bucket.take(size)
            await self._transport.send(self.connection.next_frame())
            for stream in self._streams.values():
                stream.has_room()
            # A stream of ours counts until its last frame is written.
            self._slot_may_be_free()

    async def _sleep_until_woken(self, seconds: float | None) -> None:
        self._wake = trio.Event()
        if seconds is None:
            await self._wake.wait()
            return
        with trio.move_on_after(seconds):
            await self._wake.wait()

    def frame_goal_bytes(self) -> int:
        """How large a frame of blocks should be on this link: small on a slow one, so that a repair gets through."""
        return frame_goal_bytes(self._pace.outgoing, BLOCKS_FRAME_GOAL)

    # -- signs of life --------------------------------------------------------------------

    async def _beat(self) -> None:
        with trio.move_on_after(HANDSHAKE_S):
            await self.ready.wait()
        if self.peer_hello is None and not self.closed.is_set():
            raise Unreachable("no hello came in time")
        while True:
            token = self._entropy.token(8)
            self._ping_sent = (token, trio.current_time())
            self.connection.ping(token)
            self.wake()
            await trio.sleep(HEARTBEAT_S)
            if trio.current_time() - self._heard_at > SILENCE_S:
                raise Unreachable(f"nothing was heard for {SILENCE_S:.0f} s")

    def statistics(self) -> ConnectionStatistics:
        return self.connection.statistics()
