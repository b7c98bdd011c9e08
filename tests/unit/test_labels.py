"""Whose data a snapshot is, and for whom an order is, when people change their minds while work is under way."""

import trio

from replicator.api.schema import ProtectRequest, SyncChange, SyncRequest
from replicator.testing import MemoryMesh, MemorySite, run_in_virtual_time
from replicator.testing.power import PowerCut

PATH = "/srv/data"


async def two_sites(mesh: MemoryMesh) -> tuple[MemorySite, MemorySite]:
    home, cabin = await mesh.add("home"), await mesh.add("cabin")
    await mesh.pair(home, cabin)
    home.sources[PATH] = {"a": b"dear reader"}
    return home, cabin


def test_a_snapshot_is_of_whoever_its_volume_was_when_it_was_begun() -> None:
    """What goes ahead of it goes by that label; with the one at its end it would have been shown to the wrong site."""

    async def story() -> None:
        async with MemoryMesh(pause_s=lambda: 1.0) as mesh:
            home, _ = await two_sites(mesh)
            home.protect(PATH, tenant="acme")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(home.snapshot, PATH)
                await trio.sleep(0.5)
                assert home.node.jobs.is_active("snapshot", home.catalog.volumes()[0].volume_id.hex())
                home.view.protect(ProtectRequest(path=PATH, tenant="globex"))
            await home.snapshot(PATH)
            assert [one.record.tags for one in home.catalog.snapshots()] == [("tenant:acme",), ("tenant:globex",)]

    run_in_virtual_time(story, seed=1)


def test_an_order_that_is_narrowed_while_it_is_carried_out_brings_nothing_more_of_the_others() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await two_sites(mesh)
            home.protect(PATH, tenant="acme")
            for number in range(6):
                home.sources[PATH] = {"a": bytes([number]) * 50_000}
                await home.snapshot(PATH)
            mesh.network.path("home", "cabin").delay_s = 1.0
            order = home.view.syncs.add(SyncRequest(to="cabin", tenants=["acme"]))["sync_id"]
            while not cabin.catalog.snapshots():  # noqa: ASYNC110  (no event)
                await trio.sleep(0.05)
            home.view.syncs.change(order, SyncChange(tenants=["globex"]))
            under_way = 1
            await trio.sleep(120)
            assert len(cabin.catalog.snapshots()) <= 1 + under_way

    run_in_virtual_time(story, seed=1)


def test_an_order_that_runs_continuously_takes_nothing_of_what_is_no_longer_protected() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, _ = await two_sites(mesh)
            home.protect(PATH)
            home.view.syncs.add(SyncRequest(to="cabin", rpo_s=6.0))
            await trio.sleep(30)
            taken = home.catalog.snapshots()[-1].record.sequence
            assert taken > 3
            home.view.unprotect(PATH)
            await trio.sleep(60)
            assert home.catalog.snapshots()[-1].record.sequence <= taken + 1, "one may have been under way"

    run_in_virtual_time(story, seed=1)


def test_no_schedule_is_on_before_the_label_is_whatever_moment_the_power_goes() -> None:
    """A tenant comes: the first snapshot that a schedule takes of its volume is already its own."""

    async def story() -> None:
        for step in range(16):
            async with MemoryMesh(seed=step) as mesh:
                home, _ = await two_sites(mesh)
                home.protect(PATH, every_s=600, tenant="acme")
                await home.snapshot(PATH)
                home.view.unprotect(PATH)
                home.machine.power.cut_at = home.machine.power.steps + step
                try:
                    home.protect(PATH, every_s=600, to=["cabin"], tenant="globex")
                except PowerCut:
                    await home.down.wait()
                    await home.start()
                [volume] = home.catalog.volumes()
                if home.catalog.protections() or home.catalog.syncs():
                    assert home.catalog.tenant_of(volume.volume_id) == "globex", f"cut at step {step}"

    run_in_virtual_time(story, seed=1)
