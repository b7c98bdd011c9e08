"""Folders inside the target, opened one part at a time and never through a link.

Whoever may write to the target could swap a folder for a link while we restore. Each part is
opened relative to the folder above it, which we hold, so such a link is refused and not followed.
"""

import os
from typing import Final

from replicator.catalog.manifest.entries import SEPARATOR

FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def split(key: bytes) -> tuple[list[bytes], bytes]:
    """The folders that lead to a path, and its name."""
    *parents, name = key.split(SEPARATOR)
    return parents, name


def open_folder(root_handle: int, parts: list[bytes]) -> int:
    """A new descriptor of a folder below the root. Raises `OSError`."""
    handle = os.dup(root_handle)
    for part in parts:
        above = handle
        try:
            handle = os.open(part, FOLDER, dir_fd=above)
        finally:
            os.close(above)
    return handle


def open_or_make(above: int, name: bytes, *, overwrite: bool) -> int:
    """A descriptor of the folder `name`, which is made if it is not there. Raises `OSError`."""
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:
        if overwrite and not _is_folder(above, name):
            os.unlink(name, dir_fd=above)
            os.mkdir(name, 0o700, dir_fd=above)
    try:
        return os.open(name, FOLDER, dir_fd=above)
    except PermissionError:
        # One that an earlier attempt has finished may forbid even us to enter. It gets its mode back at the end.
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
        return os.open(name, FOLDER, dir_fd=above)


def _is_folder(above: int, name: bytes) -> bool:
    try:
        os.close(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above))
    except NotADirectoryError:
        return False
    return True
