"""A whole snapshot does not wait for one that is not: what cannot be read is no base."""

import pytest
import trio

from protocol.ids import BlockId
from replicator.api.schema import PolicyRequest, SyncRequest
from replicator.jobs.replicate import _FAILED_MAX
from replicator.sync.bases import Bases
from replicator.testing import MemoryMesh, run_in_virtual_time


@pytest.mark.parametrize("whose", ["the sender's", "the receiver's"])
def test_a_snapshot_whose_base_is_broken_and_cannot_be_healed_is_brought_over_all_the_same(whose: str) -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            home.sources["/srv/data"] = {"a": bytes(range(256)) * 40, "b": b"one"}
            home.protect("/srv/data", to=["cabin"])
            first = await home.snapshot("data")
            await home.wait_held(first, by=cabin)
            [sync] = home.catalog.syncs()
            home.view.syncs.pause(sync.sync_id, paused=True)
            home.sources["/srv/data"] = {"a": bytes(range(256)) * 40, "b": b"two"}
            second = await home.snapshot("data")
            sick, well = (home, cabin) if whose == "the sender's" else (cabin, home)
            well.view.mesh.set_rights(sick.name, PolicyRequest(deny=["repair"]))
            root = BlockId(sick.catalog.find_snapshot(first).record.root)
            sick.rot(root)
            assert (await sick.job("scrub"))["unhealed"] == 1
            home.view.syncs.pause(sync.sync_id, paused=False)
            await home.wait_held(second, by=cabin, seconds=120)
            assert await cabin.restore(second) == home.sources["/srv/data"]

    run_in_virtual_time(main, seed=2)


def test_a_snapshot_that_nobody_can_read_any_more_does_not_hold_up_one_that_is_whole() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            home.sources["/srv/data"] = {"a": b"one"}
            home.protect("/srv/data", to=["cabin"])
            [sync] = home.catalog.syncs()
            home.view.syncs.pause(sync.sync_id, paused=True)
            older = await home.snapshot("data")
            home.sources["/srv/data"] = {"a": b"two"}
            newer = await home.snapshot("data")
            home.rot(BlockId(home.catalog.find_snapshot(newer).record.root))
            home.view.syncs.pause(sync.sync_id, paused=False)
            await home.wait_held(older, by=cabin, seconds=120)
            assert await cabin.restore(older) == {"a": b"one"}
            await trio.sleep(30)
            assert home.catalog.syncs()[0].last_error, "and the other one is not forgotten"

    run_in_virtual_time(main, seed=2)


@pytest.mark.parametrize("way", ["push", "pull"])
def test_more_snapshots_than_a_run_may_fail_at_do_not_hold_up_one_behind_them_that_is_whole(way: str) -> None:
    """A run ends after some failures. The next one must not begin with the same ones again, for ever."""

    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            home.sources["/srv/data"] = {"a": b"whole"}
            home.protect("/srv/data")
            oldest = await home.snapshot("data")
            for number in range(_FAILED_MAX + 2):
                home.sources["/srv/data"] = {"a": bytes([number]) * 9000}
                newer = await home.snapshot("data")
                home.rot(BlockId(home.catalog.find_snapshot(newer).record.root))
            if way == "push":
                home.view.syncs.add(SyncRequest(to="cabin"))
            else:
                home.view.mesh.set_rights("cabin", PolicyRequest(allow=["read-all"]))
                cabin.view.syncs.add(SyncRequest(source="home"))
            await home.wait_held(oldest, by=cabin, seconds=600)
            assert await cabin.restore(oldest) == {"a": b"whole"}

    run_in_virtual_time(main, seed=2)


def test_a_base_that_has_been_healed_is_one_again() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            home.sources["/srv/data"] = {"a": b"one"}
            home.protect("/srv/data", to=["cabin"])
            first = await home.snapshot("data")
            await home.wait_held(first, by=cabin)
            root = BlockId(home.catalog.find_snapshot(first).record.root)
            bases = Bases(home.node.parts.store, home.node.parts.offload)
            home.rot(root)
            bases.note(root, root)
            assert await bases.unfit([root]) == {root}
            await home.job("scrub")
            assert await bases.unfit([root]) == set()

    run_in_virtual_time(main, seed=2)


def test_a_copy_that_others_finish_does_not_wait_for_a_base_that_is_broken_either() -> None:
    """Whoever offered it is gone, and what it was to differ from cannot be read here."""

    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, hut = [await mesh.add(name) for name in ("home", "cabin", "hut")]
            for one, other in ((home, cabin), (home, hut), (hut, cabin)):
                await mesh.pair(one, other)
            home.sources["/srv/data"] = {"a": b"one"}
            home.protect("/srv/data", to=["cabin", "hut"])
            first = await home.snapshot("data")
            for site in (cabin, hut):
                await home.wait_held(first, by=site)
            [to_cabin] = [one for one in home.catalog.syncs() if one.peer == cabin.machine.identity.site_id]
            home.view.syncs.pause(to_cabin.sync_id, paused=True)
            home.sources["/srv/data"] = {"a": b"two"}
            second = await home.snapshot("data")
            await home.wait_held(second, by=hut)
            signed = home.catalog.find_snapshot(second).signed
            for site in (home, hut):
                site.view.mesh.set_rights("cabin", PolicyRequest(allow=["read-all"], deny=["repair"]))
            cabin.rot(BlockId(cabin.catalog.find_snapshot(first).record.root))
            assert (await cabin.job("scrub"))["unhealed"] == 1
            await home.crash()
            finished = trio.Event()
            cabin.node._relations.orphans.note(
                signed, offerer=home.machine.identity.site_id, job="", settle=finished.set
            )
            with trio.fail_after(600):
                await finished.wait()
            assert await cabin.restore(second) == {"a": b"two"}

    run_in_virtual_time(main, seed=2)
