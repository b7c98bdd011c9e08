"""The mesh in memory, as a user's own test would use it: no sockets, no disks, no threads."""

import pytest

from replicator.testing import MemoryMesh


@pytest.mark.anyio
async def test_a_block_that_rots_is_mended_by_the_other_site() -> None:
    async with MemoryMesh() as mesh:
        home, cabin = await mesh.add("home"), await mesh.add("cabin")
        await mesh.pair(home, cabin)
        home.sources["/srv/data"] = {"letters/a.txt": b"dear reader", "empty": b""}
        home.protect("/srv/data", to=["cabin"])
        snapshot = await home.snapshot("data")
        await home.wait_held(snapshot, by=cabin)
        home.rot(home.blocks()[0])
        report = await home.job("scrub")
        assert report["damaged"] == report["healed"] == 1
        assert await home.restore(snapshot) == await cabin.restore(snapshot) == home.sources["/srv/data"]
