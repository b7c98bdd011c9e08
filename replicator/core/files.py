"""Making small files durable: the only portable order is write, fsync, rename, fsync of the folder."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put `content` at `path` whole or not at all, and on the disk before returning."""
    beside = path.with_name(path.name + ".new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
    except BaseException:
        os.close(handle)
        raise
    put_in_place(handle, beside, path)


def put_in_place(handle: int, beside: Path, path: Path) -> None:
    """Flush and close what was written `beside`, and let it take the place of `path`."""
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(beside, path)
    sync_directory(path.parent)
