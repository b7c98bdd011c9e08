"""Bringing data into the page cache before somebody is timed on it.

Kernels of virtual machines give pages back as they see fit (`kdamond`), so what was read a minute ago may be on the
disk only: then the first of several would pay for it, and the others not.
"""

from pathlib import Path


def warm(source: Path) -> None:
    """Read a file, or all that are below a folder, once."""
    buffer = bytearray(1024 * 1024)
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file() and not path.is_symlink():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
