"""Looking into a snapshot without restoring it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from protocol.ids import BlockId
from replicator.catalog.manifest.entries import SEPARATOR, Entry, check_key, decode_entry, key_path, path_key
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import Cursor, entries
from replicator.restore.selection import entry_at
from replicator.store.ports import BlockReader


@dataclass(frozen=True, slots=True)
class Listed:
    """A path in a snapshot, relative to the folder that was protected, and what it is."""

    path: bytes
    entry: Entry


async def list_folder(reader: BlockReader, root: BlockId, path: bytes) -> AsyncGenerator[Listed, None]:
    """What lies directly in a folder, by name; a path that is not a folder lists itself. Raises `NotFound`."""
    folder = path_key(path)
    check_key(folder)
    here = await entry_at(reader, root, folder)
    if not here.is_directory:
        yield Listed(key_path(folder), here)
        return
    prefix = folder + SEPARATOR if folder else b""
    start = prefix or b"\x01"
    cursor = Cursor(reader, root, Shape.NAMES)
    while (following := cursor.peek()) is not None:
        last_key = cursor.last_key()
        if last_key is not None and last_key < start:
            cursor.skip()
        elif not isinstance(following, tuple):
            await cursor.open()
        else:
            cursor.skip()
            key, packed = following
            if not key.startswith(prefix):
                return
            entry = decode_entry(packed)
            yield Listed(key_path(key), entry)
            # All that is below sorts before this: whole subtrees of it are stepped over unread.
            start = key + b"\x01"


async def find(reader: BlockReader, root: BlockId, pattern: bytes) -> AsyncGenerator[Listed, None]:
    """Every path whose name matches, or, for a pattern with a `/`, whose whole path does. `*` matches any bytes."""
    whole = b"/" in pattern
    wanted = pattern.strip(b"/")
    async for key, packed in entries(reader, root, Shape.NAMES):
        shown = key_path(key) if whole else key.rpartition(SEPARATOR)[2]
        if key and fnmatchcase(shown, wanted):
            yield Listed(key_path(key), decode_entry(packed))
