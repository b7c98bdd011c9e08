"""What already stands where something is to be restored.

Used to carry on after a restore that was killed, and to say what a restore would do. A file
counts as the same if its size and its time to the nanosecond are: a restore gives a file its
time last, so a half-written one never passes.
"""

import os
import stat
from collections.abc import Sequence
from enum import Enum

from replicator.catalog.manifest.entries import Entry
from replicator.restore.folders import open_folder, split


class Standing(Enum):
    """How a path in the target compares to its entry."""

    ABSENT = "absent"
    SAME = "same"
    DIFFERENT = "different"


def look(root_handle: int, paths: Sequence[tuple[bytes, Entry]]) -> list[Standing]:
    """Compare each path with its entry. Blocking; follows no link."""
    found: list[Standing] = []
    parents: list[bytes] | None = None
    folder: int | None = None
    try:
        for key, entry in paths:
            if not key:
                found.append(Standing.SAME)
                continue
            above, name = split(key)
            if above != parents:
                if folder is not None:
                    os.close(folder)
                parents, folder = above, None
                folder = _open(root_handle, above)
            found.append(Standing.ABSENT if folder is None else _compare(root_handle, folder, name, entry))
    finally:
        if folder is not None:
            os.close(folder)
    return found


def _open(root_handle: int, parts: list[bytes]) -> int | None:
    try:
        return open_folder(root_handle, parts)
    except OSError:
        return None


def _compare(root_handle: int, folder: int, name: bytes, entry: Entry) -> Standing:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return Standing.ABSENT
    is_same = stat.S_IFMT(status.st_mode) == stat.S_IFMT(entry.mode)
    if entry.is_hard_link:
        is_same = is_same and _is_link_of(root_handle, entry.target, status)
    elif stat.S_ISREG(entry.mode):
        is_same = is_same and (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)
    elif stat.S_ISLNK(entry.mode):
        is_same = is_same and os.readlink(name, dir_fd=folder) == entry.target
    elif stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        is_same = is_same and status.st_rdev == entry.rdev
    return Standing.SAME if is_same else Standing.DIFFERENT


def _is_link_of(root_handle: int, first_key: bytes, status: os.stat_result) -> bool:
    parents, name = split(first_key)
    folder = _open(root_handle, parents)
    if folder is None:
        return False
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), status)
    except OSError:
        return False
    finally:
        os.close(folder)
