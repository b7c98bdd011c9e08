"""Room set aside for a full disk: a file that is given up so that deleting can begin.

Letting go of a snapshot writes a little before it frees a lot: a row in the catalogue, sentences in the ledger, the
table of jobs. On a disk without a free byte that is impossible (restic#1140, #1153, #3289: the full repository that
cannot be pruned because pruning needs a lock file). The reserve of the store does not help when another program has
filled the disk.

So a file of allocated, empty space lies in the state folder. It goes when a delete or a collection meets a full disk;
a start on a full disk takes only what it needs of it, because whoever filled the disk will take the rest. It is laid
down again when there is room for it beside the reserve. While it is short, there is an alert.
"""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from replicator.core.errors import StoreFull
from replicator.core.files import sync_directory
from replicator.core.logging import get_logger
from replicator.core.units import format_size

T = TypeVar("T")
BALLAST_BYTES_MAX: Final = 16 << 20
"""Three write-ahead logs of SQLite grow to about 4 MiB each before they are used again, and the largest transaction
of a collection dirties 12 MiB of pages at worst (`store/collect.py`); the others are small by then."""
_SHARE: Final = 32
"""Of a small disk only one part in so many."""
_START_BYTES: Final = 2 << 20
_FULL_BYTES: Final = 1 << 20
"""With less than this free a node does not even start: three logs, their shared memory, two small files."""


class Ballast:
    """The file, of one node. Thread-safe. Of size 0 it is never there and never missed."""

    def __init__(self, path: Path, *, bytes_max: int = BALLAST_BYTES_MAX) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._bytes_max = bytes_max

    @property
    def bytes_wanted(self) -> int:
        room = os.statvfs(self._path.parent)
        return min(self._bytes_max, room.f_blocks * room.f_frsize // _SHARE)

    @property
    def bytes_here(self) -> int:
        try:
            return self._path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    @property
    def is_short(self) -> bool:
        return self.bytes_here < self.bytes_wanted * 9 // 10

    def lay(self, *, keep_free: int) -> bool:
        """Set the room aside, if `keep_free` bytes stay beside it. Returns whether it is there now."""
        with self._lock:
            if not self.is_short:
                return True
            wanted = self.bytes_wanted
            if self._free() - (wanted - self.bytes_here) < keep_free + _FULL_BYTES:
                return False
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(handle, 0, wanted)
                os.fsync(handle)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._path.unlink(missing_ok=True)
                return False
            finally:
                os.close(handle)
            sync_directory(self._path.parent)
            return True

    def give_up(self, why: str) -> bool:
        """Make its room free. Returns whether there was any."""
        with self._lock:
            freed = self.bytes_here
            self._path.unlink(missing_ok=True)
        if freed:
            get_logger().warning("ballast.given_up", bytes=freed, why=why)
        return freed > 0

    def give_some_if_full(self, why: str) -> bool:
        """What a start needs. Returns whether there was anything to give, and a reason to."""
        with self._lock:
            here = self.bytes_here
            if self._free() >= _FULL_BYTES or not here:
                return False
            os.truncate(self._path, max(0, here - _START_BYTES))
        get_logger().warning("ballast.given_up", bytes=min(here, _START_BYTES), why=why)
        return True

    def with_room(self, what: str, do: Callable[[], T]) -> T:
        """Do it; if the disk is too full for that, give up the ballast and do it again. Raises `StoreFull`."""
        try:
            return do()
        except StoreFull as error:
            if not self.give_up(f"{what}: {error.message}"):
                raise
        return do()

    def _free(self) -> int:
        room = os.statvfs(self._path.parent)
        return room.f_bavail * room.f_frsize

    def describe(self) -> str:
        """For an alert: what is missing, and what that means."""
        wanted = format_size(self.bytes_wanted)
        return f"The {wanted} that a full disk would be emptied with have been given up, or could not be set aside yet."


class NoBallast:
    """For a node that lies in memory: there is no disk to be full."""

    bytes_here = 0
    is_short = False

    def lay(self, *, keep_free: int) -> bool:
        del keep_free
        return True

    def give_up(self, why: str) -> bool:
        del why
        return False

    def with_room(self, what: str, do: Callable[[], T]) -> T:
        del what
        return do()

    def describe(self) -> str:
        return ""
