"""Frames: what a connection's byte stream is cut into.

    length  kind  flags  lane  reserved  stream     then `length` bytes
    I       B     B      B     B         I          12 bytes, big-endian

`length` counts what follows the header, and is checked against the kind's limit before a
single byte of it is kept. Block data is raw bytes behind the header, never msgpack objects.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from protocol.errors import Malformed, TooLarge
from protocol.ids import StreamId
from protocol.limits import BLOCKS_FRAME_MAX, CONTROL_FRAME_MAX

_HEADER: Final = struct.Struct(">IBBBBI")
FRAME_HEADER_BYTES: Final = _HEADER.size
END_STREAM: Final = 0x01
"""Flag: the sender says no more on this stream."""


class FrameKind(IntEnum):
    """What a frame carries, and on which stream."""

    HELLO = 1
    """Stream 0, first frame each way: versions, name, incarnation."""
    OPEN = 2
    """A new stream and its request, in msgpack."""
    MESSAGE = 3
    """A further message on an open stream, in msgpack."""
    BLOCKS = 4
    """One or more whole sealed blocks, as they lie on disk."""
    RESET = 5
    """The stream is over, and why: an error code and a sentence, in msgpack."""
    CREDIT = 6
    """The receiver grants the stream more bytes: one u32."""
    PING = 7
    """Eight bytes to be sent back."""
    PONG = 8
    """The eight bytes of a ping."""
    GOODBYE = 9
    """Stream 0: the connection is over, and why."""


class Lane(IntEnum):
    """Who goes first when a link is busy. A lower number always goes before a higher one."""

    CONTROL = 0
    REPAIR = 1
    RESTORE = 2
    SYNC = 3
    SEED = 4


_LENGTH_MAX: Final[dict[int, int]] = {
    FrameKind.HELLO: 4096,
    FrameKind.OPEN: CONTROL_FRAME_MAX,
    FrameKind.MESSAGE: CONTROL_FRAME_MAX,
    FrameKind.BLOCKS: BLOCKS_FRAME_MAX,
    FrameKind.RESET: 8192,
    FrameKind.CREDIT: 4,
    FrameKind.PING: 8,
    FrameKind.PONG: 8,
    FrameKind.GOODBYE: 8192,
}
_LANES: Final = len(Lane)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """A parsed frame header; its length is inside the limit of its kind."""

    length: int
    kind: FrameKind
    flags: int
    lane: Lane
    stream: StreamId


def pack_header(kind: FrameKind, stream: int, length: int, *, lane: Lane = Lane.CONTROL, flags: int = 0) -> bytes:
    assert length <= _LENGTH_MAX[kind], (kind, length)
    return _HEADER.pack(length, kind, flags, lane, 0, stream)


def parse_frame_header(data: bytes | memoryview) -> FrameHeader:
    """Raises `Malformed` for an unknown kind, lane or flag, `TooLarge` for a length over the limit of its kind."""
    length, kind, flags, lane, reserved, stream = _HEADER.unpack(data)
    limit = _LENGTH_MAX.get(kind)
    if limit is None:
        raise Malformed(f"frame kind {kind} is not one that we know")
    if lane >= _LANES or reserved or flags & ~END_STREAM:
        raise Malformed(f"a frame on lane {lane} with flags {flags:#x} and {reserved} in the reserved byte")
    if length > limit:
        raise TooLarge(f"a {FrameKind(kind).name} frame of {length} bytes; the limit is {limit}")
    return FrameHeader(length, FrameKind(kind), flags, Lane(lane), StreamId(stream))
