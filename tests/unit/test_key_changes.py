"""Changing keys in a mesh: once, twice, with restarts, among sites that all know each other."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import structlog
import trio

from protocol.errors import ErrorCode
from protocol.ids import BlockId, SiteId, split_ids
from protocol.wire.hashing import Kind
from replicator.api.schema import PolicyRequest, SyncRequest
from replicator.catalog.manifest.walk import closure
from replicator.catalog.model import Snapshot, Succession
from replicator.core.errors import DatabaseDamaged, JobError, StoreFull
from replicator.testing import MemoryMesh, MemorySite, run_in_virtual_time
from replicator.testing.power import PowerCut

OVERLAP_S = 40.0


def in_a_mesh(
    test: Callable[[MemoryMesh, list[MemorySite]], Awaitable[None]], *, sites: int = 3
) -> list[dict[str, Any]]:
    """Run a test with sites that all know each other; returns what was logged."""

    async def main() -> None:
        async with MemoryMesh() as mesh:
            names = ("home", "cabin", "attic")[:sites]
            all_sites = [await mesh.add(name) for name in names]
            for number, site in enumerate(all_sites):
                for other in all_sites[:number]:
                    await mesh.pair(other, site)
            await test(mesh, all_sites)

    with structlog.testing.capture_logs() as log:
        run_in_virtual_time(main, seed=5)
    return [dict(line) for line in log]


async def wait_linked(site: MemorySite, others: list[MemorySite]) -> None:
    for other in others:
        await site.node.mesh.wait_link(other.machine.identity.site_id, seconds=90)


def test_among_sites_that_all_know_each_other_each_notes_a_new_key_and_nobody_is_refused_for_ever() -> None:
    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        home, *others = sites
        before = home.machine.identity.site_id
        home.view.mesh.rotate_key(OVERLAP_S)
        await trio.sleep(2 * OVERLAP_S)
        assert home.machine.identity.site_id != before
        await wait_linked(home, others)

    log = in_a_mesh(test)
    refused = [line for line in log if line["event"] == "request.untrusted"]
    assert len(refused) <= 2, "once each, if they speak of it before they have both heard"


def test_a_restart_in_the_middle_of_a_second_change_does_not_forget_it() -> None:
    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin = sites
        keys = [home.machine.identity.site_id]
        for _ in range(2):
            home.view.mesh.rotate_key(OVERLAP_S)
            await trio.sleep(OVERLAP_S / 4)
            await home.crash()
            await home.start()
            await trio.sleep(OVERLAP_S * 2)
            await wait_linked(home, [cabin])
            keys.append(home.machine.identity.site_id)
        assert len(set(keys)) == 3
        assert home.view.mesh.site()["next_site_id"] is None

    in_a_mesh(test, sites=2)


def test_after_a_change_a_site_is_not_sent_its_own_snapshots_back_and_does_not_fetch_them() -> None:
    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin = sites
        home.sources["/srv/data"] = {"a": b"one"}
        home.protect("/srv/data", to=["cabin"])
        snapshot = await home.snapshot("data")
        await home.wait_held(snapshot, by=cabin)
        home.view.mesh.rotate_key(OVERLAP_S)
        await trio.sleep(2 * OVERLAP_S)
        await wait_linked(home, [cabin])
        home.view.delete_snapshot(snapshot)
        cabin.view.syncs.add(SyncRequest(to="home"))
        home.view.syncs.add(SyncRequest(source="cabin"))
        await trio.sleep(120)
        assert home.catalog.snapshots() == []
        assert [one.snapshot_id.hex() for one in cabin.catalog.snapshots()] == [snapshot]

    in_a_mesh(test, sites=2)


def test_a_change_that_was_begun_by_a_clock_years_ahead_does_not_wait_for_that_day() -> None:
    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        home, *others = sites
        before = home.machine.identity.site_id
        home.machine.clock.skew_s = 10 * 365 * 86_400.0
        home.view.mesh.rotate_key(OVERLAP_S)
        await trio.sleep(OVERLAP_S / 4)
        assert home.view.mesh.site()["next_site_id"] is not None
        home.machine.clock.skew_s = 0.0
        await trio.sleep(2 * OVERLAP_S)
        assert home.machine.identity.site_id != before and home.view.mesh.site()["next_site_id"] is None
        await wait_linked(home, others)

    in_a_mesh(test)


def test_a_peer_that_has_lost_its_catalogue_hears_of_an_earlier_change_again() -> None:
    """Else the site's own snapshots, signed by its new key, are a stranger's there for ever."""

    async def test(mesh: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin = sites
        home.sources["/srv/data"] = {"a": b"one"}
        home.protect("/srv/data", to=["cabin"])
        await home.wait_held(await home.snapshot("data"), by=cabin)
        home.view.mesh.rotate_key(OVERLAP_S)
        await trio.sleep(2 * OVERLAP_S)
        await wait_linked(home, [cabin])
        await cabin.crash()
        cabin.machine.lose_catalog()
        await cabin.start()
        await mesh.pair(home, cabin)
        home.sources["/srv/data"] = {"a": b"two"}
        await home.wait_held(await home.snapshot("data"), by=cabin)

    in_a_mesh(test, sites=2)


@pytest.mark.parametrize("step", range(6))
def test_a_power_cut_at_any_step_of_a_change_leaves_a_site_that_its_peers_know(step: int) -> None:
    """Its peers may have heard of the new key already, and drop the old one when the statement says so."""

    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        home, *others = sites
        home.machine.power.cut_at = home.machine.power.steps + step
        try:
            home.view.mesh.rotate_key(OVERLAP_S)
        except PowerCut:
            await home.down.wait()
            await home.start()
        home.machine.power.cut_at = None
        await trio.sleep(3 * OVERLAP_S)
        assert home.view.mesh.site()["next_site_id"] is None
        await wait_linked(home, others)

    in_a_mesh(test)


def test_a_change_whose_plan_found_the_disk_full_is_seen_through_without_a_restart() -> None:
    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        home, *others = sites
        before, keys = home.machine.identity.site_id, home.machine.keys
        remember = keys.remember

        def fill_up(one: Succession) -> None:
            remember(one)
            home.machine.databases.is_full = True

        keys.remember = fill_up  # type: ignore[method-assign]
        with pytest.raises(StoreFull):
            home.view.mesh.rotate_key(OVERLAP_S)
        keys.remember = remember  # type: ignore[method-assign]
        home.machine.databases.is_full = False
        await trio.sleep(3 * OVERLAP_S)
        assert home.machine.identity.site_id != before
        await wait_linked(home, others)

    in_a_mesh(test)


@pytest.mark.parametrize("who_dials", ["the site with the new key", "its peer"])
def test_a_new_key_that_a_full_disk_cannot_note_costs_neither_the_node_nor_the_peer(who_dials: str) -> None:
    async def test(mesh: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin = sites
        (home if who_dials == "its peer" else cabin).catalog.peers.add(
            (cabin if who_dials == "its peer" else home).machine.identity.site_id, name="other", addresses=[]
        )
        home.view.mesh.rotate_key(OVERLAP_S)
        await trio.sleep(OVERLAP_S / 4)
        cabin.machine.databases.is_full = True
        await trio.sleep(OVERLAP_S / 2)
        assert cabin.is_up
        cabin.machine.databases.is_full = False
        await trio.sleep(OVERLAP_S)
        assert home.view.mesh.site()["next_site_id"] is None
        await wait_linked(home, [cabin])

    log = in_a_mesh(test, sites=2)
    assert any(line["event"] == "peer.not_noted" for line in log)


async def _both_keys_at_cabin(sites: list[MemorySite]) -> list[str]:
    """A snapshot by home's first key and one by its second, both at cabin, and then home burns and cabin loses its
    catalogue."""
    home, cabin, _ = sites
    home.sources["/srv/data"] = {"a": bytes(range(256)) * 50}
    home.protect("/srv/data", to=["cabin"])
    snapshots = [await home.snapshot("data")]
    await home.wait_held(snapshots[0], by=cabin)
    home.view.mesh.rotate_key(OVERLAP_S)
    await trio.sleep(2 * OVERLAP_S)
    await wait_linked(home, [cabin])
    home.sources["/srv/data"] = {"a": bytes(reversed(range(256))) * 60}
    snapshots.append(await home.snapshot("data"))
    await home.wait_held(snapshots[1], by=cabin)
    await home.crash()
    await cabin.crash()
    cabin.machine.lose_catalog()
    await cabin.start()
    return snapshots


def test_a_lost_catalogue_costs_no_snapshot_that_a_key_has_signed_of_which_only_it_knew() -> None:
    """Until the peer tells of its change again, the two keys are two sites, and a volume is of one site. What is found
    and cannot be entered yet must not be collected meanwhile."""

    async def test(mesh: MemoryMesh, sites: list[MemorySite]) -> None:
        _, cabin, attic = sites
        snapshots = await _both_keys_at_cabin(sites)
        assert len(cabin.catalog.snapshots()) == 1, "the other is taken for a stranger's"
        await cabin.job("gc", grace_s=0, confirmed=True)
        await mesh.pair(attic, cabin)  # which was told of the change as well, and tells of it
        await trio.sleep(10)
        await cabin.job("gc", grace_s=0, confirmed=True)
        assert sorted(one.snapshot_id.hex() for one in cabin.catalog.snapshots()) == sorted(snapshots)
        assert [await cabin.restore(one) for one in snapshots] == [
            {"a": bytes(range(256)) * 50}, {"a": bytes(reversed(range(256))) * 60},
        ]  # fmt: skip

    in_a_mesh(test)


def test_what_a_person_gives_up_of_it_is_collected() -> None:
    async def test(_: MemoryMesh, sites: list[MemorySite]) -> None:
        _, cabin, _ = sites
        await _both_keys_at_cabin(sites)
        kept = await cabin.job("gc", grace_s=0, confirmed=True)
        assert kept["blocks_swept"] == 0
        gone = await cabin.job("gc", grace_s=0, confirmed=True, give_up=True)
        assert gone["blocks_swept"] > 0
        assert len(cabin.catalog.snapshots()) == 1

    in_a_mesh(test)


def test_a_record_that_rots_before_its_key_is_known_again_stops_the_collection_until_it_is_healed() -> None:
    async def test(mesh: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin, _ = sites
        snapshots = await _both_keys_at_cabin(sites)
        entered = {one.record_block for one in cabin.catalog.snapshots()}
        [stray] = [
            block for block in cabin.blocks() if cabin.machine.disk.kind(block) == Kind.RECORD and block not in entered
        ]
        cabin.rot(stray)
        await cabin.job("scrub")
        with pytest.raises(JobError, match="nothing is collected"):
            await cabin.job("gc", grace_s=0, confirmed=True)
        await home.start()
        await mesh.pair(home, cabin)
        await trio.sleep(60)
        await cabin.job("gc", grace_s=0, confirmed=True)
        assert sorted(one.snapshot_id.hex() for one in cabin.catalog.snapshots()) == sorted(snapshots)

    in_a_mesh(test)


@pytest.mark.parametrize("kind", [Kind.NODE, Kind.DATA])
def test_a_block_that_breaks_before_the_key_is_known_again_does_not_cost_the_snapshot(kind: Kind) -> None:
    async def test(mesh: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin, attic = sites
        snapshots = await _both_keys_at_cabin(sites)
        [entered] = cabin.catalog.snapshots()
        needed = set(await _needed(cabin, entered))
        ours = [one for one in cabin.blocks() if one not in needed and cabin.machine.disk.kind(one) == kind]
        assert ours
        cabin.rot(ours[0])
        await cabin.job("scrub")
        await mesh.pair(attic, cabin)  # It tells of the key, and has none of the blocks.
        await trio.sleep(10)
        with suppress(JobError):
            await cabin.job("gc", grace_s=0, confirmed=True)
        await home.start()
        await mesh.pair(home, cabin)
        cabin.view.mesh.set_rights("home", PolicyRequest(deny=["offer"]))  # It mends, and does not send all again.
        await trio.sleep(60)
        await cabin.job("gc", grace_s=0, confirmed=True)
        assert sorted(one.snapshot_id.hex() for one in cabin.catalog.snapshots()) == sorted(snapshots)

    in_a_mesh(test)


async def _needed(site: MemorySite, snapshot: Snapshot) -> list[BlockId]:
    record = snapshot.record
    found: list[BlockId] = []
    async for _, packed in closure(site.node.parts.reader, record.root, record.shape):
        found += split_ids(packed)
    return found


def test_a_catalogue_that_cannot_be_read_for_a_while_costs_a_link_and_not_the_node() -> None:
    """A page of SQLite that a disk gave wrongly once, while a peer was dialled or was dialling, ended the node."""

    async def test(mesh: MemoryMesh, sites: list[MemorySite]) -> None:
        home, cabin = sites
        for site, other in ((home, cabin), (cabin, home)):
            net = site.node.mesh
            book, real = net._book, net._book.peer_ids

            def refuse() -> list[SiteId]:
                raise DatabaseDamaged("a page makes no sense")

            net.trust_changed()  # What it shows to others has to be made anew.
            book.peer_ids = refuse  # type: ignore[method-assign]
            for link in net.connected():
                link.close(ErrorCode.STOPPING, "a new line is needed")
            await trio.sleep(60)
            assert site.is_up
            book.peer_ids = real  # type: ignore[method-assign]
            net.trust_changed()
            await wait_linked(site, [other])

    in_a_mesh(test, sites=2)
