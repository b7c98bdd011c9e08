"""Incidents that take a whole node: catalogue, retention, restores, peers."""

from pathlib import Path
from typing import Any

import pytest

from protocol.ids import BlockId, SnapshotId
from replicator.api.schema import IncomingRequest
from replicator.app.peers import CataloguedPeers
from replicator.catalog.manifest.entries import check_key
from replicator.catalog.model import Snapshot
from replicator.catalog.retention import Candidate, plan_retention
from replicator.core.errors import CatalogError, Held, ManifestDamaged, NotFound, StoreError, UsageError
from replicator.core.progress import Progress
from replicator.jobs.care import CareJobs
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.pruning import prune_volume
from replicator.jobs.runner import JobContext
from replicator.monitor.alerts import find_alerts
from tests.support.clocks import FakeMonotonic
from tests.support.nodes import Site, a_pair, open_site, write_tree
from tests.support.store import damage

HOUR_NS = 3600 * 10**9


def context(kind: str, **args: Any) -> JobContext:
    return JobContext(kind, kind, args, Progress(clock=FakeMonotonic()))


async def gc(site: Site, **args: Any) -> dict[str, Any]:
    return await CollectionJobs(site.parts).collect(context("gc", **{"grace_s": 0, "confirmed": True, **args}))


async def taken(site: Site, folder: Path, count: int = 1) -> list[Snapshot]:
    volume = site.protect(write_tree(folder, files=4, size=1000))
    found = []
    for number in range(count):
        (folder / "changing").write_bytes(b"%d" % number)
        found.append(await site.take(volume))
    return found


