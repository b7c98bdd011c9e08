"""The catalogue against a few dictionaries: snapshots, holds, deletes and receipts, over any number of restarts."""

import shutil
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.nodes import EMPTY_ROOTS, Shape
from replicator.catalog.records import SnapshotRecord, sign_record
from replicator.core.errors import Held, NotFound, Untrusted
from tests.support.clocks import FakeWallClock

HOME, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([one]) * 32) for one in (1, 2))
VOLUMES = [VolumeId(bytes([one]) * 16) for one in (1, 2)]
PEERS = [SiteId(bytes([one]) * 32) for one in (7, 8)]
MEMORY = Path("/dev/shm")
PICKS = st.integers(0, 50)


def record_of(number: int, volume: VolumeId, sequence: int, *, by: Ed25519PrivateKey = HOME) -> bytes:
    record = SnapshotRecord(
        snapshot_id=SnapshotId(number.to_bytes(16, "big")), origin=SiteId(by.public_key().public_bytes_raw()),
        volume_id=volume, volume_name="v", kind="tree", sequence=sequence, taken_ns=1, root=EMPTY_ROOTS[Shape.NAMES],
        size_bytes=0, entries=1, block_bytes=0, consistency="crash", tags=(), system_id=b"", system_size=1, skipped=0,
    )  # fmt: skip
    return sign_record(record, by.sign)


class CatalogueMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="catalogue-machine-", dir=MEMORY if MEMORY.is_dir() else None))
        self.clock = FakeWallClock()
        self.catalog = Catalog(self.folder / "catalog.sqlite", clock=self.clock)
        self.numbers = 0
        self.here: dict[SnapshotId, tuple[VolumeId, int, str]] = {}
        self.signed: dict[SnapshotId, bytes] = {}
        self.receipts: set[tuple[SnapshotId, SiteId]] = set()
        self.given: dict[VolumeId, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
            shutil.rmtree(self.folder)

    @rule()
    def restart(self) -> None:
        self.catalog.close()
        self.catalog = Catalog(self.folder / "catalog.sqlite", clock=self.clock)

    @rule(volume=st.sampled_from(VOLUMES))
    def take(self, volume: VolumeId) -> None:
        self.clock.advance(1)
        self.numbers += 1
        sequence = self.catalog.next_sequence(volume)
        assert sequence == self.given.get(volume, 0) + 1, "no number is given out twice, deleted ones included"
        self.given[volume] = sequence
        signed = record_of(self.numbers, volume, sequence)
        snapshot = self.catalog.add_snapshot(signed, BlockId(bytes(32)))
        self.here[snapshot.snapshot_id] = (volume, sequence, "")
        self.signed[snapshot.snapshot_id] = signed

    @rule(pick=PICKS)
    @precondition(lambda self: self.signed)
    def receive_again(self, pick: int) -> None:
        """Also one that was deleted meanwhile: it has been sent once more."""
        name = sorted(self.signed)[pick % len(self.signed)]
        snapshot = self.catalog.add_snapshot(self.signed[name], BlockId(bytes(32)))
        self.here.setdefault(name, (snapshot.record.volume_id, snapshot.record.sequence, ""))

    @rule(pick=PICKS)
    @precondition(lambda self: self.here)
    def somebody_else_puts_one_on_top(self, pick: int) -> None:
        name = sorted(self.here)[pick % len(self.here)]
        volume, sequence, _ = self.here[name]
        with pytest.raises(Untrusted):
            self.catalog.add_snapshot(record_of(10_000 + pick, volume, sequence + 1, by=STRANGER), BlockId(bytes(32)))

    @rule(pick=PICKS, reason=st.sampled_from(["", "an audit"]))
    @precondition(lambda self: self.here)
    def hold(self, pick: int, reason: str) -> None:
        name = sorted(self.here)[pick % len(self.here)]
        self.catalog.hold(name, reason)
        self.here[name] = (*self.here[name][:2], reason)

    @rule(picks=st.lists(PICKS, min_size=1, max_size=3))
    @precondition(lambda self: self.here)
    def delete(self, picks: list[int]) -> None:
        """All of them or, if one is held, none."""
        names = sorted({sorted(self.here)[pick % len(self.here)] for pick in picks})
        if any(self.here[name][2] for name in names):
            with pytest.raises(Held):
                self.catalog.delete_snapshots(names)
            return
        self.catalog.delete_snapshots(names)
        for name in names:
            del self.here[name]

    @rule(number=st.integers(1, 60))
    def delete_what_is_not_there(self, number: int) -> None:
        name = SnapshotId(number.to_bytes(16, "big"))
        if name not in self.here:
            with pytest.raises(NotFound):
                self.catalog.delete_snapshots([name])

    @rule(pick=PICKS, peer=st.sampled_from(PEERS))
    @precondition(lambda self: self.here)
    def sign_for(self, pick: int, peer: SiteId) -> None:
        name = sorted(self.here)[pick % len(self.here)]
        self.catalog.add_receipt(name, peer, b"signed")
        self.receipts.add((name, peer))

    @rule(peer=st.sampled_from(PEERS))
    def be_reborn(self, peer: SiteId) -> None:
        lost = {one for one in self.receipts if one[1] == peer}
        assert self.catalog.forget_receipts(peer) == len(lost)
        self.receipts -= lost

    @invariant()
    @precondition(lambda self: hasattr(self, "catalog"))
    def it_says_what_was_done(self) -> None:
        for volume in VOLUMES:
            found = [(one.snapshot_id, one.record.sequence, one.held) for one in self.catalog.snapshots(volume)]
            known = [(name, seq, held) for name, (of, seq, held) in self.here.items() if of == volume]
            assert found == sorted(known, key=lambda one: one[1])
        assert {one.snapshot_id for one in self.catalog.snapshots()} == self.here.keys()
        assert self.catalog.receipts().keys() == self.receipts


TestCatalogue = CatalogueMachine.TestCase
TestCatalogue.settings = settings(stateful_step_count=30)
