"""Manifests: whatever edits led there, the same content has the same root, and walking tells the truth."""

import random
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ids import ZERO_BLOCK, BlockId, split_ids
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import Kind
from replicator.catalog.manifest import walk
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.entries import Entry, check_key, decode_entry, encode_entry, key_path, path_key
from replicator.catalog.manifest.nodes import EMPTY_ROOTS, Shape, decode_node, encode_node, node_id, number_key
from replicator.core.errors import ManifestDamaged

Map = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]


class Nodes:
    """Where nodes are kept: a dictionary."""

    def __init__(self) -> None:
        self.bodies: dict[BlockId, bytes] = {}

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        return {block: self.bodies[block] for block in ids}

    async def build(
        self, shape: Shape, changes: Changes | Map, *, base: BlockId | None = None, expecting: int = 0
    ) -> BlockId:
        """`expecting`: how many changes are told of together before they are made."""
        editor = MapEditor(shape, self.bodies.__setitem__, reader=self, base=base)
        for number, (key, value) in enumerate(ordered := sorted(changes.items())):
            if expecting and number % expecting == 0:
                await editor.expect([key for key, _ in ordered[number : number + expecting]])
            await editor.put(key, value)
        return await editor.finish()


class Counting(Nodes):
    """Says what was asked for, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[BlockId] = []
        self.times = 0

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        self.asked += ids
        self.times += 1
        return await super().read(ids)


class World:
    """Random keys, values and edits of one shape."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.rnd = random.Random(seed)
        self.span = self.rnd.choice([10, 500, 1 << 15, 1 << 30, (1 << 64) - 1])

    def key(self) -> bytes:
        number = self.rnd.randrange(self.span)
        return b"d\0%d" % number if self.shape is Shape.NAMES else number_key(number)

    def value(self) -> bytes:
        block = ZERO_BLOCK if self.rnd.random() < 0.1 else self.rnd.randbytes(32)
        if self.shape is Shape.PIECES:
            return block + b"\0\0\1\0"
        if self.shape is Shape.NUMBERS:
            return block
        return encode_entry(Entry(mode=0o100644, uid=0, gid=0, mtime_ns=0, size=9, lengths=(9,), ids=block))

    def content(self) -> Map:
        return {self.key(): self.value() for _ in range(self.rnd.choice([0, 1, 5, 100, 400, 800]))}

    def edits(self, content: Map) -> Changes:
        changes: Changes = {}
        old = sorted(content)
        for _ in range(self.rnd.choice([0, 1, 3, 50, 300])):
            key = self.rnd.choice(old) if old and self.rnd.random() < 0.5 else self.key()
            changes[key] = None if self.rnd.random() < 0.4 else self.value()
        if self.rnd.random() < 0.15:
            changes.update(dict.fromkeys(old[1:]))
        return changes


def applied(content: Map, changes: Changes) -> Map:
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


SHAPES = st.sampled_from(Shape)
SEEDS = st.integers(0, 2**32)


@settings(max_examples=40)
@given(shape=SHAPES, seed=SEEDS)
def test_any_edits_give_the_root_of_a_fresh_build(shape: Shape, seed: int) -> None:
    async def main() -> None:
        world, nodes = World(shape, seed), Nodes()
        content = world.content()
        root = await nodes.build(shape, content)
        for _ in range(2):
            changes = world.edits(content)
            before, content = content, applied(content, changes)
            old_root, root = root, await nodes.build(shape, changes, base=root)
            assert root == await Nodes().build(shape, content)
            assert {key: value async for key, value in walk.entries(nodes, root, shape)} == content
            assert [change async for change in walk.diff(nodes, old_root, root, shape)] == [
                (key, content.get(key)) for key in sorted({*before, *content}) if before.get(key) != content.get(key)
            ]

    trio.run(main)


@settings(max_examples=40)
@given(shape=SHAPES, seed=SEEDS, expecting=st.sampled_from([1, 7, 1000]))
def test_what_is_expected_changes_nothing_and_reads_no_node_that_is_not_needed(
    shape: Shape, seed: int, expecting: int
) -> None:
    async def main() -> None:
        world, nodes = World(shape, seed), Counting()
        root = await nodes.build(shape, content := world.content())
        changes = world.edits(content)
        singly = await nodes.build(shape, changes, base=root)
        needed, nodes.asked = set(nodes.asked), []
        assert await nodes.build(shape, changes, base=root, expecting=expecting) == singly
        assert set(nodes.asked) == needed

    trio.run(main)


