"""Settings of a store."""

from dataclasses import dataclass

from protocol.limits import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """How a store uses its disk."""

    segment_bytes_max: int = 64 * MIB
    """A segment is closed when it has grown past this. Larger means fewer files, smaller means that
    emptying a half-dead one copies less."""
    reserve_bytes_max: int = 256 * MIB
    reserve_share: float = 0.02
    """Space that writes must leave free: the smaller of the two. Deletion and recovery live on it."""
    grace_s: float = 24 * 3600.0
    """How long a block that nothing speaks for stays readable, and `gc undo` possible."""
    dead_share_min: float = 0.5
    """A segment is emptied and removed once this much of it is dead."""
