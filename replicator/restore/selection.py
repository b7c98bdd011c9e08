"""The entries of a snapshot that somebody asked for, checked, in key order."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.manifest.entries import SEPARATOR, Entry, check_key, decode_entry, key_path, path_key
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import entries, get
from replicator.core.errors import NotFound
from replicator.store.ports import BlockReader


async def selected(
    reader: BlockReader, root: BlockId, *, only: bytes | None
) -> AsyncGenerator[tuple[bytes, Entry], None]:
    """All entries, or those at and below the path `only`, after the folders that lead there.

    Raises `NotFound` if there is no such path, `ManifestDamaged` at a key that leads outside.
    """
    wanted = path_key(only or b"")
    check_key(wanted)
    if not wanted:
        async for key, packed in entries(reader, root, Shape.NAMES):
            check_key(key)
            yield key, decode_entry(packed)
        return
    parts = wanted.split(SEPARATOR)
    for depth in range(1, len(parts)):
        key = SEPARATOR.join(parts[:depth])
        yield key, await entry_at(reader, root, key)
    found = False
    async with aclosing(_from(reader, root, wanted)) as rest:
        async for key, packed in rest:
            if key != wanted and not key.startswith(wanted + SEPARATOR):
                break
            found = True
            check_key(key)
            yield key, decode_entry(packed)
    if not found:
        raise _not_found(wanted)


async def _from(reader: BlockReader, root: BlockId, start: bytes) -> AsyncGenerator[tuple[bytes, bytes], None]:
    async for key, packed in entries(reader, root, Shape.NAMES, start=start):
        yield key, packed


async def entry_at(reader: BlockReader, root: BlockId, key: bytes) -> Entry:
    """The entry of one key. Raises `NotFound`."""
    packed = await get(reader, root, Shape.NAMES, key)
    if packed is None:
        raise _not_found(key)
    return decode_entry(packed)


def is_inside(key: bytes, wanted: bytes) -> bool:
    """Whether `key` is `wanted` or below it."""
    return not wanted or key == wanted or key.startswith(wanted + SEPARATOR)


def _not_found(key: bytes) -> NotFound:
    shown = key_path(key).decode(errors="backslashreplace")
    return NotFound(f"The snapshot has no path {shown!r}.", hint="`replicator snapshot show` lists what is there.")


async def pieces_of(reader: BlockReader, entry: Entry) -> AsyncGenerator[tuple[int, BlockId], None]:
    """Length and block of each piece of a regular file, in order."""
    if not entry.pieces_root:
        for length, block in zip(entry.lengths, entry.block_ids(), strict=True):
            yield length, block
        return
    async for _, value in entries(reader, BlockId(entry.pieces_root), Shape.PIECES):
        yield int.from_bytes(value[BLOCK_ID_BYTES:], "big"), BlockId(value[:BLOCK_ID_BYTES])
