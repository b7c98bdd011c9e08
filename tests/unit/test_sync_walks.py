"""The difference of two maps is walked once for all that a sync needs it for."""

import random
from dataclasses import replace
from typing import Any

import pytest
import trio

from protocol.ids import BlockId
from replicator.catalog.records import SnapshotRecord
from replicator.sync import walks as module
from replicator.sync.difference import Change
from replicator.sync.walks import Walks
from replicator.testing import MemoryMesh, MemorySite, run_in_virtual_time

BLOCK = 65536
PATH = "/disk.img"


class CountingReader:
    """Counts what is read through it."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.count = 0

    async def read(self, ids: list[BlockId]) -> dict[BlockId, bytes]:
        self.count += len(ids)
        found: dict[BlockId, bytes] = await self._reader.read(ids)
        return found


async def everything(walks: Walks, record: SnapshotRecord, base: BlockId | None) -> list[Change]:
    return [change async for change in walks.changes(record, base)]


def disk(seed: int, blocks: int) -> bytes:
    return b"".join(random.Random(seed + number).randbytes(BLOCK) for number in range(blocks))


def changed(content: bytes, *, every: int) -> bytes:
    data = bytearray(content)
    for at in range(0, len(data), every * BLOCK):
        data[at : at + 8] = b"changed!"
    return bytes(data)


class Counted:
    """A home with an image that its peers hold; a state of it with 200 of 600 blocks changed is still to be taken."""

    def __init__(self, home: MemorySite, peers: list[MemorySite], volume: str, first: str) -> None:
        self.home, self.peers, self.volume = home, peers, volume
        self.base = self._record(first).root
        self.walks = home.node._relations.syncs.walks
        self.walks.reader = self.reader = CountingReader(self.walks.reader)  # type: ignore[assignment]
        home.sources[PATH] = changed(disk(1, 600), every=3)

    def _record(self, snapshot: str) -> SnapshotRecord:
        return self.home.catalog.snapshot(bytes.fromhex(snapshot)).record  # type: ignore[arg-type]

    async def sync_second(self) -> SnapshotRecord:
        second = await self.home.snapshot(self.volume)
        for peer in self.peers:
            await self.home.wait_held(second, by=peer)
        await trio.sleep(1)
        return self._record(second)


async def counted(mesh: MemoryMesh, *names: str) -> Counted:
    home = await mesh.add("home", ahead_from="1GiB")
    peers = [await mesh.add(name) for name in names]
    for peer in peers:
        await mesh.pair(home, peer)
    home.sources[PATH] = disk(1, 600)
    volume = home.protect(PATH, to=list(names))
    first = await home.snapshot(volume)
    for peer in peers:
        await home.wait_held(first, by=peer)
    await trio.sleep(1)
    return Counted(home, peers, volume, first)


@pytest.mark.parametrize("names", [("cabin",), ("cabin", "barn")])
def test_a_sync_reads_each_node_of_the_difference_once_for_its_plan_and_its_telling(names: tuple[str, ...]) -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            one = await counted(mesh, *names)
            record = await one.sync_second()
            in_all, one.reader.count = one.reader.count, 0
            told = await everything(Walks(one.reader), record, one.base)
            assert len(told) == 200 and one.reader.count > 4
            assert in_all <= len(names) * one.reader.count, "side by side, at worst each walks once; without, twice"
            assert not one.walks._kept and not one.walks._bytes, "and nothing of it stays in memory"

    run_in_virtual_time(story, seed=1)


def test_what_is_kept_is_bounded_and_what_is_not_kept_is_walked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            one = await counted(mesh, "cabin")
            record = await one.sync_second()
            walks, reader = one.walks, one.reader
            told = await everything(walks, record, one.base)
            whole = await everything(walks, record, None)
            assert not walks._kept, "no sync runs"
            size = sum(module._CHANGE_BYTES + len(key) + len(value or b"") for key, value in told)
            monkeypatch.setattr(module, "_BYTES_MAX", size)
            with walks.kept():
                assert await everything(walks, record, one.base) == told
                assert await everything(walks, record, None) == whole
                assert list(walks._kept) == [(one.base, record.root, record.shape)], "the other one is too large"
                reader.count = 0
                assert await everything(walks, record, one.base) == told
                assert reader.count == 0
            monkeypatch.setattr(module, "_BYTES_MAX", 2 * size)
            with walks.kept():
                await everything(walks, record, one.base)
                other = replace(record, root=one.base)
                await everything(walks, other, record.root)
                assert len(walks._kept) == 2
                monkeypatch.setattr(module, "_BYTES_MAX", 2 * size - 1)
                walks._kept.popitem()
                walks._bytes.popitem()
                await everything(walks, other, record.root)
                assert list(walks._kept) == [(record.root, one.base, record.shape)], "the oldest gives way"
            assert not walks._kept

    run_in_virtual_time(story, seed=1)


def test_a_walk_that_is_given_up_in_the_middle_is_not_taken_for_a_whole_one() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            one = await counted(mesh, "cabin")
            record = await one.sync_second()
            with one.walks.kept():
                walk = one.walks.changes(record, one.base)
                assert [await anext(walk) for _ in range(3)]
                await walk.aclose()  # type: ignore[attr-defined]
                assert len(await everything(one.walks, record, one.base)) == 200

    run_in_virtual_time(story, seed=1)
