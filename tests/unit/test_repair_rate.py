"""A rebuild may be slowed, and whoever waits for a block is not."""

import random

import trio

from replicator.testing import MemoryMesh, MemorySite, run_in_virtual_time

SIZE = 3_000_000
RATE = 50_000


async def a_loss(mesh: MemoryMesh, **settings: str) -> tuple[MemorySite, str]:
    """A site that has just lost all its blocks, which a peer holds, and the snapshot that they were of."""
    home, cabin = await mesh.add("home", **settings), await mesh.add("cabin")
    await mesh.pair(home, cabin)
    home.sources["/srv/data"] = {"a": random.Random(1).randbytes(SIZE)}
    home.protect("/srv/data", to=["cabin"])
    snapshot = await home.snapshot("data")
    await home.wait_held(snapshot, by=cabin)
    for block in home.blocks():
        home.lose(block)
    return home, snapshot


def test_what_is_mended_at_leisure_comes_no_faster_than_the_rate_and_without_one_at_once() -> None:
    async def rebuild(**settings: str) -> float:
        async with MemoryMesh() as mesh:
            home, _ = await a_loss(mesh, **settings)
            began = trio.current_time()
            done = await home.job("scrub")
            assert done["unhealed"] == 0 and done["healed"] > 0
            return trio.current_time() - began

    async def main() -> None:
        assert await rebuild() < 5
        took = await rebuild(repair_rate=f"{RATE}B/s")
        assert 0.8 * SIZE / RATE < took < 1.5 * SIZE / RATE

    run_in_virtual_time(main, seed=1)


def test_a_reader_is_not_held_back_by_the_rate_of_a_rebuild_and_leaves_it_nothing_to_wait_for() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, snapshot = await a_loss(mesh, repair_rate=f"{RATE}B/s")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(home.job, "scrub")
                await trio.sleep(10)
                began = trio.current_time()
                assert await home.restore(snapshot) == home.sources["/srv/data"]
                assert trio.current_time() - began < 5
            assert trio.current_time() - began < 20

    run_in_virtual_time(main, seed=1)