def test_changes_that_are_expected_cost_one_read_a_level() -> None:
    async def main() -> None:
        world, nodes = World(Shape.NAMES, 7), Counting()
        content = {b"d\0%06d" % n: world.value() for n in range(20_000)}
        changes: Changes = {key: world.value() for key in world.rnd.sample(sorted(content), 200)}
        root = await nodes.build(Shape.NAMES, content)
        await nodes.build(Shape.NAMES, changes, base=root)
        assert nodes.times > 150
        nodes.times = 0
        await nodes.build(Shape.NAMES, changes, base=root, expecting=200)
        assert nodes.times < 10

    trio.run(main)


@settings(max_examples=25)
@given(shape=SHAPES, seed=SEEDS)
def test_get_and_ranges_agree_with_the_model(shape: Shape, seed: int) -> None:
    async def main() -> None:
        world, nodes = World(shape, seed), Nodes()
        content = world.content()
        root = await nodes.build(shape, content)
        for key in [world.key(), *sorted(content)[:3]]:
            assert await walk.get(nodes, root, shape, key) == content.get(key)
            found = [found async for found, _ in walk.entries(nodes, root, shape, start=key)]
            assert found == [other for other in sorted(content) if other >= key]

    trio.run(main)


@given(shape=SHAPES, seed=SEEDS)
def test_a_closure_is_every_node_and_every_block_and_no_more(shape: Shape, seed: int) -> None:
    async def main() -> None:
        world, nodes = World(shape, seed), Nodes()
        content = world.content()
        root = await nodes.build(shape, content)
        found: dict[Kind, set[BlockId]] = {Kind.NODE: set(), Kind.DATA: set()}
        async for kind, packed in walk.closure(nodes, root, shape):
            found[kind].update(split_ids(packed))
        values = content.values()
        ids = [decode_entry(v).ids for v in values] if shape is Shape.NAMES else [v[:32] for v in values]
        assert found[Kind.DATA] == {BlockId(block) for block in ids} - {ZERO_BLOCK}
        assert found[Kind.NODE] == nodes.bodies.keys() | {root}

    trio.run(main)


def test_a_closure_goes_into_large_files_and_stops_at_what_was_seen() -> None:
    async def main() -> None:
        nodes = Nodes()
        blocks = [bytes([n]) * 32 for n in range(1, 200)]
        pieces = await nodes.build(Shape.PIECES, {number_key(n): block + b"\0\0\0\1" for n, block in enumerate(blocks)})
        entry = Entry(mode=0o100600, uid=0, gid=0, mtime_ns=0, size=199, pieces_root=pieces)
        root = await nodes.build(Shape.NAMES, {b"big": encode_entry(entry)})
        seen: set[BlockId] = set()
        runs = [run async for run in walk.closure(nodes, root, Shape.NAMES, seen=seen)]
        assert set(split_ids(b"".join(packed for kind, packed in runs if kind is Kind.DATA))) == set(blocks)
        assert [run async for run in walk.closure(nodes, root, Shape.NAMES, seen=seen)] == []

    trio.run(main)


def test_unchanged_subtrees_are_neither_read_nor_written_again() -> None:
    async def main() -> None:
        nodes = Nodes()
        content = {number_key(n): bytes([n % 251 + 1]) * 32 for n in range(20_000)}
        root = await nodes.build(Shape.NUMBERS, content)
        editor = MapEditor(Shape.NUMBERS, nodes.bodies.__setitem__, reader=nodes, base=root)
        await editor.put(number_key(777), bytes(32))
        await editor.finish()
        assert editor.nodes_written <= 3

    trio.run(main)


def test_a_difference_reads_hardly_a_node_that_both_maps_have() -> None:
    async def main() -> None:
        world, nodes = World(Shape.NAMES, 7), Counting()
        content = {b"d\0%06d" % n: world.value() for n in range(20_000)}
        changes: Changes = {key: world.value() for key in world.rnd.sample(sorted(content), 200)}
        old = await nodes.build(Shape.NAMES, content)
        new = await nodes.build(Shape.NAMES, changes, base=old)
        ids: list[set[BlockId]] = []
        for root in (old, new):
            ids.append(
                {
                    BlockId(run)
                    async for kind, packed in walk.closure(nodes, root, Shape.NAMES)
                    for run in split_ids(packed)
                    if kind == Kind.NODE
                }
            )
        nodes.asked = []
        assert {key: value async for key, value in walk.diff(nodes, old, new, Shape.NAMES)} == {
            key: value for key, value in changes.items() if value != content[key]
        }
        assert len(nodes.asked) == len(set(nodes.asked))
        assert len(set(nodes.asked) & ids[0] & ids[1]) <= 5, "a node that both have"

    trio.run(main)


