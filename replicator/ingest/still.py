"""Whether a file held still while it was looked at.

Times are the only witness that the system offers. They tick more slowly than a disk writes, so
a file that was changed a moment before a look may be changed again without any of them
moving (git calls such a file racy). What was changed so shortly before is not trusted.
"""

import os
import struct
from typing import Final, NamedTuple

RACY_NS: Final = 2_000_000_000
"""The coarsest clock among the usual file systems: FAT keeps times in steps of two seconds."""


class Stamp(NamedTuple):
    """What changes when a file is written, replaced, or given other attributes."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def newest_ns(self) -> int:
        return max(self.mtime_ns, self.ctime_ns)


def stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_PACKED: Final = struct.Struct("<QQqqq")
PACKED_STAMP_BYTES: Final = _PACKED.size


def packed_stamp(status: os.stat_result) -> bytes:
    """The same as bytes: for comparing many at once."""
    return _PACKED.pack(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_racy(status: os.stat_result, before_ns: int) -> bool:
    """Whether something was touched so late that it may be touched again without a trace."""
    return status.st_mtime_ns >= before_ns or status.st_ctime_ns >= before_ns
