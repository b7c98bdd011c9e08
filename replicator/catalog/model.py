"""What the catalogue hands out: frozen rows."""

from dataclasses import dataclass

from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from replicator.catalog.records import SnapshotRecord


@dataclass(frozen=True, slots=True)
class Peer:
    site_id: SiteId
    name: str
    addresses: tuple[str, ...]
    added_ns: int
    last_seen_ns: int | None


@dataclass(frozen=True, slots=True)
class Volume:
    """Something protected. `path` is None for a copy that came from another site."""

    volume_id: VolumeId
    name: str
    kind: str
    origin: SiteId
    path: bytes | None
    block_bytes: int
    exclude: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is here, whole."""

    record: SnapshotRecord
    signed: bytes
    record_block: BlockId
    received_ns: int
    held: str

    @property
    def snapshot_id(self) -> SnapshotId:
        return self.record.snapshot_id


@dataclass(frozen=True, slots=True)
class Protection:
    """A standing promise for one volume."""

    volume_id: VolumeId
    every_s: float
    keep: str
    next_run_ns: int
    last_success_ns: int | None
    last_error: str


@dataclass(frozen=True, slots=True)
class SiteSync:
    """A volume (or, with an empty id, every volume) that goes to a peer after each snapshot."""

    sync_id: str
    volume_id: VolumeId
    peer: SiteId
    keep: str
    paused: bool
    last_success_ns: int | None
    last_error: str
    failures: int
    next_try_ns: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """A peer promised a snapshot of a volume at least every so often."""

    volume_id: VolumeId
    peer: SiteId
    every_s: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class RepairLine:
    """One line of the audit."""

    at_ns: int
    block_id: BlockId
    kind: int
    cause: str
    role: str
    peer: str
    outcome: str
    took_s: float
