"""The catalogue's rows as they are, for whoever checks them: nothing here takes a row's word for anything.

The other verbs of the catalogue open a record and raise if it is not sound, which is right for
work that rests on it. The scrub has to look at a row that is *not* sound, and say what is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.ids import BlockId, SnapshotId
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.core.database import Database
from replicator.core.errors import DatabaseDamaged, ManifestDamaged, Untrusted


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One row of `snapshots`, unopened."""

    snapshot_id: bytes
    volume_id: bytes
    sequence: int
    root: bytes
    system_id: bytes
    signed: bytes
    record_block: bytes


def damage_of_file(db: Database) -> str:
    """What SQLite says of the whole file, indexes and all; empty if it is sound. Reads everything."""
    try:
        answer: str = db.read().execute("PRAGMA integrity_check(1)").fetchone()[0]
    except DatabaseDamaged as error:
        return error.message
    return "" if answer == "ok" else answer


def snapshot_rows(db: Database) -> list[SnapshotRow]:
    sql = "SELECT snapshot_id, volume_id, sequence, root, system_id, record, record_block FROM snapshots"
    return [SnapshotRow(*row) for row in db.read().execute(sql)]


def open_row(row: SnapshotRow) -> SnapshotRecord | str:
    """The record of a row, with its signature checked afresh and every column held against it; or what is wrong."""
    try:
        record = open_record(row.signed)
    except (ManifestDamaged, Untrusted) as error:
        return error.message
    said = (row.snapshot_id, row.volume_id, row.sequence, row.root, row.system_id)
    if said != (record.snapshot_id, record.volume_id, record.sequence, record.root, record.system_id):
        return "The columns do not say what the signed record says."
    if row.record_block != block_id(Kind.RECORD, row.signed):
        return "The record's block is not that of the record."
    return record


def sound_records(db: Database) -> list[SnapshotRecord]:
    """The records of all rows that are as they should be."""
    opened = [open_row(row) for row in snapshot_rows(db)]
    return [record for record in opened if isinstance(record, SnapshotRecord)]


def mend_row(db: Database, row: SnapshotRow, signed: bytes) -> None:
    """Put a record that has been proven, and what it says, in place of a damaged row's. What is ours (when it came,
    why it is held) stays as it is."""
    record = open_record(signed)
    with db.write() as connection:
        connection.execute(
            "UPDATE snapshots SET snapshot_id = ?, volume_id = ?, sequence = ?, root = ?, system_id = ?, record = ?, "
            "record_block = ? WHERE snapshot_id = ?",
            (
                record.snapshot_id, record.volume_id, record.sequence, record.root, record.system_id, signed,
                block_id(Kind.RECORD, signed), row.snapshot_id,
            ),
        )  # fmt: skip


def buried(db: Database) -> dict[SnapshotId, BlockId]:
    """Snapshots that were deleted here on purpose, and the blocks of their records."""
    return dict(db.read().execute("SELECT snapshot_id, record_block FROM deleted").fetchall())


def bury(db: Database, records: Sequence[tuple[bytes, bytes]], *, now_ns: int) -> None:
    """Note deletions: snapshot ids with their record blocks."""
    with db.write() as connection:
        connection.executemany("INSERT OR IGNORE INTO deleted VALUES (?, ?, ?)", [(*one, now_ns) for one in records])


def forget_graves(db: Database, ids: Sequence[SnapshotId]) -> None:
    """Their record blocks are gone from the store: nothing could mistake them for lost rows any more."""
    with db.write() as connection:
        connection.executemany("DELETE FROM deleted WHERE snapshot_id = ?", [(one,) for one in ids])
