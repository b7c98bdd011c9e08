"""What is over leaves nothing behind in a node's memory."""

import trio

from protocol.ids import VolumeId
from protocol.messages.mesh import EarlyBlocks
from protocol.wire.frames import Lane
from replicator.core.errors import JobError, PeerError
from replicator.testing import MemoryMesh, run_in_virtual_time
from tests.simulation.memory import containers


def test_a_line_that_broke_with_megabytes_waiting_keeps_none_of_them() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            link = home.node.mesh.connected()[0]
            mesh.network.path("home", "cabin").is_blocked = True

            async def send() -> None:
                try:
                    async with link.open(EarlyBlocks(volume_id=VolumeId(bytes(16))), lane=Lane.SYNC) as stream:
                        del stream
                        other = link.connection.open_stream(
                            EarlyBlocks(volume_id=VolumeId(bytes(16))), lane=Lane.SYNC, end=False
                        )
                        for _ in range(8):
                            link.connection.send_blocks(other, [bytes(200_000)])
                        link.wake()
                        await trio.sleep(1)
                        assert link.connection.statistics().queued_bytes > 1_000_000
                        mesh.network.break_lines("home", "cabin")
                        await trio.sleep(1)
                except PeerError:
                    pass

            await send()
            assert link.closed.is_set() and link.connection.statistics().queued_bytes == 0

    run_in_virtual_time(main, seed=1)


def test_a_receive_that_failed_leaves_no_turn_behind() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            cabin.machine.disk.bytes_max = 100
            home.sources["/srv/data"] = {"a": bytes(range(256)) * 100}
            home.protect("/srv/data", to=["cabin"])
            await home.snapshot("data")
            sync = home.catalog.syncs()[0].sync_id
            try:
                await home.job("sync", sync=sync)
            except JobError:
                pass
            else:
                raise AssertionError("there was no room for it")
            [turns] = [one for name, one in containers(cabin.node) if name == "Receiver._locks"]
            assert len(turns) == 0

    run_in_virtual_time(main, seed=1)
