"""Building a map, or a new version of one, from changes that arrive in key order.

The editor walks the old map beside the changes. A subtree that no change touches, and that
would be cut at the same places, is taken over as it is: one id, not read, not written. What
is touched is taken apart and cut anew. Memory holds one open node a level.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.nodes import (
    EMPTY_ROOTS,
    LEVEL_MAX,
    Node,
    Shape,
    decode_node,
    encode_node,
    ends_after,
    is_closed_before,
    node_id,
)
from replicator.core.errors import ManifestDamaged

NodeSink = Callable[[BlockId, bytes], None]
"""Takes a new node's id and body; it must be in the store before the root is published."""


class NodeReader(Protocol):
    """Where old nodes come from."""

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]: ...


@dataclass(slots=True)
class _Open:
    keys: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Old:
    """One node of the old map that is being taken apart, and how far."""

    level: int
    keys: list[bytes]
    values: list[bytes]
    at: int = 0


class MapEditor:
    """Turns an old root and ordered changes into a new root.

    editor = MapEditor(Shape.NAMES, sink, reader=reader, base=old_root)
    await editor.expect(keys)        # if you like: reads together what the next changes need
    await editor.put(key, value)     # strictly ascending; None removes
    root = await editor.finish()
    """

    def __init__(self, shape: Shape, sink: NodeSink, *, reader: NodeReader | None, base: BlockId | None) -> None:
        assert base is None or reader is not None, "an old root needs a reader"
        self._shape = shape
        self._sink = sink
        self._reader = reader
        self._base = base
        self._old: list[_Old] = []
        self._opened = base is None
        self._ahead: dict[BlockId, Node] = {}
        """Nodes of the old map that were read for changes which are still to come."""
        self._levels: list[_Open] = [_Open()]
        self._recent: bytes | None = None
        self._last_change: bytes | None = None
        self._last_taken: BlockId | None = None
        self.nodes_written = 0
        self.nodes_reused = 0

    async def expect(self, keys: Sequence[bytes]) -> None:
        """Read the old nodes that changes of these next `keys` open: one read a level, instead of one a node.

        `keys` ascend. They need not all be put, and others may be: each node is then read when it is needed.
        What was read for keys that were expected before is let go.
        """
        self._ahead.clear()
        if self._base is None or not keys:
            return
        await self._open_base()
        wanted: list[tuple[BlockId, int, Sequence[bytes]]] = []
        for old in reversed(self._old):
            upto = bisect_right(keys, old.keys[-1]) if old.keys else 0
            wanted += self._children(old, keys[:upto])
            keys = keys[upto:]
        assert self._reader is not None
        while wanted:
            bodies = await self._reader.read([child for child, _, _ in wanted])
            found = [(decode_node(bodies[child]), child, level, below) for child, level, below in wanted]
            self._ahead |= {child: node for node, child, _, _ in found}
            # One that is not where its parent says is refused when it is opened.
            wanted = [
                one
                for node, _, level, below in found
                if node.level == level
                for one in self._children(_Old(level, node.keys, node.values), below)
            ]

    def _children(self, old: _Old, keys: Sequence[bytes]) -> Iterator[tuple[BlockId, int, Sequence[bytes]]]:
        """The children of an inner node that changes of `keys` open, their level, and the keys of each."""
        at = 0
        while old.level and at < len(keys):
            index = bisect_left(old.keys, keys[at], old.at)
            if index == len(old.keys):
                return
            upto = bisect_right(keys, old.keys[index], at)
            below = [key for key in keys[at:upto] if not self._is_before(old, index, key)]
            if below:
                yield BlockId(old.values[index]), old.level - 1, below
            at = upto  # At least one further, in whatever order a peer has put the keys.

    async def put(self, key: bytes, value: bytes | None) -> None:
        """The next change. Raises `ManifestDamaged` if keys do not ascend: a peer may have sent them."""
        if self._last_change is not None and key <= self._last_change:
            raise ManifestDamaged("Changes are out of order.")
        self._last_change = key
        if self._old or not self._opened:
            await self._copy_old_until(key)
        if value is not None:
            self._push(0, key, value)
            self._recent = key

    async def finish(self) -> BlockId:
        """The root of the new map."""
        if self._old or not self._opened:
            await self._copy_old_until(None)
        level = 0
        while True:
            here = self._levels[level]
            is_top = level + 1 == len(self._levels)
            if is_top and level == 0 and not here.keys:
                self._emit(0, [], [])
                return EMPTY_ROOTS[self._shape]
            if is_top and level > 0 and len(here.keys) == 1:
                return await self._lowest_root(BlockId(here.values[0]))
            if here.keys:
                self._close(level)
            level += 1

    async def _lowest_root(self, root: BlockId) -> BlockId:
        """A subtree that was taken over may have a chain of single children on top; a map built afresh never has."""
        if root != self._last_taken:
            return root
        while True:
            node = await self._load(root)
            if node.level == 0 or len(node.keys) > 1:
                return root
            root = BlockId(node.values[0])

    # -- the old map ----------------------------------------------------------------------

    async def _load(self, node: BlockId, *, level: int | None = None) -> _Old:
        decoded = self._ahead.get(node)
        if decoded is None:
            assert self._reader is not None
            decoded = decode_node((await self._reader.read([node]))[node])
        if decoded.shape is not self._shape or (level is not None and (decoded.level != level or not decoded.keys)):
            raise ManifestDamaged(f"Node {node.hex()} is not the {self._shape.name} node that its parent says.")
        return _Old(decoded.level, decoded.keys, decoded.values)

    async def _open_base(self) -> None:
        if not self._opened:
            self._opened = True
            assert self._base is not None
            self._old.append(await self._load(self._base))

    async def _copy_old_until(self, key: bytes | None) -> None:
        """Take over everything before `key` (all that is left, for None), and drop the old value of `key`."""
        await self._open_base()
        while self._old:
            top = self._old[-1]
            if top.at == len(top.keys):
                self._old.pop()
                continue
            last_key, value = top.keys[top.at], top.values[top.at]
            if top.level == 0:
                if key is not None and last_key >= key:
                    top.at += last_key == key
                    return
                top.at += 1
                self._push(0, last_key, value)
                self._recent = last_key
                continue
            below = top.level - 1
            untouched = (key is None or last_key < key) and is_closed_before(self._shape, below, last_key, key)
            if untouched and self._starts_node(below, last_key):
                top.at += 1
                self._take_over(below, last_key, BlockId(value))
                continue
            if key is not None and self._is_before(top, top.at, key):
                return
            top.at += 1
            self._old.append(await self._load(BlockId(value), level=below))

    def _is_before(self, old: _Old, index: int, key: bytes) -> bool:
        """For numbers, whether `key` lies in a group before that of an old child, so that it need not be opened."""
        following = old.keys[index]
        return (
            self._shape is not Shape.NAMES
            and key < following
            and ends_after(self._shape, old.level - 1, key, following)
        )

    # -- the new map ----------------------------------------------------------------------

    def _starts_node(self, level: int, key: bytes) -> bool:
        """Whether a node at `level` that contains `key` would start afresh here."""
        return self._recent is None or ends_after(self._shape, level, self._recent, key)

    def _take_over(self, level: int, last_key: bytes, node: BlockId) -> None:
        for below in range(level + 1):  # closing one may open the next: look again at each
            if below < len(self._levels) and self._levels[below].keys:
                self._close(below)
        self._push(level + 1, last_key, node)
        self._recent = last_key
        self._last_taken = node
        self.nodes_reused += 1

    def _push(self, level: int, key: bytes, value: bytes) -> None:
        while level >= len(self._levels):
            self._levels.append(_Open())
        here = self._levels[level]
        if here.keys and ends_after(self._shape, level, here.keys[-1], key):
            self._close(level)
        here.keys.append(key)
        here.values.append(value)

    def _close(self, level: int) -> None:
        if level >= LEVEL_MAX:
            raise ManifestDamaged("A manifest would be too deep.")
        here = self._levels[level]
        keys, values = here.keys, here.values
        here.keys, here.values = [], []
        self._push(level + 1, keys[-1], self._emit(level, keys, values))

    def _emit(self, level: int, keys: list[bytes], values: list[bytes]) -> BlockId:
        body = encode_node(self._shape, level, keys, values)
        name = node_id(body)
        self._sink(name, body)
        self.nodes_written += 1
        return name
