"""What the sites of a mesh protect: folders and images that are values of the test."""

import stat
from collections.abc import Mapping
from pathlib import Path

from replicator.catalog.model import Volume
from replicator.core.errors import SourceError
from replicator.ingest.places import not_ours
from replicator.ingest.sources import GivenImage, GivenPath, GivenTree, Source

Content = Mapping[str, bytes] | bytes | bytearray
"""A folder, as its files by their path; or an image, as its bytes."""
_FILE = stat.S_IFREG | 0o644


class MemorySources(dict[str, Content]):
    """`Sources` from memory: the content of each protected path. Change it as you like between snapshots."""

    def kind_at(self, path: Path) -> str:
        if str(path) not in self:
            raise SourceError(f"{path} cannot be protected: it is not there.", hint="Put it into `sources` first.")
        return "tree" if isinstance(self[str(path)], Mapping) else "image"

    def open(self, volume: Volume) -> Source:
        if volume.path is None:
            raise not_ours(volume)
        path = volume.path.decode(errors="surrogateescape")
        if path not in self:
            raise SourceError(f"{path} cannot be read: it is not there.", hint="Put it into `sources` first.")
        content = self[path]
        if isinstance(content, Mapping):
            tree = content
            return GivenTree(
                paths=lambda: [
                    GivenPath(path=name.encode(errors="surrogateescape"), mode=_FILE, content=bytes(body))
                    for name, body in tree.items()
                ]
            )
        image = content
        return GivenImage(content=lambda: bytes(image))
