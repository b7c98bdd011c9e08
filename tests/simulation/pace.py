"""Watching the wire with an accounting of its own: is a bandwidth rule exceeded over any window?

For a rate r and an allowance b, a flow stays below r * w + b in every window w if and only if
a bucket that leaks r never holds more than b. So one number a site is enough.
"""

from dataclasses import dataclass

from protocol.errors import ProtocolError
from protocol.limits import BLOCKS_FRAME_MAX, CONTROL_FRAME_MAX
from protocol.wire.frames import FRAME_HEADER_BYTES, FrameKind, Lane, parse_frame_header

_BULK = frozenset((Lane.RESTORE, Lane.SYNC, Lane.SEED))
_FRAMES = frozenset((FrameKind.OPEN, FrameKind.MESSAGE, FrameKind.BLOCKS))
BURST_S = 0.25
"""What the product's buckets allow at once; more would show up here."""


@dataclass(slots=True)
class PaceWatch:
    """The bulk that one site sends."""

    rate_bytes: int
    _level: float = 0.0
    _at: float = 0.0

    def set_rate(self, rate_bytes: int) -> None:
        # What was sent under another rule is that rule's business.
        self.rate_bytes, self._level = rate_bytes, 0.0

    def note(self, data: bytes, now: float) -> float:
        """By how many bytes the rule is exceeded now; 0 if it is kept."""
        if not self.rate_bytes or len(data) < FRAME_HEADER_BYTES:
            return 0.0
        try:
            header = parse_frame_header(data[:FRAME_HEADER_BYTES])
        except ProtocolError:
            return 0.0
        if header.kind not in _FRAMES or header.lane not in _BULK:
            return 0.0
        self._level = max(0.0, self._level - (now - self._at) * self.rate_bytes) + len(data)
        self._at = now
        largest = min(BLOCKS_FRAME_MAX, max(CONTROL_FRAME_MAX, len(data)))
        return max(0.0, self._level - self.rate_bytes * BURST_S - largest)
