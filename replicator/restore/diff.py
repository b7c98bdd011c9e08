"""What a restore would do, without doing it."""

import os
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol.ids import BlockId
from replicator.catalog.manifest.entries import Entry, key_path
from replicator.core.errors import SourceError
from replicator.core.ports import Offload
from replicator.restore.flow import BATCH_ENTRIES
from replicator.restore.selection import selected
from replicator.restore.standing import Standing, look
from replicator.store.ports import BlockReader

LISTED_MAX: Final = 10_000
"""Paths that are named; beyond, they are only counted."""


@dataclass(slots=True)
class Comparison:
    """A target held against a snapshot. Judged as a restore judges: by type, size, time and target of links."""

    created: int = 0
    changed: int = 0
    same: int = 0
    bytes_created: int = 0
    bytes_changed: int = 0
    created_paths: list[bytes] = field(default_factory=list)
    changed_paths: list[bytes] = field(default_factory=list)

    def count(self, key: bytes, entry: Entry, standing: Standing) -> None:
        match standing:
            case Standing.SAME:
                self.same += 1
            case Standing.ABSENT:
                self.created += 1
                self.bytes_created += entry.size
                _list(self.created_paths, key)
            case Standing.DIFFERENT:
                self.changed += 1
                self.bytes_changed += entry.size
                _list(self.changed_paths, key)


def _list(paths: list[bytes], key: bytes) -> None:
    if len(paths) < LISTED_MAX:
        paths.append(key_path(key))


async def compare_tree(
    reader: BlockReader, root: BlockId, target: Path, *, only: bytes | None, offload: Offload
) -> Comparison:
    """What a restore to `target` would create, change and leave. Reads the manifest, and no file's content.

    Raises `NotFound` if `only` is not in the snapshot, `SourceError` if the target cannot be read.
    """
    handle = await offload.run(_open, target)
    comparison = Comparison()
    waiting: list[tuple[bytes, Entry]] = []

    async def judge() -> None:
        states = [Standing.ABSENT] * len(waiting) if handle is None else await offload.run(look, handle, waiting)
        for (key, entry), state in zip(waiting, states, strict=True):
            comparison.count(key, entry, state)
        waiting.clear()

    try:
        async with aclosing(selected(reader, root, only=only)) as paths:
            async for key, entry in paths:
                waiting.append((key, entry))
                if len(waiting) == BATCH_ENTRIES:
                    await judge()
        await judge()
    finally:
        if handle is not None:
            os.close(handle)
    return comparison


def _open(target: Path) -> int | None:
    """The target, or None if it is not there yet."""
    try:
        return os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{target} cannot be read: {error.strerror}.", hint="Name a folder.") from error
