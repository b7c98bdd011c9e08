"""Going down two maps at once, when one of them has to be fetched."""

import random
from collections.abc import Sequence

import pytest

from protocol.ids import BlockId
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.nodes import Node, Shape, encode_node, number_key
from replicator.core.errors import ManifestDamaged
from replicator.sync.descent import descend


class Nodes:
    """Nodes here, and nodes elsewhere that have to be brought first."""

    def __init__(self) -> None:
        self.here: dict[BlockId, bytes] = {}
        self.elsewhere: dict[BlockId, bytes] = {}
        self.brought: list[BlockId] = []
        self.rounds = 0

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, bytes]:
        return {one: self.here[one] for one in ids}

    async def bring(self, ids: Sequence[BlockId]) -> None:
        fresh = [one for one in ids if one not in self.here]
        self.rounds += bool(fresh)
        self.brought += fresh
        self.here.update({one: self.elsewhere[one] for one in fresh})


async def build(values: dict[int, bytes], keep: dict[BlockId, bytes]) -> BlockId:
    nodes = Nodes()
    nodes.here = keep
    editor = MapEditor(Shape.NUMBERS, lambda name, body: keep.__setitem__(name, body), reader=nodes, base=None)
    for number, value in sorted(values.items()):
        await editor.put(number_key(number), value)
    return await editor.finish()


def value_of(number: int, version: int = 0) -> bytes:
    return random.Random(number * 1000 + version).randbytes(32)


@pytest.mark.parametrize(
    ("before", "after", "changed"), [(0, 300, 0), (20_000, 20_000, 5), (100, 20_000, 3), (20_000, 90, 2)]
)
async def test_only_nodes_that_the_base_has_not_are_fetched_and_every_new_value_is_met(
    before: int, after: int, changed: int
) -> None:
    nodes = Nodes()
    old = {number: value_of(number) for number in range(before)}
    new = {number: value_of(number) for number in range(after)}
    for number in random.Random(1).sample(range(after), changed):
        new[number] = value_of(number, 1)
    base = await build(old, nodes.here) if before else None
    root = await build(new, nodes.elsewhere)
    there = set(nodes.elsewhere) - set(nodes.here)
    met = [
        value
        async for value in descend(
            nodes, nodes.bring, base=base, base_reader=nodes, root=root, shape=Shape.NUMBERS, entries_max=len(new)
        )
    ]  # fmt: skip
    assert set(new.values()) - set(old.values()) <= set(met) <= set(new.values())
    assert set(nodes.brought) == there, "what is equal was not asked for, and all else was"
    assert nodes.rounds <= 4, "one round a level"
    if before == after:
        assert len(met) <= changed * 128


async def test_the_same_map_costs_nothing() -> None:
    nodes = Nodes()
    base = await build({1: value_of(1)}, nodes.here)
    met = [
        v
        async for v in descend(
            nodes, nodes.bring, base=base, base_reader=nodes, root=base, shape=Shape.NUMBERS, entries_max=1
        )
    ]
    assert (met, nodes.rounds) == ([], 0)


def put(nodes: Nodes, node: Node) -> BlockId:
    body = encode_node(node.shape, node.level, node.keys, node.values)
    name = block_id(Kind.NODE, body)
    nodes.elsewhere[name] = body
    return name


async def test_a_map_that_does_not_count_down_or_is_wider_than_its_snapshot_is_refused() -> None:
    nodes = Nodes()
    leaves = [put(nodes, Node(Shape.NUMBERS, 0, [number_key(n)], [value_of(n)])) for n in range(0, 1280, 128)]
    keys = [number_key(n) for n in range(0, 1280, 128)]
    wide = put(nodes, Node(Shape.NUMBERS, 1, keys, list(leaves)))
    again = put(nodes, Node(Shape.NUMBERS, 1, keys[:1], [wide]))
    wrong = put(nodes, Node(Shape.PIECES, 0, [number_key(1)], [bytes(36)]))
    for root, entries_max in ((wide, 9), (again, 10), (wrong, 10)):
        with pytest.raises(ManifestDamaged):
            async for _ in descend(
                nodes,
                nodes.bring,
                base=None,
                base_reader=nodes,
                root=root,
                shape=Shape.NUMBERS,
                entries_max=entries_max,
            ):
                pass
