"""Watching the wire with an accounting of its own: is a bandwidth rule exceeded over any window?

For a rate r and an allowance b, a flow stays below r * w + b in every window w if and only if
a bucket that leaks r never holds more than b. So one number a site is enough.
"""

from dataclasses import dataclass

from protocol.errors import ProtocolError
from protocol.wire.frames import FRAME_HEADER_BYTES, FrameKind, Lane, parse_frame_header

_BULK = frozenset((Lane.RESTORE, Lane.SYNC, Lane.SEED))
_FRAMES = frozenset((FrameKind.OPEN, FrameKind.MESSAGE, FrameKind.BLOCKS))
BURST_S = 0.25
"""What the product's buckets allow at once; more would show up here."""


_SLACK_BYTES = 64
"""Headers, and what rounding leaves of a token."""


@dataclass(slots=True)
class PaceWatch:
    """The bulk that passes one site in one direction."""

    rate_bytes: int
    senders: int = 1
    """How many may each be in the middle of a burst, and of a frame that was begun when there was room."""
    _level: float = 0.0
    _at: float = 0.0

    def set_rate(self, rate_bytes: int) -> None:
        # What was sent under another rule is that rule's business.
        self.rate_bytes, self._level = rate_bytes, 0.0

    def note(self, data: bytes, now: float) -> float:
        """By how many bytes the rule was exceeded when this was sent; 0 if it is kept.

        A bucket lets a frame through when it is not empty, whatever the frame's size: so what counts is how full ours
        was *before* it.
        """
        if not self.rate_bytes or not is_bulk(data):
            return 0.0
        self._level = max(0.0, self._level - (now - self._at) * self.rate_bytes)
        self._at = now
        excess = self._level - self.senders * (self.rate_bytes * BURST_S + _SLACK_BYTES)
        self._level += len(data)
        return max(0.0, excess)


def is_bulk(data: bytes) -> bool:
    if len(data) < FRAME_HEADER_BYTES:
        return False
    try:
        header = parse_frame_header(data[:FRAME_HEADER_BYTES])
    except ProtocolError:
        return False
    return header.kind in _FRAMES and header.lane in _BULK
