"""What a map needs, read from its nodes where they are not all here: level by level, beside a map that is.

A difference is told by whoever offers a snapshot. If that site is gone, its words are too, but the root is
signed and the map is made of blocks, and blocks come from anybody. So both maps are gone down at the same pace: nodes
that both have at a level are equal with all that is below them, since where a node ends depends on
keys alone; only the others are fetched and opened. One round trip a level, however many nodes.

The nodes come as blocks, so each is what its parent says, up to the signed root. What a hash does not prove is
that the way down ends: levels count down, and no level may hold more nodes than the snapshot has entries.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from protocol.ids import BlockId
from replicator.catalog.manifest.editor import NodeReader
from replicator.catalog.manifest.nodes import Node, Shape, decode_node
from replicator.core.errors import ManifestDamaged

_READ_BATCH: Final = 64

Bring = Callable[[Sequence[BlockId]], Awaitable[None]]
"""Have these blocks here. Raises if nobody has them."""


async def descend(
    reader: NodeReader,
    bring: Bring,
    *,
    base: BlockId | None,
    base_reader: NodeReader,
    root: BlockId,
    shape: Shape,
    entries_max: int,
) -> AsyncIterator[bytes]:
    """The values of all entries below `root` whose leaf is not one of `base`, a map that is whole here.

    What only the base has is read by `base_reader`, so that it is known whose nodes cannot be read.

    Raises what `bring` raises, and `ManifestDamaged`.
    """
    if root == base:
        return
    await bring([root])
    new, old = {root}, set() if base is None else {base}
    level = await _level_of(reader, root)
    old_level = -1 if base is None else await _level_of(base_reader, base)
    while new:
        if old_level > level:
            old = await _below(base_reader, old, old_level, shape)
            old_level -= 1
            continue
        if old_level == level:
            new, old = new - old, old - new
        if len(new) > max(entries_max, 1):
            raise ManifestDamaged("A map has more nodes on one level than its snapshot has entries.")
        # In an order of its own, here and below: the same again another time.
        await bring(sorted(new))
        if level == 0:
            async for node in _nodes(reader, new, level, shape):
                for value in node.values:
                    yield value
            return
        new = await _below(reader, new, level, shape)
        if old_level == level:
            old = await _below(base_reader, old, level, shape)
            old_level -= 1
        level -= 1


async def _level_of(reader: NodeReader, root: BlockId) -> int:
    return decode_node((await reader.read([root]))[root]).level


async def _below(reader: NodeReader, ids: set[BlockId], level: int, shape: Shape) -> set[BlockId]:
    return {BlockId(value) async for node in _nodes(reader, ids, level, shape) for value in node.values}


async def _nodes(reader: NodeReader, ids: set[BlockId], level: int, shape: Shape) -> AsyncIterator[Node]:
    todo = sorted(ids)
    for at in range(0, len(todo), _READ_BATCH):
        for block, body in (await reader.read(todo[at : at + _READ_BATCH])).items():
            node = decode_node(body)
            if node.shape is not shape or node.level != level:
                raise ManifestDamaged(f"Node {block.hex()} is not the {shape.name} node that its parent says.")
            yield node


__all__ = ["Bring", "descend"]
