"""Reading a snapshot into memory, for programs that want bytes and not files.

Everything comes through a `BlockReader`, so it is proven, and what is broken here is healed from
a peer while the caller waits. The whole content is in memory at the end: for small volumes.
"""

import stat
from contextlib import aclosing

from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK, BlockId
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.entries import Entry, key_path
from replicator.catalog.manifest.nodes import Shape, key_number
from replicator.catalog.manifest.walk import entries
from replicator.core.errors import ManifestDamaged
from replicator.restore.selection import pieces_of, selected
from replicator.store.ports import BlockReader

_BATCH = 64


async def read_tree(
    reader: BlockReader, root: BlockId, *, only: bytes | None = None
) -> dict[bytes, tuple[Entry, bytes]]:
    """Every path of a tree with its entry and, for a regular file, its content.

    Raises `BlockMissing`, `ManifestDamaged`, `NotFound` if `only` is not in the snapshot.
    """
    found: dict[bytes, tuple[Entry, bytes]] = {}
    async with aclosing(selected(reader, root, only=only)) as paths:
        async for key, entry in paths:
            content = await _content(reader, entry) if stat.S_ISREG(entry.mode) and not entry.is_hard_link else b""
            found[key_path(key)] = (entry, content)
    return found


async def _content(reader: BlockReader, entry: Entry) -> bytes:
    parts: list[Buffer] = []
    waiting: list[tuple[int, BlockId]] = []
    async with aclosing(pieces_of(reader, entry)) as pieces:
        async for piece in pieces:
            waiting.append(piece)
            if len(waiting) == _BATCH:
                parts += await _bodies(reader, waiting)
                waiting = []
    parts += await _bodies(reader, waiting)
    content = b"".join(parts)
    if len(content) != entry.size:
        raise ManifestDamaged(f"A file of {entry.size} bytes has pieces of {len(content)}.")
    return content


async def _bodies(reader: BlockReader, pieces: list[tuple[int, BlockId]]) -> list[Buffer]:
    wanted = list(dict.fromkeys(block for _, block in pieces if block != ZERO_BLOCK))
    bodies = await reader.read(wanted) if wanted else {}
    return [bytes(length) if block == ZERO_BLOCK else bodies[block] for length, block in pieces]


async def read_image(reader: BlockReader, root: BlockId, *, size_bytes: int, block_bytes: int) -> bytes:
    """An image with its zeros. Raises `BlockMissing`, `ManifestDamaged`."""
    content = bytearray(size_bytes)
    async for key, value in entries(reader, root, Shape.NUMBERS):
        at = key_number(key) * block_bytes
        block = BlockId(value[:BLOCK_ID_BYTES])
        body = (await reader.read([block]))[block]
        if at + len(body) > size_bytes:
            raise ManifestDamaged("An image's block lies beyond its end.")
        content[at : at + len(body)] = body
    return bytes(content)