@pytest.mark.parametrize("shape", list(Shape))
def test_an_empty_map_has_the_empty_root(shape: Shape) -> None:
    async def main() -> None:
        nodes = Nodes()
        assert await nodes.build(shape, {}) == EMPTY_ROOTS[shape]
        content = World(shape, 1).content() or {b"k" * 8: World(shape, 1).value()}
        root = await nodes.build(shape, content)
        assert await nodes.build(shape, dict.fromkeys(content), base=root) == EMPTY_ROOTS[shape]

    trio.run(main)


# -- hostile nodes ----------------------------------------------------------------------------


@given(junk=st.binary(max_size=200))
def test_junk_is_a_damaged_node_or_entry_and_nothing_else(junk: bytes) -> None:
    for decode in (decode_node, decode_entry):
        try:
            decode(junk)
        except ManifestDamaged:
            continue


@given(seed=SEEDS, data=st.data())
def test_mutated_nodes_and_entries_raise_nothing_else(seed: int, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    world = World(shape, seed)
    content = sorted({world.key(): world.value() for _ in range(5)}.items())
    node = encode_node(shape, 0, [key for key, _ in content], [value for _, value in content])
    for decode, raw in ((decode_node, bytearray(node)), (decode_entry, bytearray(World(Shape.NAMES, seed).value()))):
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            decode(bytes(raw))
        except ManifestDamaged:
            continue


ENTRIES = st.builds(
    lambda sizes, **fields: Entry(
        lengths=tuple(sizes), ids=bytes(32 * len(sizes)), size=sum(sizes), mode=0o100644, **fields
    ),
    st.lists(st.integers(1, 2**32), max_size=4),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.integers(-(2**62), 2**62),
    target=st.binary(max_size=20),
    rdev=st.integers(0, 2**63),
    xattrs=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple),
    is_sparse=st.booleans(),
)


@given(entry=ENTRIES)
def test_an_entry_comes_back(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@pytest.mark.parametrize(
    "change", [{"mode": -1}, {"mode": 2**40}, {"uid": -1}, {"size": -1}, {"size": 8}, {"rdev": -1}, {"ids": b"x" * 32}]
)
def test_an_entry_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    sound: dict[str, object] = {"mode": 0o100644, "uid": 0, "gid": 0, "mtime_ns": 0, "size": 0}
    with pytest.raises(ManifestDamaged):
        decode_entry(encode_entry(Entry(**{**sound, **change})))  # type: ignore[arg-type]


def test_a_tree_whose_order_lies_is_refused() -> None:
    """Each node is well formed; it is the parent that says other keys than its children hold."""

    async def main() -> None:
        nodes = Nodes()

        def node(level: int, keys: list[int], values: list[bytes]) -> BlockId:
            body = encode_node(Shape.NUMBERS, level, [number_key(key) for key in keys], values)
            nodes.bodies[node_id(body)] = body
            return node_id(body)

        low, high = node(0, [1, 2], [bytes(32)] * 2), node(0, [300], [bytes(32)])
        shallow = node(1, [2, 300], [low, high])
        for lying in (
            node(1, [2, 300], [high, low]),
            node(1, [2, 3], [low, high]),
            node(2, [300], [low]),
            node(1, [2, 300], [low, node(0, [2, 300], [bytes(32)] * 2)]),
        ):
            with pytest.raises(ManifestDamaged):
                assert [entry async for entry in walk.entries(nodes, lying, Shape.NUMBERS)]
        with pytest.raises(ManifestDamaged):
            assert [run async for run in walk.closure(nodes, node(2, [300], [low]), Shape.NUMBERS)]
        with pytest.raises(ManifestDamaged):
            assert [run async for run in walk.closure(nodes, shallow, Shape.PIECES)]

    trio.run(main)


def test_changes_out_of_order_are_refused() -> None:
    async def main() -> None:
        nodes = Nodes()
        root = await nodes.build(Shape.NAMES, {b"%03d" % number: b"" for number in range(500)})
        editor = MapEditor(Shape.NAMES, lambda *_: None, reader=nodes, base=root)
        await editor.expect([b"400", b"300", b"300", b"zzz", b"000"])  # A peer may say such a thing.
        await editor.put(b"b", b"")
        with pytest.raises(ManifestDamaged):
            await editor.put(b"b", b"")

    trio.run(main)


@given(st.lists(st.sampled_from([b"a", b"..", b".", b"", b"b/c", b"\xff", b"x" * 256]), min_size=1, max_size=4))
def test_only_keys_inside_the_folder_are_accepted(names: list[bytes]) -> None:
    key = b"\0".join(names)
    if key == b"" or all(name in (b"a", b"\xff") for name in names):
        check_key(key)
        assert path_key(key_path(key)) == key
    else:
        with pytest.raises(ManifestDamaged):
            check_key(key)
