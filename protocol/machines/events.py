"""What a connection tells the one who drives it."""

from dataclasses import dataclass

from protocol.errors import ErrorCode
from protocol.ids import StreamId
from protocol.messages.registry import Message
from protocol.messages.session import Hello
from protocol.wire.frames import Lane


@dataclass(frozen=True, slots=True)
class HelloReceived:
    hello: Hello
    version: int


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer asks for something."""

    stream: StreamId
    lane: Lane
    request: Message
    ended: bool


@dataclass(frozen=True, slots=True)
class MessageReceived:
    stream: StreamId
    message: Message
    wire_bytes: int
    ended: bool


@dataclass(frozen=True, slots=True)
class BlocksReceived:
    """One or more whole sealed blocks, unopened."""

    stream: StreamId
    sealed: bytes
    ended: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    stream: StreamId
    code: ErrorCode
    reason: str


@dataclass(frozen=True, slots=True)
class CreditGranted:
    """The stream may send more."""

    stream: StreamId


@dataclass(frozen=True, slots=True)
class PongReceived:
    token: bytes


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer says goodbye; the connection is over."""

    code: ErrorCode
    reason: str


Event = (
    HelloReceived
    | StreamOpened
    | MessageReceived
    | BlocksReceived
    | StreamReset
    | CreditGranted
    | PongReceived
    | PeerLeft
)
