"""What a node still knows after it has lost its memory, and what it no longer believes."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.ids import SiteId, SnapshotId, VolumeId
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.nodes import EMPTY_ROOTS, Shape
from replicator.catalog.records import SnapshotRecord, open_record, sign_record
from replicator.core.ports import SystemClock
from replicator.jobs.recovery import recover_snapshots
from replicator.store.local import LocalStore
from replicator.sync.receive import store_record

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
            assert recover_snapshots(store, catalog, names[:1]) == 1, "a recovery that was cut"
            assert recover_snapshots(store, catalog, names) == 2, "is simply made again"
            assert recover_snapshots(store, catalog, names) == 0
            assert {one.record.sequence for one in catalog.snapshots()} == {1, 2, 3}
            assert {one.record_block for one in catalog.snapshots()} == set(names)


def test_what_was_deleted_here_on_purpose_does_not_come_back(tmp_path: Path) -> None:
    with (
        closing(LocalStore.open(tmp_path / "store")) as store,
        closing(Catalog(tmp_path / "catalog.sqlite", clock=SystemClock())) as catalog,
    ):
        lease = store.begin("test")
        names = [store_record(store, lease, signed_record(number)) for number in (1, 2)]
        gone = catalog.add_snapshot(signed_record(1), names[0]).snapshot_id
        catalog.add_snapshot(signed_record(2), names[1])
        catalog.delete_snapshots([gone])
        assert recover_snapshots(store, catalog, names) == 0
        catalog.add_snapshot(signed_record(1), names[0])  # A peer sends it once more.
        assert catalog.unexplained_records(names) == []


def test_the_record_of_a_snapshot_that_was_taken_twice_is_not_a_second_snapshot(tmp_path: Path) -> None:
    """Killed between the record and the catalogue: the job runs again and signs another record for the same id."""
    with (
        closing(LocalStore.open(tmp_path / "store")) as store,
        closing(Catalog(tmp_path / "catalog.sqlite", clock=SystemClock())) as catalog,
    ):
        lease = store.begin("test")
        first = sign_record(replace(open_record(signed_record(1)), taken_ns=77), KEY.sign)
        names = [store_record(store, lease, signed) for signed in (first, signed_record(1))]
        catalog.add_snapshot(signed_record(1), names[1])
        assert recover_snapshots(store, catalog, names) == 0
        assert [one.record.taken_ns for one in catalog.snapshots()] == [1]


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
