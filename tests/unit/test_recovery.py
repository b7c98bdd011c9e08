"""What a node still knows after it has lost its memory, and what it no longer believes."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.ids import SiteId, SnapshotId, VolumeId
from protocol.wire.hashing import Kind
from replicator.app.recovery import recover_snapshots
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.nodes import EMPTY_ROOTS, Shape
from replicator.catalog.records import SnapshotRecord, open_record, sign_record
from replicator.core.errors import CatalogError
from replicator.core.ports import SystemClock
from replicator.core.progress import Progress
from replicator.jobs import snapshot as snapshot_jobs
from replicator.jobs.care import CareJobs
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.runner import JobContext
from replicator.jobs.snapshot import SnapshotJobs
from replicator.repair.unread import RecordsUnread
from replicator.store.local import LocalStore
from replicator.sync.publish import store_record
from tests.support.nodes import Site, a_pair, open_site, running, trust, write_tree
from tests.support.store import damage

KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
SITE = SiteId(KEY.public_key().public_bytes_raw())


def signed_record(number: int) -> bytes:
    record = SnapshotRecord(
        snapshot_id=SnapshotId(bytes(15) + bytes([number])), origin=SITE, volume_id=VolumeId(bytes(16)),
        volume_name="data", kind="tree", sequence=number, taken_ns=number, root=EMPTY_ROOTS[Shape.NAMES], size_bytes=0,
        entries=0, block_bytes=0, consistency="crash", tags=(), system_id=b"", system_size=1, skipped=0,
    )  # fmt: skip
    return sign_record(record, KEY.sign)


def test_snapshots_are_found_again_in_the_store_when_the_catalogue_is_lost(tmp_path: Path) -> None:
    with closing(LocalStore.open(tmp_path / "store")) as store:
        lease = store.begin("test")
        names = [store_record(store, lease, signed_record(number)) for number in (1, 2, 3)]
        with closing(Catalog(tmp_path / "lost.sqlite", clock=SystemClock())) as catalog:
            catalog.add_snapshot(signed_record(2), names[1])
        with closing(Catalog(tmp_path / "new.sqlite", clock=SystemClock())) as catalog:
            assert catalog.snapshots() == []
            assert recover_snapshots(store, catalog) == 3
            assert recover_snapshots(store, catalog) == 3, "a recovery that was cut is simply made again"
            assert {one.record.sequence for one in catalog.snapshots()} == {1, 2, 3}
            assert {one.record_block for one in catalog.snapshots()} == set(names)


def test_a_peer_that_has_lost_its_state_has_proven_nothing(tmp_path: Path) -> None:
    """The same key with a new incarnation: what it once signed for must be sent again."""
    with closing(Catalog(tmp_path / "catalog.sqlite", clock=SystemClock())) as catalog:
        peer = SiteId(b"p" * 32)
        catalog.peers.add(peer, name="cabin", addresses=[])
        catalog.add_receipt(SnapshotId(bytes(16)), peer, b"receipt")
        assert not catalog.peers.note_incarnation(peer, b"1" * 16), "the first one is no news"
        assert not catalog.peers.note_incarnation(peer, b"1" * 16)
        assert catalog.receipts()
        assert catalog.peers.note_incarnation(peer, b"2" * 16)
        assert catalog.forget_receipts(peer) == 1
        assert catalog.receipts() == {}


# -- nodes ------------------------------------------------------------------------------------


def copy_catalog(site: Site, target: Path) -> None:
    """As the manual says to."""
    with closing(sqlite3.connect(target)) as copy:
        site.catalog.db.read().backup(copy)


async def care(site: Site, kind: str, **args: object) -> dict[str, object]:
    run = {"gc": CollectionJobs(site.parts).collect, "repair": CareJobs(site.parts).repair}[kind]
    return await run(JobContext("test", kind, dict(args), Progress(clock=lambda: 0.0)))


async def test_a_copy_of_the_catalogue_that_is_older_than_the_newest_snapshot_does_not_cost_that_snapshot(
    tmp_path: Path,
) -> None:
    """Putting a copy back is what the error tells people to do."""
    state = tmp_path / "home"
    with open_site(state, "home") as site:
        volume = site.protect(write_tree(tmp_path / "data", files=2, size=5000))
        await site.take(volume)
        copy_catalog(site, tmp_path / "copy")
        (tmp_path / "data/late").write_bytes(b"late" * 1000)
        newest = await site.take(volume)
    shutil.copy(tmp_path / "copy", state / "catalog.sqlite")
    with open_site(state, "home") as site:
        assert site.holds(newest)
        await care(site, "gc", grace_s=0)
        assert not site.store.read([newest.record_block]).faults


async def test_also_after_a_crash_and_a_catalogue_that_could_not_be_opened(tmp_path: Path) -> None:
    state, crashed = tmp_path / "home", tmp_path / "crashed"
    with open_site(state, "home") as site:
        volume = site.protect(write_tree(tmp_path / "data", files=2, size=5000))
        copy_catalog(site, tmp_path / "copy")
        newest = await site.take(volume)
        shutil.copytree(state, crashed)  # As kill -9 would leave it.
    for suffix in ("-wal", "-shm"):
        (crashed / f"catalog.sqlite{suffix}").unlink(missing_ok=True)
    (crashed / "catalog.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(CatalogError, match="cannot be used"), open_site(crashed, "home"):
        pass
    shutil.copy(tmp_path / "copy", crashed / "catalog.sqlite")
    with open_site(crashed, "home") as site:
        assert site.holds(newest)


async def test_a_copy_from_the_same_run_put_back_after_a_crash_costs_no_snapshot_either(tmp_path: Path) -> None:
    """Nothing was opened or closed since it was made, so store and catalogue agree; a collection sees the record."""
    state, crashed = tmp_path / "home", tmp_path / "crashed"
    with open_site(state, "home") as site:
        volume = site.protect(write_tree(tmp_path / "data", files=2, size=5000))
        gone = await site.take(volume)
        copy_catalog(site, tmp_path / "copy")
        (tmp_path / "data/late").write_bytes(b"late" * 1000)
        newest = await site.take(volume)
        shutil.copytree(state, crashed)
    for suffix in ("-wal", "-shm"):
        (crashed / f"catalog.sqlite{suffix}").unlink(missing_ok=True)
    shutil.copy(tmp_path / "copy", crashed / "catalog.sqlite")
    with open_site(crashed, "home") as site:
        site.catalog.delete_snapshots([gone.snapshot_id])
        await care(site, "gc", grace_s=0, confirmed=True)
        assert site.holds(newest)
        assert not site.holds(gone), "and what was deleted on purpose stays away"
        assert not site.store.read([newest.record_block]).faults


async def test_a_restart_brings_no_deleted_snapshot_back(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as site:
        snapshot = await site.take(site.protect(write_tree(tmp_path / "data", files=1, size=10)))
        site.catalog.delete_snapshots([snapshot.snapshot_id])
    for _ in range(2):
        with open_site(tmp_path / "home", "home") as site:
            assert not site.holds(snapshot)
    with open_site(tmp_path / "home", "home"):
        shutil.copytree(tmp_path / "home", tmp_path / "crashed")
    with open_site(tmp_path / "crashed", "home") as site:
        assert not site.holds(snapshot)


def flip_record(connection: sqlite3.Connection) -> None:
    [(signed,)] = connection.execute("SELECT record FROM snapshots").fetchall()
    flipped = bytearray(signed)
    flipped[len(signed) // 2] ^= 4
    connection.execute("UPDATE snapshots SET record = ?", (bytes(flipped),))


def flip_name(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE snapshots SET record_block = zeroblob(32)")


def flip_id(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE snapshots SET snapshot_id = zeroblob(16)")


@pytest.mark.parametrize("flip", [flip_record, flip_name, flip_id])
async def test_a_row_that_rots_is_put_back_from_the_store(
    tmp_path: Path, flip: Callable[[sqlite3.Connection], None]
) -> None:
    with open_site(tmp_path / "home", "home") as site:
        snapshot = await site.take(site.protect(write_tree(tmp_path / "data", files=1, size=10)))
    with closing(sqlite3.connect(tmp_path / "home/catalog.sqlite")) as connection, connection:
        flip(connection)
    with open_site(tmp_path / "home", "home") as site:
        [found] = site.catalog.snapshots()
        assert (found.signed, found.record_block) == (snapshot.signed, snapshot.record_block)


@pytest.mark.parametrize("sql", ["'[a'", "CAST(x'ff' AS TEXT)"])
def test_rows_that_say_nothing_any_more_are_an_error_with_a_next_step(tmp_path: Path, sql: str) -> None:
    with open_site(tmp_path / "home", "home") as site:
        site.protect(write_tree(tmp_path / "data", files=1, size=10))
    with closing(sqlite3.connect(tmp_path / "home/catalog.sqlite")) as connection, connection:
        connection.execute(f"UPDATE volumes SET exclude = {sql}")
    with pytest.raises(CatalogError, match=r"catalog.sqlite.*copy"), open_site(tmp_path / "home", "home"):
        pass


async def test_while_a_record_is_unread_nothing_is_collected_until_it_is_back_or_given_up(tmp_path: Path) -> None:
    """The catalogue is lost, and of one snapshot the record in the store is broken too."""
    async with a_pair(tmp_path) as (home, cabin):
        kept = await home.take(home.protect(write_tree(tmp_path / "kept", files=2, size=5000)))
        lost = await home.take(home.protect(write_tree(tmp_path / "lost", files=2, size=5000, seed=1)))
        for snapshot in (kept, lost):
            await home.send(snapshot, cabin)
        blocks = home.block_ids()
        shutil.copytree(tmp_path / "home", tmp_path / "burnt")
    (tmp_path / "burnt/catalog.sqlite").unlink()
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"burnt/catalog.sqlite{suffix}").unlink(missing_ok=True)
    with closing(LocalStore.open(tmp_path / "burnt/store")) as store:
        damage(store, lost.record_block)
    with open_site(tmp_path / "burnt", "home") as home:
        assert home.holds(kept) and not home.holds(lost)
        for dry_run in (True, False):
            with pytest.raises(RecordsUnread, match="1 snapshot records cannot be read"):
                await care(home, "gc", grace_s=0, dry_run=dry_run)
        assert blocks <= home.block_ids() | {lost.record_block}
    with open_site(tmp_path / "burnt", "home") as home:
        assert home.catalog.lost.unread() == [lost.record_block], "a restart forgets nothing of it"
        shutil.copytree(tmp_path / "burnt", tmp_path / "hopeless")
    with open_site(tmp_path / "hopeless", "home") as home:
        await care(home, "gc", grace_s=0, give_up=True)
        assert home.catalog.lost.unread() == [] and len(home.block_ids()) < len(blocks)
    with open_site(tmp_path / "burnt", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            trust(home, cabin)
            await home.link_to(cabin)
            await care(home, "gc", grace_s=0)
            assert home.holds(lost) and home.catalog.lost.unread() == []
            assert blocks <= home.block_ids()


async def test_a_snapshot_that_was_cut_before_its_row_shares_its_id_with_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job runs again after a kill. Two records of one id: after a lost catalogue the one that no peer has was
    entered, and every peer refused it for ever, as another snapshot of a known id."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with open_site(tmp_path / "home", "home") as site:
        volume = site.protect(write_tree(tmp_path / "data", files=2, size=5000))
        args = {"volumes": [volume.volume_id.hex()], "tags": []}
        progress = Progress(clock=lambda: 0.0)
        for is_again in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(snapshot_jobs, "publish_snapshot", killed)
                with pytest.raises((Killed, BaseExceptionGroup)):
                    await SnapshotJobs(site.parts).run(JobContext("a", "snapshot", args, progress, is_again=is_again))
        for count in (1, 0):
            done = await SnapshotJobs(site.parts).run(JobContext("a", "snapshot", args, progress, is_again=True))
            assert len(done["snapshots"]) == count
            site.catalog.set_fact("snapshot.runs:a", "2")  # Killed once more, after its row.
        site.store.flush()
        blocks = site.store.of_kind(Kind.RECORD)
        ids = [open_record(bytes(body)).snapshot_id for body in site.store.read(blocks).sound.values()]
        assert len(ids) == 3 and len(set(ids)) == 3
