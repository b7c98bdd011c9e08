"""Offering snapshots, and the difference between two manifests.

The sender of a snapshot offers; the receiver drives everything that follows on streams of
its own, and ends the offer with a signed receipt.
"""

from dataclasses import dataclass
from typing import Annotated

from protocol.limits import SNAPSHOT_RECORD_MAX
from protocol.messages.fields import Ids, Root, Roots, Signature, Site, Snapshot
from protocol.messages.registry import Message, Size, message


@message(code=0x20, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class OfferSnapshot(Message):
    """Here is a snapshot that you should hold. Answered by `SyncProgress`, then `Receipt`."""

    record: Annotated[bytes, Size(1, multiple=True, most=SNAPSHOT_RECORD_MAX)]
    """A signed snapshot record, as its origin wrote it (`docs/storage.md`)."""
    every_s: int
    """The promise: a snapshot of this volume will follow at least this often. 0 for none."""
    job: str
    """The sender's name for this piece of work: both sites log it, so that their lines can be matched."""


@message(code=0x21, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress(Message):
    """How far the receiver is. Sent at most a few times a second."""

    blocks_done: int
    blocks_known: int
    """How many blocks are known to be missing so far: it grows until the difference has been read."""
    bytes_done: int
    """Sealed bytes that have arrived."""
    body_bytes_done: int
    """What they unpacked to."""
    plan_is_complete: bool


@message(code=0x22, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """I hold this snapshot, durably and whole, and have checked it. This is what "acknowledged" means."""

    snapshot_id: Snapshot
    root: Root
    site_id: Site
    received_at_ns: int
    """The receiver's own clock. Retention there counts from this, never from what the sender says."""
    signature: Signature


@message(code=0x23, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport(Message):
    """What the sync took, counted by the receiver. Sent just before the receipt."""

    blocks_received: int
    blocks_received_twice: int
    """Blocks that arrived although they were here already. The bar is zero."""
    blocks_already_here: int
    block_bytes: int
    """Sealed bytes of blocks that arrived."""
    diff_bytes: int
    """Bytes of messages that told the difference of the manifests."""
    diff_entries: int
    round_trips: int
    """Question and answer pairs before the last missing block was known."""
    base_root: Annotated[bytes, Size(32, multiple=True, most=1)]
    """The root the difference was told from, or nothing if there was no common one."""


@message(code=0x24, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class WantDiff(Message):
    """Tell me the difference from the first of these roots that you know to this snapshot's."""

    snapshot_id: Snapshot
    have_roots: Roots


@message(code=0x25, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class DiffBase(Message):
    """The first answer to `WantDiff`: the root that I count from; nothing means from an empty map."""

    base_root: Annotated[bytes, Size(32, multiple=True, most=1)]


@message(code=0x26, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class DiffNumbers(Message):
    """Changed blocks of an image: gap-coded block numbers and as many ids; a zero id is a hole."""

    gaps: bytes
    """LEB128 varints: each number minus the one before it minus 1, across the messages of a stream."""
    ids: Ids


@message(code=0x27, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class DiffNames(Message):
    """Changed entries of a tree in key order: as many keys as values; an empty value removes the key."""

    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]


@message(code=0x28, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class ListSnapshots(Message):
    """Which snapshots do you hold? Answered by `SnapshotList` messages; the stream's end ends the list."""

    volume_id: Annotated[bytes, Size(16, multiple=True, most=1)]
    """Only of this volume; empty for all that the asker may know of."""


@message(code=0x29, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotList(Message):
    """Signed records, oldest first."""

    records: tuple[bytes, ...]
