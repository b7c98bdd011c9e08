"""What can be wrong with a ledger's own files."""

import errno

from replicator.core.errors import ReplicatorError, StoreError, StoreFull, StoreReadOnly


class LedgerDamaged(ReplicatorError):
    """A file of the ledger is not what was written. Never reaches a user: the ledger is rebuilt from the segments."""

    code = "ledger_damaged"


def failure(what: str, error: OSError) -> StoreError:
    """The error of the house for one of the system's. What a disk has refused once is not tried again."""
    told = f"{what} failed: {error.strerror}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(told, hint="Free space on that disk.")
    if error.errno == errno.EIO:
        return StoreReadOnly(told, hint="Check the disk, then restart the node.")
    return StoreError(told)