async def test_08_every_snapshot_that_appeared_since_the_list_was_made_counts(
    home: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicacy 2.1.1: some new snapshots were not counted when it was decided what is garbage."""
    _, second = await taken(home, tmp_path / "data", 2)
    home.catalog.delete_snapshots([second.snapshot_id])
    await gc(home, grace_s=3600)
    real, was_there = home.parts.reader.read, False

    async def publish_meanwhile(ids: list[BlockId]) -> Any:
        nonlocal was_there
        if not was_there:
            was_there = True
            home.catalog.add_snapshot(second.signed, second.record_block)
        return await real(ids)

    monkeypatch.setattr(home.parts.reader, "read", publish_meanwhile)
    await gc(home)
    assert second.record.root in b"".join(home.store.ids()) and home.store.statistics().condemned_blocks == 0


async def test_09_repair_without_help_deletes_nothing(home: Site, tmp_path: Path) -> None:
    """borg#3444, #1837: items that could not be validated were dropped from the archive."""
    [snapshot] = await taken(home, tmp_path / "data")
    damage(home.store, snapshot.record.root)
    found = await CareJobs(home.parts).scrub(context("scrub", from_start=True))
    assert found["unhealed"] == 1
    assert [one.snapshot_id for one in home.catalog.snapshots()] == [snapshot.snapshot_id]
    segments = b"".join(path.read_bytes() for path in (tmp_path / "home" / "store" / "segments").iterdir())
    assert snapshot.record.root in segments


async def test_13_a_number_that_was_given_is_not_given_again_when_its_snapshot_is_dropped(
    home: Site, tmp_path: Path
) -> None:
    """borg#10371: archives dropped or rolled back without a trace. A peer that has seen number 2 knows a second 2."""
    first, second = await taken(home, tmp_path / "data", 2)
    home.catalog.delete_snapshots([second.snapshot_id])
    third = await home.take(home.catalog.volume(first.record.volume_id))
    assert (second.record.sequence, third.record.sequence) == (2, 3)


def test_17_a_forged_time_makes_no_snapshot_newer() -> None:
    """restic#22057: a client that may only append sets its clock to 2099, and the rule drops the good ones."""
    ours = [Candidate(SnapshotId(bytes([n]) * 16), n, n * HOUR_NS, "") for n in range(1, 6)]
    forged = Candidate(SnapshotId(b"f" * 16), 0, 10**18, "")
    stay = {one.snapshot_id for one in plan_retention("3", [*ours, forged]) if one.reason}
    assert stay == {one.snapshot_id for one in ours[-3:]}


async def test_17_a_source_that_floods_its_copies_pushes_out_nothing_and_is_told_of(tmp_path: Path) -> None:
    """The same client, with its own clock left alone: it just sends. (Days pass by writing down another time.)"""
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(write_tree(tmp_path / "data", files=1, size=10))
        good = await home.take(volume)
        await home.send(good, cabin)
        a_day = 86_400 * 10**9
        with cabin.catalog.db.write() as connection:
            connection.execute("UPDATE snapshots SET received_ns = received_ns - ?", (a_day,))
        decide = cabin.living.view.syncs.decide
        assert decide(IncomingRequest(volume="data", keep="3", quota=4))["quota"] == 4
        sent = []
        for _ in range(12):
            sent.append(await home.take(volume))
            await home.send(sent[-1], cabin)
        here = [one.snapshot_id for one in cabin.catalog.snapshots(volume.volume_id)]
        assert good.snapshot_id in here and sent[0].snapshot_id in here and sent[-1].snapshot_id in here
        assert len(here) <= 2 + 4
        [alert] = [one for one in find_alerts(cabin.parts, cabin.mesh, started_ns=0) if one.kind == "copies_crowded"]
        assert alert.subject == "home/data" and "--quota" in alert.hint
        with pytest.raises(UsageError):
            decide(IncomingRequest(volume="data", quota=1))


async def test_20_a_peer_that_lost_its_state_has_signed_for_nothing(home: Site, tmp_path: Path) -> None:
    """Syncthing#6335, #3876: numbers used again after a crash, and a wiped database whose silence was believed."""
    [snapshot] = await taken(home, tmp_path / "data")
    peer = b"p" * 32
    home.catalog.peers.add(peer, name="cabin", addresses=[])
    book = CataloguedPeers(home.catalog, site_id=home.parts.site_id)
    book.note_incarnation(peer, b"1" * 16)
    home.catalog.add_receipt(snapshot.snapshot_id, peer, b"signed")
    book.note_incarnation(peer, b"1" * 16)
    assert len(home.catalog.receipts()) == 1
    book.note_incarnation(peer, b"2" * 16)
    assert home.catalog.receipts() == {}


async def test_24_the_last_snapshot_that_both_sides_know_is_not_pruned(home: Site, tmp_path: Path) -> None:
    """zrepl#340: no common base is left, and everything has to travel again."""
    snapshots = await taken(home, tmp_path / "data", 4)
    volume, peer = home.catalog.volume(snapshots[0].record.volume_id), b"p" * 32
    home.catalog.peers.add(peer, name="cabin", addresses=[])
    home.catalog.add_sync("s", volume_id=volume.volume_id, peer=peer, keep="")
    home.catalog.add_receipt(snapshots[1].snapshot_id, peer, b"signed")
    home.catalog.set_protection(volume.volume_id, every_s=3600, keep="1")
    prune_volume(home.parts, volume)
    assert [one.record.sequence for one in home.catalog.snapshots(volume.volume_id)] == [2, 4]


def test_25_a_day_with_a_wrong_clock_hides_no_snapshot_for_years() -> None:
    """sanoid#815: the oldest was chosen wrongly, and nothing was sent any more."""
    wrong = Candidate(SnapshotId(b"w" * 16), 1, 2 * 10**18, "")  # 2033, by a clock that was set right afterwards.
    right = [Candidate(SnapshotId(bytes([n]) * 16), n, 10**18 + n * HOUR_NS, "") for n in range(2, 9)]
    stay = [one.snapshot_id for one in plan_retention("3h", [wrong, *right]) if one.reason]
    assert stay == [one.snapshot_id for one in reversed(right[-3:])]


@pytest.mark.parametrize("key", [b"..\0etc", b"a\0..\0b", b"a/../../b", b"\0etc", b".", b"a\0\0b", b"n" * 256])
def test_27_a_snapshot_is_hostile_until_its_paths_are_checked(key: bytes) -> None:
    """borg CVE-2026-62268, rsync CVE-2024-12086: names that lead out of the folder."""
    with pytest.raises(ManifestDamaged):
        check_key(key)


async def test_32_a_call_that_names_one_thing_too_many_deletes_nothing(home: Site, tmp_path: Path) -> None:
    """Atlassian 2022: ids of two types in one list."""
    first, second = await taken(home, tmp_path / "data", 2)
    home.catalog.hold(second.snapshot_id, "audit")
    for wrong, error in ((second.snapshot_id, Held), (first.record.volume_id, NotFound)):
        with pytest.raises(error):
            home.catalog.delete_snapshots([first.snapshot_id, wrong])  # type: ignore[list-item]
        assert len(home.catalog.snapshots()) == 2


async def test_32_deleted_by_mistake_is_undone_inside_the_grace(home: Site, tmp_path: Path) -> None:
    """Kyoto 2021: 77 TB, at once and for good."""
    first, second = await taken(home, tmp_path / "data", 2)
    home.catalog.delete_snapshots([first.snapshot_id, second.snapshot_id])
    done = await gc(home, grace_s=86_400)
    assert done["blocks_condemned"] > 0
    await gc(home, grace_s=86_400)
    undone = await CollectionJobs(home.parts).collect(context("gc", undo=True))
    assert undone["undone"] == done["blocks_condemned"]
    for one in (first, second):
        home.catalog.add_snapshot(one.signed, one.record_block)
    found = await CareJobs(home.parts).verify(context("verify"))
    assert (found["snapshots"], found["damaged"]) == (2, 0)


def test_33_only_one_connection_writes_and_so_only_one_checkpoints(tmp_path: Path) -> None:
    """SQLite up to 3.51.2 could corrupt a file whose checkpoints two connections made at once."""
    with open_site(tmp_path / "home", "home") as home:
        reader = home.catalog.db.read()
        with pytest.raises(StoreError, match="readonly"):
            reader.execute("INSERT INTO facts VALUES ('a', 'b')")
        with pytest.raises(StoreError, match="readonly"):
            reader.execute("DELETE FROM snapshots")


async def test_08_nothing_is_judged_by_a_catalogue_with_a_row_that_cannot_be_read(home: Site, tmp_path: Path) -> None:
    """Left out, its snapshot would look deleted, and its blocks like garbage."""
    first, _ = await taken(home, tmp_path / "data", 2)
    with home.catalog.db.write() as connection:
        sql = "UPDATE snapshots SET record = zeroblob(300) WHERE snapshot_id = ?"
        connection.execute(sql, (first.snapshot_id,))
    home.catalog._records.clear()
    with pytest.raises(CatalogError):
        await gc(home)
    assert home.store.statistics().condemned_blocks == 0
