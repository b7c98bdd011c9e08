"""Frames that wait to be written, lane by lane: on each in the order they came, and the lowest lane first."""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from protocol.wire.envelope import Buffer
from protocol.wire.frames import END_STREAM, FRAME_HEADER_BYTES, FrameKind, Lane, pack_header

_LANES: Final = tuple(Lane)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One frame, or a question together with the RESET that takes it back."""

    kind: FrameKind
    stream: int
    is_last: bool
    """We say no more on the stream after this."""
    parts: tuple[Buffer, ...]
    size: int
    frames: int = 1


class Outbox:
    """What one side of a connection has said and not yet written."""

    def __init__(self) -> None:
        self._lanes: tuple[deque[Outgoing], ...] = tuple(deque() for _ in _LANES)

    def add(self, kind: FrameKind, stream: int, parts: tuple[Buffer, ...], *, lane: Lane, flags: int) -> Outgoing:
        """At the end of a lane."""
        size = sum(map(len, parts))
        header = pack_header(kind, stream, size, lane=lane, flags=flags)
        # (An OPEN may be our last word too, but a RESET can still follow it, and no answer can precede it.)
        is_last = kind is FrameKind.RESET or (kind is not FrameKind.OPEN and bool(flags & END_STREAM))
        out = Outgoing(kind, stream, is_last, (header, *parts), size + FRAME_HEADER_BYTES)
        self._lanes[lane].append(out)
        return out

    def next_lane(self) -> tuple[Lane, int] | None:
        """The lane whose turn it is and the size of its next frame; None if nothing is waiting."""
        for number, queue in enumerate(self._lanes):
            if queue:
                return _LANES[number], queue[0].size
        return None

    def take(self) -> Outgoing:
        """The next frame."""
        for queue in self._lanes:
            if queue:
                return queue.popleft()
        raise AssertionError("nothing to send")

    def drop(self, stream: int) -> None:
        """All of a stream but its OPEN: the peer is to know of it before it hears that it is over."""
        for queue in self._lanes:
            if any(out.stream == stream for out in queue):
                kept = [out for out in queue if out.stream != stream or out.kind is FrameKind.OPEN]
                queue.clear()
                queue.extend(kept)

    def reset_with_open(self, stream: int, body: bytes, *, lane: Lane) -> None:
        """Let the OPEN that waits take its RESET with it: both are written in one go."""
        queue = self._lanes[lane]
        at = next(number for number, out in enumerate(queue) if out.stream == stream)
        asked = queue[at]
        header = pack_header(FrameKind.RESET, stream, len(body), lane=lane, flags=0)
        size = asked.size + FRAME_HEADER_BYTES + len(body)
        queue[at] = replace(asked, is_last=True, parts=(*asked.parts, header, body), size=size, frames=2)

    def clear(self) -> None:
        for queue in self._lanes:
            queue.clear()

    @property
    def size(self) -> int:
        """Bytes, with the headers of frames."""
        return sum(out.size for queue in self._lanes for out in queue)
