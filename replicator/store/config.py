"""Settings of a store."""

from dataclasses import dataclass

from protocol.limits import MIB
from replicator.core.direct import LONG_RUN_BYTES
from replicator.store.leases import LEASE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """How a store uses its disk."""

    segment_bytes_max: int = 64 * MIB
    """A segment is closed when it has grown past this. Larger means fewer files, smaller means that
    emptying a half-dead one copies less."""
    past_cache: bool = True
    """Whether long runs are read and written past the page cache, where the file system can do that."""
    long_run_bytes: int = LONG_RUN_BYTES
    """What is a long one."""
    reserve_bytes_max: int = 256 * MIB
    reserve_share: float = 0.02
    """Space that writes must leave free: the smaller of the two. Deletion and recovery live on it."""
    grace_s: float = 24 * 3600.0
    """How long a block that nothing speaks for stays readable, and `gc undo` possible."""
    dead_share_min: float = 0.5
    """A segment is emptied and removed once this much of it is dead."""
    ledger_fresh_rows_max: int = 196_608
    """Rows of the ledger that wait in memory (some 50 MiB) before they become a run; after a crash as many are
    read back from its log, in half a second."""
    ledger_part_rows_max: int = 4 * MIB
    """Rows in one part of the ledger's base: what a merge rewrites, and needs beside it, at once (192 MiB)."""
    ledger_runs_max: int = 4
    """Runs of one level before they are merged into one of the next: fewer make look-ups quicker, more make each row
    be written again less often."""
    rewrite_bytes_max: int = 4096 * MIB
    """What one collection copies out of mostly dead segments at most; the next one goes on. At four runs a day
    this keeps up with 16 GiB of deletion a day, and a run that meets a year of it does not take the disk for hours."""
    rewrite_rate_bytes: int = 64 * MIB
    """At most so many bytes a second are moved while others want the disk too: a third of what a hard disk does."""
    bulk_share_max: float = 0.2
    """A run that would condemn more of the store than this is held until somebody confirms it: nobody prunes
    a fifth of everything in six hours by rule, but a catalogue that lost rows, or a thief, does."""
    lease_s: float = LEASE_S
    """How long a writer may be silent."""
