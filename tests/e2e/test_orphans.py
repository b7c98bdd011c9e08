"""A receive outlives the site that offers it: others finish it, and the receipt is there when that site is back."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from protocol.ids import BlockId
from replicator.catalog.model import Snapshot, Volume
from replicator.core.errors import PeerError
from replicator.store.ports import SealedRuns
from replicator.sync.orphans import Orphans
from tests.support.nodes import Node, Site, become_peers, eventually, open_site, running, started, trust, wait_until
from tests.support.proxy import Proxy, Weather, a_proxy

MIB = 1024 * 1024
RATE = 8_000_000


def orphans_of(site: Site) -> Orphans:
    return site.living._relations.orphans


@dataclass(slots=True)
class Mesh:
    """`new` and `one` hold the first snapshot of a volume, `one` the second too; all reach home through one proxy."""

    home: Site
    one: Site
    new: Site
    proxy: Proxy
    volume: Volume
    second: Snapshot

    async def lose_home(self) -> None:
        self.proxy.weather = replace(self.proxy.weather, accepts=False)
        self.proxy.cut()
        for site in (self.new, self.one):
            await wait_until(lambda site=site: site.mesh.link_to(self.home.parts.site_id) is None)  # type: ignore[misc]
        await wait_until(lambda: not self.new.store.leases.holders())

    async def find_home(self) -> None:
        self.proxy.weather = Weather()
        self.proxy.cut()
        for site in (self.new, self.one):
            await site.link_to(self.home)
            await self.home.link_to(site)


@asynccontextmanager
async def a_mesh(folder: Path, *, files: int = 60, size: int = 100_000) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        home, one, new = (stack.enter_context(open_site(folder / name, name)) for name in ("home", "one", "new"))
        await stack.enter_async_context(running(home, one, new))
        proxy = await stack.enter_async_context(a_proxy(lambda: home.mesh.address, Weather()))
        trust(one, home, address=proxy.address)
        slow = await stack.enter_async_context(a_proxy(lambda: one.mesh.address, Weather(rate_bytes=RATE)))
        trust(new, one, address=slow.address)
        trust(new, home, address=proxy.address)
        for site, other in ((home, one), (one, home), (new, one), (new, home), (home, new), (one, new)):
            await site.link_to(other)
        data = folder / "data"
        data.mkdir()
        for number in range(20):
            (data / f"old-{number}").write_bytes(os.urandom(20_000))
        volume = home.protect(data)
        first = await home.take(volume)
        await home.send(first, one)
        await home.send(first, new)
        for number in range(files):
            (data / f"new-{number}").write_bytes(os.urandom(size))
        (data / "large").write_bytes(os.urandom(6 * MIB))  # With a map of its own.
        (data / "old-3").unlink()
        second = await home.take(volume)
        await home.send(second, one)
        for site in (home, one, new):
            await site.living._standing.step()
        home.catalog.add_sync("to-new", volume_id=volume.volume_id, peer=new.parts.site_id, keep="")
        proxy.weather = Weather(rate_bytes=RATE)
        yield Mesh(home, one, new, proxy, volume, second)


@pytest.mark.parametrize("after", [600, 60_000, 1_000_000])
async def test_the_others_finish_what_a_site_had_begun_to_offer(tmp_path: Path, after: int) -> None:
    """Cut before the difference is told, just after, and among the blocks."""
    async with a_mesh(tmp_path) as mesh:
        before = mesh.proxy.bytes_passed

        async def cut() -> None:
            await wait_until(lambda: mesh.proxy.bytes_passed - before > after)
            await mesh.lose_home()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(PeerError):
                await mesh.home.send(mesh.second, mesh.new)
        assert not mesh.new.holds(mesh.second)
        kept = mesh.new.block_ids()
        await orphans_of(mesh.new).step()
        assert mesh.new.holds(mesh.second)
        assert mesh.new.block_ids() == mesh.home.block_ids() == mesh.one.block_ids()
        assert kept < mesh.new.block_ids()

        await mesh.find_home()
        await orphans_of(mesh.new).step()
        signed_for = mesh.home.catalog.receipts()
        assert (mesh.second.snapshot_id, mesh.new.parts.site_id) in signed_for, "handed over without being asked"
        again = await mesh.home.send(mesh.second, mesh.new)
        assert again.report.blocks_received == 0


async def test_what_nobody_else_has_waits_for_the_offerer_who_goes_before(tmp_path: Path) -> None:
    async with a_mesh(tmp_path) as mesh:
        (tmp_path / "data" / "only-at-home").write_bytes(os.urandom(3 * MIB))
        third = await mesh.home.take(mesh.volume)
        before = mesh.proxy.bytes_passed

        async def cut() -> None:
            await wait_until(lambda: mesh.proxy.bytes_passed - before > 100_000)
            await mesh.lose_home()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(PeerError):
                await mesh.home.send(third, mesh.new)
        orphans = orphans_of(mesh.new)
        await orphans.step()
        assert not mesh.new.holds(third)
        assert list(orphans._waiting) == [third.snapshot_id], "it is tried again later"
        await mesh.find_home()
        done = await mesh.home.send(third, mesh.new)
        assert mesh.new.holds(third) and not orphans._waiting
        assert done.report.blocks_received_twice == 0


async def test_an_offer_that_comes_back_stops_what_the_others_are_at_and_goes_on_from_there(tmp_path: Path) -> None:
    async with a_mesh(tmp_path) as mesh:
        orphans = orphans_of(mesh.new)
        settled: list[str] = []
        orphans.note(
            mesh.second.signed, offerer=mesh.home.parts.site_id, job="", settle=lambda: settled.append("settled")
        )
        blocked = trio.Event()

        async def never(*_: object, **__: object) -> None:
            blocked.set()
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            mesh.one.mesh.handlers.clear()  # It takes questions and never answers.
            for kind in list(mesh.home.mesh.handlers):
                mesh.one.mesh.handlers[kind] = never
            nursery.start_soon(orphans.step)
            await blocked.wait()
            done = await mesh.home.send(mesh.second, mesh.new)
        assert mesh.new.holds(mesh.second) and done.report.blocks_received > 60
        assert not orphans._waiting and settled == []


async def test_nothing_more_is_fetched_for_a_site_that_is_no_peer_any_more(tmp_path: Path) -> None:
    async with a_mesh(tmp_path) as mesh:
        orphans = orphans_of(mesh.new)
        orphans.note(mesh.second.signed, offerer=mesh.home.parts.site_id, job="", settle=lambda: None)
        mesh.new.catalog.peers.revoke(mesh.home.parts.site_id)
        await orphans.step()
        assert not mesh.new.holds(mesh.second) and not orphans._waiting


@pytest.mark.parametrize("true_ones", [0, 3])
async def test_a_further_source_that_lies_is_dropped_and_the_receive_goes_on(tmp_path: Path, true_ones: int) -> None:
    """Also if it lies in the middle: what it said before the lie in the same breath was not kept, and is asked for."""
    async with a_mesh(tmp_path) as mesh:
        store, wrong = mesh.one.store, next(iter(mesh.one.block_ids()))
        honest = store.read_sealed

        def lie(ids: list[BlockId]) -> SealedRuns:
            runs = [*honest(ids[:true_ones]).runs, *honest([wrong]).runs]
            return SealedRuns(runs=[b"".join(runs)], blocks_count=true_ones + 1)

        store.read_sealed = lie  # type: ignore[method-assign, assignment]
        done = await mesh.home.send(mesh.second, mesh.new)
        assert mesh.new.holds(mesh.second) and done.report.blocks_received_twice == 0
        assert mesh.new.block_ids() == mesh.home.block_ids()


@pytest.mark.slow
def test_a_site_is_killed_in_the_middle_of_a_sync_and_its_copy_is_finished_by_a_third(tmp_path: Path) -> None:
    home = Node(tmp_path / "home", "home")
    one, new = Node(tmp_path / "one", "one"), Node(tmp_path / "new", "new")
    data = tmp_path / "data"
    data.mkdir()
    (data / "first").write_bytes(os.urandom(50_000))
    with started(home, one, new):
        become_peers(home, one)
        become_peers(home, new)
        become_peers(one, new)
        home.protect(data)
        for peer in (one, new):
            assert home.cli("sync", "add", "--to", peer.name).code == 0
        home.cli("snapshot", "create", "data")
        eventually(lambda: all(len(node.cli("snapshot", "list", "--json").json) == 1 for node in (one, new)))
        [to_new] = [sync for sync in home.cli("sync", "list", "--json").json if sync["peer"] == "new"]
        assert home.cli("sync", "pause", to_new["sync_id"]).code == 0
        for number in range(200):
            (data / str(number)).write_bytes(os.urandom(60_000))
        second = home.cli("snapshot", "create", "data", "--json").json["snapshots"][0]["snapshot"]
        eventually(lambda: len(one.cli("snapshot", "list", "--json").json) == 2)
        # From everybody else it comes slowly as well: whoever is killed is sure to be killed in the middle.
        for node in (home, one):
            assert node.cli("throttle", "--out", "1MB/s").code == 0

        def sent() -> int:
            return sum(peer["bytes_out"] for peer in home.status()["peers"] if peer["name"] == "new")

        before = sent()
        assert home.cli("sync", "resume", to_new["sync_id"]).code == 0
        eventually(lambda: sent() - before > 1_000_000)
        home.kill()
        assert len(new.cli("snapshot", "list", "--json").json) == 1
        assert one.cli("throttle", "--out", "none").code == 0
        eventually(lambda: second in {copy["snapshot"] for copy in new.cli("snapshot", "list", "--json").json})
        home.start()

        def receipts() -> list[str]:
            shown = home.cli("snapshot", "list", "--json").json
            return [str(snapshot) for snapshot in shown if snapshot["snapshot"] == second and "new" in str(snapshot)]

        eventually(receipts)
        runs = home.cli("sync", "history", "--json").json
        again = [
            one for run in runs for one in (run["result"] or {}).get("sent", ())
            if (run["result"]["peer"], one["snapshot"]) == ("new", second)
        ]  # fmt: skip
        assert all(one["blocks"] == 0 for one in again), "nothing of it was sent by home again"
