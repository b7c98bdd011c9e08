"""One connection between two sites: framing, hello, streams, credit and lanes.

This file does not know which side dialled, except that a dialler's streams have odd numbers;
and it does no I/O: `receive_data` takes what arrived, `next_event` says what it means,
`next_frame` hands out what should be written now. Time is an argument where it matters.

A *stream* is one question and its answers. The opener sends OPEN with a request message;
both sides may then send messages and blocks until each has set END_STREAM, or one of them
sends RESET. What a stream sends after its OPEN (messages and blocks alike) is paid for with
credit that the receiver grants as it works things off, so a slow consumer stops its own
stream and nobody else's.

What is to be sent waits in one queue a lane (`outbox.py`); `next_frame` always takes from the
lowest lane that has something. A repair thus waits behind at most one frame of a bulk transfer.

Invariants: no stream sends more than it was granted; a stream id is never used twice; after
`PeerLeft` or an error no event follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol.errors import CreditExceeded, ErrorCode, Malformed, ProtocolError, Unexpected
from protocol.ids import StreamId
from protocol.limits import STREAM_CREDIT, STREAMS_MAX
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
from protocol.machines.outbox import Outbox, Outgoing
from protocol.messages import blocks, repair, session, snapshots, summary  # noqa: F401  (all messages register here)
from protocol.messages.registry import Message, decode, encode
from protocol.messages.session import Hello, Refusal
from protocol.messages.versions import agree
from protocol.wire.buffer import ReceiveBuffer
from protocol.wire.envelope import Buffer
from protocol.wire.frames import (
    END_STREAM,
    FRAME_HEADER_BYTES,
    FrameHeader,
    FrameKind,
    Lane,
    parse_frame_header,
)


class State(Enum):
    """Where the whole connection is."""

    GREETING = "waiting for the peer's hello"
    OPEN = "open"
    CLOSED = "closed"


ALLOWED: Final[dict[State, frozenset[FrameKind]]] = {
    State.GREETING: frozenset({FrameKind.HELLO, FrameKind.GOODBYE}),
    State.OPEN: frozenset(set(FrameKind) - {FrameKind.HELLO}),
    State.CLOSED: frozenset(),
}
"""Which frames may arrive in which state; anything else ends the connection."""


_PONGS_MAX: Final = 64
"""Pings that we owe an answer. An honest peer has one or two on their way; one that sends and never reads
must not make us keep its bytes."""


@dataclass(slots=True)
class _Stream:
    lane: Lane
    send_credit: int = STREAM_CREDIT
    receive_credit: int = STREAM_CREDIT
    queued: int = 0
    open_waits: bool = False
    """Its OPEN is still queued: the peer does not know of it yet."""
    we_ended: bool = False
    end_waits: bool = False
    """We have ended it, and the frame that says so is still queued."""
    they_ended: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """Counted since the connection began. Bytes are frames as handed over, before TLS."""

    bytes_in: int
    bytes_out: int
    frames_in: int
    frames_out: int
    streams_open: int
    queued_bytes: int


class Connection:
    """The protocol of one link. Feed it bytes, ask it for events and for frames to write."""

    def __init__(self, *, is_dialer: bool, hello: Hello) -> None:
        self.state = State.GREETING
        self.version = 0
        self._offered = hello.version_min, hello.version_max
        self._next_stream = 1 if is_dialer else 2
        self._peer_parity = 0 if is_dialer else 1
        self._peer_last = -self._peer_parity  # The first numbers are 1 and 2.
        self._peer_skipped: set[int] = set()
        """Numbers below `_peer_last` whose OPEN is yet to come: one on a higher lane has overtaken it."""
        self._buffer = ReceiveBuffer()
        self._header: FrameHeader | None = None
        self._is_deaf = False
        self._streams: dict[int, _Stream] = {}
        self._leaving: set[int] = set()
        """Streams of ours that are over for us, and whose last frame still waits: the peer counts them as open."""
        self._pongs_waiting = 0
        self._outbox = Outbox()
        self._bytes_in = self._bytes_out = self._frames_in = self._frames_out = 0
        self._send(FrameKind.HELLO, 0, encode(hello), lane=Lane.CONTROL)

    # -- what arrives ---------------------------------------------------------------------

    def receive_data(self, data: bytes | memoryview) -> None:
        """Keep bytes that arrived. Parsing waits for `next_event`."""
        self._bytes_in += len(data)
        self._buffer.append(data)

    def next_event(self) -> Event | None:
        """The next thing that happened, or None until more bytes arrive.

        Raises `ProtocolError` if the peer broke the rules: send what `goodbye` queues, then hang up.
        """
        try:
            return self._parse()
        except ProtocolError:
            self._is_deaf = True
            raise

    def _parse(self) -> Event | None:
        while self.state is not State.CLOSED and not self._is_deaf:
            if self._header is None:
                raw = self._buffer.take(FRAME_HEADER_BYTES)
                if raw is None:
                    return None
                header = parse_frame_header(raw)
                if header.kind not in ALLOWED[self.state]:
                    raise Unexpected(f"a {header.kind.name} frame while {self.state.value}")
                self._header = header
            body = self._buffer.take(self._header.length)
            if body is None:
                return None
            header, self._header = self._header, None
            self._frames_in += 1
            event = self._apply(header, body)
            if event is not None:
                return event
        return None

    def _apply(self, header: FrameHeader, body: bytes) -> Event | None:
        match header.kind:
            case FrameKind.HELLO:
                return self._on_hello(body)
            case FrameKind.OPEN:
                return self._on_open(header, body)
            case FrameKind.MESSAGE | FrameKind.BLOCKS:
                return self._on_content(header, body)
            case FrameKind.RESET:
                return self._on_reset(header, body)
            case FrameKind.CREDIT:
                return self._on_credit(header, body)
            case FrameKind.PING:
                if len(body) != 8:
                    raise Malformed("a ping carries eight bytes")
                if self._pongs_waiting >= _PONGS_MAX:
                    raise CreditExceeded("pings, and nobody reads the answers")
                self._pongs_waiting += 1
                self._send(FrameKind.PONG, 0, body, lane=Lane.CONTROL)
                return None
            case FrameKind.PONG:
                return PongReceived(body)
        assert header.kind is FrameKind.GOODBYE, header.kind
        self.state = State.CLOSED
        refusal = _refusal(body)
        return PeerLeft(_error_code(refusal.error), refusal.reason)

    def _on_hello(self, body: bytes) -> Event:
        hello = decode(body)
        if not isinstance(hello, Hello):
            raise Unexpected("the first frame is not a hello")
        self.version = agree(self._offered, (hello.version_min, hello.version_max))
        self.state = State.OPEN
        return HelloReceived(hello, self.version)

    def _on_open(self, header: FrameHeader, body: bytes) -> Event:
        stream = header.stream
        self._take_number(stream)
        if sum(1 for number in self._streams if number % 2 == self._peer_parity) >= STREAMS_MAX:
            raise CreditExceeded(f"over {STREAMS_MAX} streams at once")
        request = self._decode(body)
        ended = bool(header.flags & END_STREAM)
        self._streams[stream] = _Stream(header.lane, they_ended=ended)
        return StreamOpened(stream, header.lane, request, ended)

    def _decode(self, body: bytes) -> Message:
        """A message of the agreed version: a release of that version would not know a later one either."""
        item = decode(body)
        if item.since > self.version:
            raise Malformed(f"{type(item).__name__} is not part of version {self.version}, which was agreed")
        return item

    def _take_number(self, stream: int) -> None:
        """Each number is used once. OPENs may come out of order, since each waits in its own lane."""
        if stream in self._peer_skipped:
            self._peer_skipped.remove(stream)
            return
        if stream % 2 != self._peer_parity or stream <= self._peer_last:
            raise Unexpected(f"stream {stream} is not the peer's to open now")
        skipped = range(self._peer_last + 2, stream, 2)
        if len(self._peer_skipped) + len(skipped) >= STREAMS_MAX:
            raise Unexpected(f"stream {stream} leaves out more numbers than can be waiting")
        self._peer_skipped.update(skipped)
        self._peer_last = stream

    def _on_content(self, header: FrameHeader, body: bytes) -> Event | None:
        state = self._streams.get(header.stream)
        if state is None:
            # We have reset or finished it while these bytes were on their way. Only ids that were
            # never opened are an error.
            self._must_have_been_open(header.stream)
            return None
        if state.they_ended:
            raise Unexpected(f"stream {header.stream} goes on after its end")
        state.receive_credit -= len(body)
        if state.receive_credit < 0:
            raise CreditExceeded(f"stream {header.stream} sent {-state.receive_credit} bytes more than granted")
        ended = bool(header.flags & END_STREAM)
        event: Event
        if header.kind is FrameKind.MESSAGE:
            event = MessageReceived(header.stream, self._decode(body), len(body), ended)
        else:
            event = BlocksReceived(header.stream, body, ended)
        if ended:
            state.they_ended = True
            self._forget_if_over(header.stream, state)
        return event

    def _on_reset(self, header: FrameHeader, body: bytes) -> Event | None:
        refusal = _refusal(body)
        state = self._streams.pop(header.stream, None)
        if state is None:
            self._must_have_been_open(header.stream)
        # Also of a stream that is over for us: an answer that is complete may still wait to be written, for minutes
        # under a slow rule, and nobody wants it any more.
        self._outbox.drop(header.stream)
        self._leaving.discard(header.stream)
        if state is None:
            return None
        return StreamReset(header.stream, _error_code(refusal.error), refusal.reason)

    def _on_credit(self, header: FrameHeader, body: bytes) -> Event | None:
        if len(body) != 4:
            raise Malformed("a credit is one u32")
        state = self._streams.get(header.stream)
        if state is None:
            self._must_have_been_open(header.stream)
            return None
        state.send_credit += int.from_bytes(body, "big")
        return CreditGranted(header.stream)

    def _must_have_been_open(self, stream: int) -> None:
        is_peers = stream % 2 == self._peer_parity
        known = stream <= self._peer_last if is_peers else stream < self._next_stream
        if not known or stream == 0 or stream in self._peer_skipped:
            raise Unexpected(f"stream {stream} was never opened")

    # -- what we send ---------------------------------------------------------------------

    def open_stream(self, request: Message, *, lane: Lane, end: bool) -> StreamId:
        """Ask the peer for something; its answers come as events of the returned stream."""
        assert self.state is State.OPEN, self.state
        stream = self._next_stream
        body = self._encode(request)
        self._next_stream += 2
        self._streams[stream] = _Stream(lane, open_waits=True, we_ended=end)
        self._send(FrameKind.OPEN, stream, body, lane=lane, flags=END_STREAM if end else 0)
        return StreamId(stream)

    def _encode(self, item: Message) -> bytes:
        assert item.since <= self.version, f"{type(item).__name__} to a peer of version {self.version}"
        return encode(item)

    def can_open(self) -> bool:
        """Whether the peer's bound on streams leaves room for one more of ours."""
        ours = sum(1 for number in self._streams if self._is_ours(number))
        return ours + len(self._leaving) < STREAMS_MAX

    def _is_ours(self, stream: int) -> bool:
        return stream % 2 != self._peer_parity

    def is_open(self, stream: int) -> bool:
        """Whether we may still send on the stream: neither ended by us nor reset by either side."""
        state = self._streams.get(stream)
        return self.state is State.OPEN and state is not None and not state.we_ended

    def send_credit(self, stream: int) -> int:
        """Bytes that the stream may queue now."""
        state = self._streams.get(stream)
        return 0 if state is None else state.send_credit

    def send_message(self, stream: int, item: Message, *, end: bool = False) -> None:
        self._send_content(FrameKind.MESSAGE, stream, (self._encode(item),), end=end)

    def send_blocks(self, stream: int, parts: Sequence[Buffer], *, end: bool = False) -> None:
        """Queue one BLOCKS frame; `parts` joined must be whole sealed blocks and fit `BLOCKS_FRAME_MAX`."""
        self._send_content(FrameKind.BLOCKS, stream, tuple(parts), end=end)

    def _send_content(self, kind: FrameKind, stream: int, parts: tuple[Buffer, ...], *, end: bool) -> None:
        state = self._streams[stream]
        assert not state.we_ended, f"stream {stream} goes on after its end"
        size = sum(map(len, parts))
        state.send_credit -= size
        assert state.send_credit >= 0, f"stream {stream} has no credit for {size} bytes"
        self._send(kind, stream, *parts, lane=state.lane, flags=END_STREAM if end else 0)
        if end:
            state.we_ended = True
            self._forget_if_over(stream, state)

    def grant(self, stream: int, count: int) -> None:
        """Let the peer send `count` more bytes on the stream. Harmless if it is over."""
        state = self._streams.get(stream)
        if state is None or state.they_ended or count == 0 or self.state is not State.OPEN:
            return
        state.receive_credit += count
        # At once, unless the peer has not heard of the stream yet.
        lane = state.lane if state.open_waits else Lane.CONTROL
        self._send(FrameKind.CREDIT, stream, count.to_bytes(4, "big"), lane=lane)

    def reset(self, stream: int, code: ErrorCode, reason: str) -> None:
        """End the stream both ways. Harmless if it is over."""
        state = self._streams.pop(stream, None)
        if state is None or self.state is not State.OPEN:
            return
        self._outbox.drop(stream)
        body = _refusal_body(code, reason)
        if state.open_waits:
            # It must not overtake its OPEN, and must not come long after it either: under a slow rule the peer would
            # answer what nobody wants any more, at a pace that was told it for other work.
            self._outbox.reset_with_open(stream, body, lane=state.lane)
        else:
            # At once: what is unwanted would otherwise be sent for as long as this waits behind bulk of ours.
            self._send(FrameKind.RESET, stream, body, lane=Lane.CONTROL)
        if self._is_ours(stream):
            self._leaving.add(stream)

    def ping(self, token: bytes) -> None:
        """Ask for a sign of life; `token` (8 bytes) comes back in `PongReceived`."""
        self._send(FrameKind.PING, 0, token, lane=Lane.CONTROL)

    def goodbye(self, code: ErrorCode, reason: str) -> None:
        """Queue a last frame and accept nothing more."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._send(FrameKind.GOODBYE, 0, _refusal_body(code, reason), lane=Lane.CONTROL)

    def forget(self) -> None:
        """The line is gone: let go of everything that waited for it. What is counted stays."""
        self._outbox.clear()
        self._streams.clear()
        self._leaving.clear()
        self._buffer = ReceiveBuffer()

    def _send(self, kind: FrameKind, stream: int, *parts: Buffer, lane: Lane, flags: int = 0) -> None:
        out = self._outbox.add(kind, stream, parts, lane=lane, flags=flags)
        state = self._streams.get(stream)
        if state is not None:
            state.queued += out.size - FRAME_HEADER_BYTES
            state.end_waits = state.end_waits or out.is_last

    # -- what goes out now ----------------------------------------------------------------

    def next_lane(self) -> tuple[Lane, int] | None:
        """The lane whose turn it is and the size of its next frame; None if nothing is waiting."""
        return self._outbox.next_lane()

    def next_frame(self) -> tuple[Buffer, ...]:
        """Take the next frame in the order of the lanes; its parts are to be written one after the other.

        A question that is not wanted any more is followed by its RESET in the same parts.
        """
        out = self._outbox.take()
        self._note_written(out)
        self._bytes_out += out.size
        self._frames_out += out.frames
        return out.parts

    def _note_written(self, out: Outgoing) -> None:
        if out.kind is FrameKind.PONG:
            self._pongs_waiting -= 1
        if out.is_last:
            self._leaving.discard(out.stream)
        state = self._streams.get(out.stream)
        if state is not None:
            state.queued -= out.size - FRAME_HEADER_BYTES
            if out.kind is FrameKind.OPEN:
                state.open_waits = False
            if out.is_last:
                state.end_waits = False

    def queued_bytes(self, stream: int) -> int:
        """Bytes of the stream that still wait to be written: the sender pauses on this, to bound memory."""
        state = self._streams.get(stream)
        return 0 if state is None else state.queued

    def _forget_if_over(self, stream: int, state: _Stream) -> None:
        if state.we_ended and state.they_ended:
            del self._streams[stream]
            if state.end_waits and self._is_ours(stream):
                self._leaving.add(stream)

    def statistics(self) -> ConnectionStatistics:
        return ConnectionStatistics(
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            frames_in=self._frames_in,
            frames_out=self._frames_out,
            streams_open=len(self._streams),
            queued_bytes=self._outbox.size,
        )


def _refusal(body: bytes) -> Refusal:
    item = decode(body)
    if not isinstance(item, Refusal):
        raise Unexpected("a reset or goodbye carries a refusal")
    return item


def _refusal_body(code: ErrorCode, reason: str) -> bytes:
    """The reason may quote a file name that is not valid text; four bytes a character stay under `TEXT_MAX`."""
    readable = reason[:1000].encode(errors="replace").decode()
    return encode(Refusal(error=code, reason=readable))


def _error_code(number: int) -> ErrorCode:
    try:
        return ErrorCode(number)
    except ValueError:
        return ErrorCode.MALFORMED


__all__ = ["Connection", "ConnectionStatistics", "ProtocolError", "State"]
