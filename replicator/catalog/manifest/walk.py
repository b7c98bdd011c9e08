"""Reading maps: all entries, one entry, the difference of two, and every block that one needs.

All of it goes node by node through a reader that may heal what is broken, and asks for
neighbouring nodes in batches. Equal subtrees are recognised by their ids and never opened.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice

from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK, BlockId
from protocol.wire.hashing import Kind
from replicator.catalog.manifest.editor import NodeReader
from replicator.catalog.manifest.entries import decode_entry
from replicator.catalog.manifest.nodes import Node, Shape, decode_node
from replicator.core.errors import ManifestDamaged

_AHEAD = 16
"""Nodes asked for at once: at some 8 KiB a node this is one disk read, and little memory."""


@dataclass(slots=True)
class _Place:
    node: Node
    at: int = 0


@dataclass(frozen=True, slots=True)
class _Subtree:
    level: int
    node_id: BlockId


class Cursor:
    """Goes through a map in key order, and can step over whole subtrees unread."""

    def __init__(self, reader: NodeReader, root: BlockId, shape: Shape) -> None:
        self._reader = reader
        self._shape = shape
        self._root: BlockId | None = root
        self._stack: list[_Place] = []
        self._ahead: dict[int | None, dict[BlockId, Node]] = {}
        """What was read before its turn, by level: below each of them others are opened first."""
        self.nodes_read = 0

    def peek(self) -> _Subtree | tuple[bytes, bytes] | None:
        """What comes next: a subtree that has not been opened, an entry, or None at the end."""
        if self._root is not None:
            return _Subtree(99, self._root)
        while self._stack:
            top = self._stack[-1]
            if top.at < len(top.node.keys):
                key, value = top.node.keys[top.at], top.node.values[top.at]
                return (key, value) if top.node.level == 0 else _Subtree(top.node.level - 1, BlockId(value))
            self._stack.pop()
        return None

    def last_key(self) -> bytes | None:
        """The last key of the subtree or entry that `peek` shows; None for the unopened root."""
        if self._root is not None or not self._stack:
            return None
        top = self._stack[-1]
        return top.node.keys[top.at]

    def skip(self) -> None:
        """Step over what `peek` shows."""
        if self._root is not None:
            self._root = None
        else:
            self._stack[-1].at += 1

    def siblings(self) -> frozenset[bytes]:
        """The subtrees beside, before and after the one that `peek` shows, and itself."""
        return frozenset(self._stack[-1].node.values) if self._root is None and self._stack else frozenset()

    async def open(self, *, unwanted: Set[bytes] = frozenset()) -> None:
        """Go into the subtree that `peek` shows. Of those after it, the `unwanted` are not read ahead."""
        if self._root is not None:
            node = await self._load([self._root], None)
            self._root = None
            self._stack.append(_Place(node))
            return
        top = self._stack[-1]
        first, *others = top.node.values[top.at :]
        wanted = [BlockId(first), *islice((BlockId(one) for one in others if one not in unwanted), _AHEAD - 1)]
        node = await self._load(wanted, top.node.level - 1)
        before = top.node.keys[top.at - 1] if top.at else None
        if node.keys[-1] != top.node.keys[top.at] or (before is not None and node.keys[0] <= before):
            # Order across nodes is what `get` and `diff` rest on; a hash does not prove it.
            raise ManifestDamaged(f"Node {wanted[0].hex()} does not hold the keys that its parent says.")
        top.at += 1
        self._stack.append(_Place(node))

    async def _load(self, ids: Sequence[BlockId], level: int | None) -> Node:
        """The first of `ids`; the others are read with it and kept for when their turn comes."""
        ahead = self._ahead.setdefault(level, {})
        found = ahead.pop(ids[0], None)
        if found is None:
            ahead.clear()
            bodies = await self._reader.read(ids)
            for block, body in bodies.items():
                ahead[block] = decode_node(body)
            self.nodes_read += len(bodies)
            found = ahead.pop(ids[0])
        if found.shape is not self._shape or (level is not None and (found.level != level or not found.keys)):
            raise ManifestDamaged(f"Node {ids[0].hex()} is not the {self._shape.name} node that its parent says.")
        return found


async def entries(
    reader: NodeReader, root: BlockId, shape: Shape, *, start: bytes = b""
) -> AsyncIterator[tuple[bytes, bytes]]:
    """All entries from `start` on, in key order."""
    cursor = Cursor(reader, root, shape)
    while (here := cursor.peek()) is not None:
        if isinstance(here, _Subtree):
            last = cursor.last_key()
            if last is not None and last < start:
                cursor.skip()
            else:
                await cursor.open()
            continue
        cursor.skip()
        if here[0] >= start:
            yield here


async def get(reader: NodeReader, root: BlockId, shape: Shape, key: bytes) -> bytes | None:
    """The value of one key; reads one node a level."""
    async for found, value in entries(reader, root, shape, start=key):
        return value if found == key else None
    return None


async def diff(
    reader: NodeReader, old: BlockId, new: BlockId, shape: Shape
) -> AsyncIterator[tuple[bytes, bytes | None]]:
    """What changed from `old` to `new`, in key order: (key, new value), or (key, None) for one that is gone."""
    if old == new:
        return
    before, after = Cursor(reader, old, shape), Cursor(reader, new, shape)
    while True:
        a, b = before.peek(), after.peek()
        if a is None and b is None:
            return
        if isinstance(a, _Subtree) or isinstance(b, _Subtree):
            await _open_or_skip(before, a, after, b)
            continue
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None
            before.skip()
            yield a[0], None
        elif a is None or b[0] < a[0]:
            after.skip()
            yield b
        else:
            before.skip()
            after.skip()
            if a[1] != b[1]:
                yield b


async def _open_or_skip(
    before: Cursor,
    a: _Subtree | tuple[bytes, bytes] | None,
    after: Cursor,
    b: _Subtree | tuple[bytes, bytes] | None,
) -> None:
    if isinstance(a, _Subtree) and isinstance(b, _Subtree):
        if a.node_id == b.node_id:
            before.skip()
            after.skip()
            return
        if a.level > b.level:
            await before.open()
        elif a.level < b.level:
            await after.open()
        else:
            # What both have is never opened.
            old, new = before.siblings(), after.siblings()
            await before.open(unwanted=new)
            await after.open(unwanted=old)
    elif isinstance(a, _Subtree):
        await before.open()
    else:
        await after.open()


class Layer(set[BlockId]):
    """Nodes that were met below one root, on top of those met before.

    A walk that fails has met nodes whose children it never saw: its layer is thrown away, and the next walk that
    comes by opens them again. One that ends is merged into `below`.
    """

    def __init__(self, below: set[BlockId]) -> None:
        super().__init__()
        self._below = below

    def __contains__(self, block: object) -> bool:
        return super().__contains__(block) or block in self._below

    def merge(self) -> None:
        self._below |= self


async def closure(
    reader: NodeReader, root: BlockId, shape: Shape, *, seen: set[BlockId] | None = None
) -> AsyncGenerator[tuple[Kind, bytes], None]:
    """Every block that the map under `root` needs, as packed runs of ids; nodes in `seen` are stepped over, with all
    that is below them, and the nodes met are added to it. An id may come more than once.
    """
    seen = set() if seen is None else seen
    if root in seen:
        return
    seen.add(root)
    yield Kind.NODE, root
    todo: list[tuple[BlockId, int | None]] = [(root, None)]
    while todo:
        levels = dict(todo[-_AHEAD:])
        del todo[-_AHEAD:]
        for block, body in (await reader.read(list(levels))).items():
            node = decode_node(body)
            if node.shape is not shape or levels[block] not in (None, node.level):
                raise ManifestDamaged(f"Node {block.hex()} is not the {shape.name} node that its parent says.")
            if node.level:
                children = [BlockId(value) for value in node.values if value not in seen]
                seen.update(children)
                todo += [(child, node.level - 1) for child in children]
                yield Kind.NODE, b"".join(children)
                continue
            async for run in _leaf_closure(reader, node, seen):
                yield run


async def _leaf_closure(reader: NodeReader, leaf: Node, seen: set[BlockId]) -> AsyncGenerator[tuple[Kind, bytes], None]:
    if leaf.shape is not Shape.NAMES:
        ids = (value[:BLOCK_ID_BYTES] for value in leaf.values)
        yield Kind.DATA, b"".join(block for block in ids if block != ZERO_BLOCK)
        return
    parts: list[bytes] = []
    for value in leaf.values:
        entry = decode_entry(value)
        parts += [block for block in entry.block_ids() if block != ZERO_BLOCK]
        if entry.pieces_root:
            async for run in closure(reader, BlockId(entry.pieces_root), Shape.PIECES, seen=seen):
                yield run
    yield Kind.DATA, b"".join(parts)
