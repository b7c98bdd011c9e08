"""Sources on this machine's own file systems."""

import os
import re
import stat
from pathlib import Path

from replicator.catalog.model import Volume
from replicator.catalog.records import KINDS
from replicator.core.errors import SourceError
from replicator.ingest.sources import ImageSource, Source, TreeSource


class FileSources:
    """`Sources` of a node that runs on a machine with disks."""

    def __init__(self, *, own_folder: Path) -> None:
        self._own_folder = own_folder

    def kind_at(self, path: Path) -> str:
        """Raises `SourceError` for what is not there, and for what has no end: a pipe, a socket, a terminal."""
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            hint = "Give a path on the node's machine."
            raise SourceError(f"{path} cannot be protected: {why}.", hint=hint) from error
        if stat.S_ISDIR(mode):
            return "tree"
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            return "image"
        raise SourceError(
            f"{path} is neither a folder, a file nor a block device.", hint="Protect the folder that it is in."
        )

    def open(self, volume: Volume) -> Source:
        """The node's own folder is left out of a tree that contains it: it would grow by being stored."""
        if volume.path is None:
            raise not_ours(volume)
        path = Path(os.fsdecode(volume.path))
        own = self._own_folder.resolve()
        if path.resolve().is_relative_to(own):
            raise SourceError(f"{path} leads into the node's own folder.", hint="Has a link been changed?")
        if volume.kind == "tree":
            inside = own.is_relative_to(path.resolve())
            ours = (f"/{_escaped(own.relative_to(path.resolve()))}/",) if inside else ()
            return TreeSource(path=path, exclude=(*volume.exclude, *ours))
        assert volume.kind == "image" and volume.kind in KINDS
        return ImageSource(path=path)


def not_ours(volume: Volume) -> SourceError:
    return SourceError(
        f"{volume.name} is a copy from site {volume.origin.hex()[:12]}.", hint="Snapshots of it are taken there."
    )


def _escaped(path: Path) -> str:
    """A path as a pattern that matches just itself."""
    return re.sub(r"([*?\[\]\\])", r"[\1]", str(path))
