"""What can be protected, and what is told of it afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from protocol.ids import BlockId
from replicator.catalog.model import Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSource:
    """A folder with all that is in it."""

    path: Path
    exclude: tuple[str, ...] = ()
    """Patterns as in `filters`."""
    one_file_system: bool = False
    """Do not enter folders on which something else is mounted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """A disk image in a file, or a block device."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPath:
    """A path that a program hands over, with all that is in it."""

    path: bytes
    """Relative to the tree's root, which is the empty path; folders on the way are made up if they are not given."""
    mode: int
    """Type and permissions, as in `st_mode`."""
    mtime_ns: int = 0
    content: bytes = b""
    """Of a regular file."""
    target: bytes = b""
    """Of a symbolic link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTree:
    """A tree that a program holds in memory. `paths` is called once a snapshot, and not from another thread."""

    paths: Callable[[], Sequence[GivenPath]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenImage:
    """A disk image that a program holds in memory."""

    content: Callable[[], bytes]


Source = TreeSource | ImageSource | GivenTree | GivenImage


class Sources(Protocol):
    """Where volumes' data are: on this machine's disk, or in the memory of the program that runs the node."""

    def kind_at(self, path: Path) -> str:
        """`tree` or `image`. Raises `SourceError` if there is nothing to protect."""
        ...

    def open(self, volume: Volume) -> Source:
        """What a snapshot of the volume reads. Raises `SourceError` for a copy from elsewhere."""
        ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """A path inside the source that is not in the snapshot, or not with everything that it has."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A source, as it is in the store now. All of it is durable."""

    root: BlockId
    size_bytes: int
    """The image's length, or the sum of the files."""
    entries: int
    """Paths of a tree with the root, or the blocks of an image that are not zeros."""
    blocks_new: int
    """Blocks that the store did not have, with the manifest's nodes."""
    bytes_new: int
    """What they take sealed."""
    bytes_read: int
    bytes_unchanged: int
    """Of `size_bytes`, what the store had already, whether it had to be read to know that or not."""
    files_unopened: int = 0
    """Files that the memo vouched for."""
    skipped: tuple[Skipped, ...] = ()
    changed_while_read: tuple[bytes, ...] = ()
    """What would not hold still: it is in the snapshot as it was last read."""


@dataclass(slots=True)
class Tally:
    """Counts while a source is being taken."""

    size_bytes: int = 0
    entries: int = 0
    bytes_read: int = 0
    bytes_data: int = 0
    bytes_unopened: int = 0
    files_unopened: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
