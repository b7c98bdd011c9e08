"""What may go wrong in a conversation: one code, one sentence each.

Local mistakes are assertions. Everything here is about what the *other* side sent, or what
we tell it. `replicator.net.link` turns these into `PeerError`, once.
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """Sent in a RESET or GOODBYE frame. Numbers are for ever; meanings never change."""

    OK = 0
    """Nothing is wrong: the sender is merely done."""
    MALFORMED = 1
    """The bytes do not parse as what their header says they are."""
    TOO_LARGE = 2
    """A length, a count or a depth is over its named limit."""
    UNEXPECTED = 3
    """A well-formed frame or message that makes no sense in this state."""
    VERSION = 4
    """The two sides share no protocol version."""
    FLOW = 5
    """More was sent than credit had been granted for."""
    BAD_BLOCK = 6
    """A block's body does not have the id that its header claims."""
    NOT_FOUND = 7
    """The thing asked for is not here, or the asker may not know whether it is."""
    FORBIDDEN = 8
    """The asker may not do this."""
    BUSY = 9
    """Not now; the same request may succeed later."""
    PAIR_CODE_WRONG = 10
    """The pairing code's secret is wrong."""
    PAIR_CODE_USED = 11
    """The pairing code was used before, by another site."""
    PAIR_CODE_EXPIRED = 12
    """The pairing code's minutes are over."""
    PAIR_CODE_DEAD = 13
    """Too many wrong tries: this pairing code will not be accepted any more."""
    STOPPING = 14
    """The node is shutting down."""
    STORAGE = 15
    """The other side could not store or read what was needed."""
    CANCELLED = 16
    """The one who asked no longer wants the answer."""


class ProtocolError(Exception):
    """The peer broke the protocol; the connection cannot go on."""

    code = ErrorCode.MALFORMED

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Malformed(ProtocolError):
    """The bytes do not parse."""


class TooLarge(ProtocolError):
    """A bound in `protocol.limits` was exceeded."""

    code = ErrorCode.TOO_LARGE


class Unexpected(ProtocolError):
    """Right bytes, wrong moment."""

    code = ErrorCode.UNEXPECTED


class VersionMismatch(ProtocolError):
    """No version in common."""

    code = ErrorCode.VERSION


class CreditExceeded(ProtocolError):
    """The peer sent more than it was granted."""

    code = ErrorCode.FLOW


class BadBlock(ProtocolError):
    """A sealed block that does not hold what its header says."""

    code = ErrorCode.BAD_BLOCK
