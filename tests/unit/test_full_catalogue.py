"""A disk without room for a row: what the node owes to others and to its audit waits, and the node lives on."""

import trio

from replicator.api.schema import JobRequest
from replicator.testing import MemoryMesh, MemorySite, run_in_virtual_time


async def a_pair(mesh: MemoryMesh) -> tuple[MemorySite, MemorySite, str]:
    """Two sites that both hold one snapshot."""
    home, cabin = await mesh.add("home"), await mesh.add("cabin")
    await mesh.pair(home, cabin)
    home.sources["/data"] = {"a": b"1" * 5000, "b": b"2" * 5000}
    home.protect("/data", to=["cabin"])
    snapshot = await home.snapshot("data")
    await home.wait_held(snapshot, by=cabin)
    return home, cabin, snapshot


def outcomes(site: MemorySite) -> set[str]:
    return {line["outcome"] for line in site.view.repairs(limit=100) if line["role"] == "asked"}


def test_a_link_that_comes_up_while_the_disk_is_full_is_a_link() -> None:
    """Found by seed 2: the peer's incarnation could not be noted, and that took the whole node down."""

    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, _ = await a_pair(mesh)
            home.machine.databases.is_full = True
            mesh.network.break_lines("home", "cabin")
            await trio.sleep(5)
            assert home.is_up and home.node.mesh.link_to(cabin.machine.identity.site_id) is not None

    run_in_virtual_time(main, seed=1)


def test_a_peer_that_was_reborn_while_the_disk_was_full_is_noticed_when_there_is_room() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, _ = await a_pair(mesh)
            home.view.syncs.pause(home.catalog.syncs()[0].sync_id, paused=True)
            await cabin.crash()
            home.machine.databases.is_full = True
            cabin.machine.incarnation = bytes(16)
            await cabin.start()
            await trio.sleep(20)
            assert home.catalog.receipts(), "there was no room to forget them"
            home.machine.databases.is_full = False
            await trio.sleep(40)
            assert not home.catalog.receipts()

    run_in_virtual_time(main, seed=1)


def test_a_node_that_died_in_a_repair_starts_on_a_full_disk() -> None:
    """Found by seed 10: the open line of the audit could not be ended, and the node did not start."""

    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, _, snapshot = await a_pair(mesh)
            mesh.network.path("cabin", "home").delay_s = 5
            home.rot(home.blocks()[0])
            home.view.submit(JobRequest(kind="scrub"))
            await trio.sleep(3)
            assert outcomes(home) == {"asking"}
            await home.crash()
            home.machine.databases.is_full = True
            await home.start()
            assert home.is_up
            home.machine.databases.is_full = False
            await trio.sleep(60)
            assert "asking" not in outcomes(home)
            assert await home.restore(snapshot) == home.sources["/data"]

    run_in_virtual_time(main, seed=1)


def test_a_repair_whose_line_has_no_room_is_a_repair_and_gets_its_line_later() -> None:
    """Found by seed 40: the reader lost its block, and the line was never ended."""

    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, _, snapshot = await a_pair(mesh)
            mesh.network.path("cabin", "home").delay_s = 5
            home.rot(home.blocks()[0])
            restored: list[object] = []

            async def read() -> None:
                restored.append(await home.restore(snapshot))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.sleep(3)
                assert outcomes(home) == {"asking"}
                home.machine.databases.is_full = True
            assert restored == [home.sources["/data"]]
            home.machine.databases.is_full = False
            await trio.sleep(60)
            assert outcomes(home) == {"healed"}

    run_in_virtual_time(main, seed=1)
