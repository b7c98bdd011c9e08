"""What the catalogue hands out: frozen rows."""

from dataclasses import dataclass

from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from replicator.catalog.records import SnapshotRecord
from replicator.catalog.rights import Rights
from replicator.catalog.terms import ANY_SNAPSHOT, SyncTerms

EVERY_VOLUME = VolumeId(b"")
"""In a site sync: whatever is here, also what comes later and from elsewhere."""


@dataclass(frozen=True, slots=True)
class Peer:
    site_id: SiteId
    name: str
    addresses: tuple[str, ...]
    added_ns: int
    last_seen_ns: int | None
    rights: Rights
    introduced_by: SiteId | None = None


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
    """A standing order: snapshots of a volume go to, or come from, a peer. An empty volume id is every volume."""

    sync_id: str
    volume_id: VolumeId
    peer: SiteId
    keep: str
    """Which copies the destination should keep. For a pull that is our own rule."""
    paused: bool
    last_success_ns: int | None
    last_error: str
    failures: int
    next_try_ns: int
    terms: SyncTerms = ANY_SNAPSHOT
    next_run_ns: int = 0
    """When its schedule comes next; 0 if that is not known yet, or if it has none."""
    needs_person: bool = False
    """The last error is one that trying again will not mend."""


@dataclass(frozen=True, slots=True)
class CopyRule:
    """What this site has decided about copies of a volume that comes from elsewhere."""

    volume_id: VolumeId
    keep: str
    prefix: str
    is_passive: bool
    decided_by: str
    """`here`, or the hex id of the peer whose wish was granted."""
    asked_keep: str
    """What the sender would like, if that is not what holds."""


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A bandwidth rule as it was written. An empty scope is the node."""

    scope: bytes
    way: str
    text: str
    zone: str
    burst_s: float


@dataclass(frozen=True, slots=True)
class Succession:
    """A site's key and the one that takes its place, as both have signed it."""

    old: SiteId
    new: SiteId
    until_ns: int
    sequence_max: int
    by_old: bytes
    by_new: bytes
    told: frozenset[bytes] = frozenset()
    """For a key of our own: which peers have noted it."""


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
