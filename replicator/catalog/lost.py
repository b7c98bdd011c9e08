"""Snapshots that should be in the catalogue and cannot be read: until each is accounted for, nothing is collected.

What no snapshot needs is let go. So a snapshot that is missing from the catalogue, because the
row was damaged or because the catalogue was lost and its record in the store is broken too,
would take its blocks with it. Here is the list of the records that are known to be missing.
"""

import json
from collections.abc import Iterable
from typing import Final

from protocol.ids import BlockId
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.records import open_record
from replicator.core.database import Database
from replicator.core.errors import ReplicatorError
from replicator.core.facts import damaged_cell, read_fact

RECOVERED: Final = "catalogue.recovered"
"""The fact that is set when the catalogue was made again out of the store."""
_UNREAD: Final = "catalogue.unread"


class LostRecords:
    """Part of the catalogue; each verb is one transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def damaged(self) -> dict[bytes, BlockId]:
        """Rows that do not say what their site signed: the snapshot's id, and the name of its record in the store."""
        rows = self._db.read().execute("SELECT snapshot_id, record, record_block FROM snapshots").fetchall()
        return {row[0]: BlockId(row[2]) for row in rows if not _is_whole(*row)}

    def remove(self, snapshot_id: bytes) -> None:
        with self._db.write() as connection:
            connection.execute("DELETE FROM snapshots WHERE snapshot_id = ?", (snapshot_id,))

    def unread(self) -> list[BlockId]:
        """Records that cannot be read now. Whoever brings them back takes them off the list."""
        row = self._db.read().execute("SELECT value FROM facts WHERE name = ?", (_UNREAD,)).fetchone()
        names: list[str] = [] if row is None else read_fact(row[0], list[str], name="records that cannot be read")
        try:
            return [BlockId(bytes.fromhex(name)) for name in names]
        except ValueError as error:
            raise damaged_cell("records that cannot be read", error) from error

    def set_unread(self, names: Iterable[bytes]) -> None:
        with self._db.write() as connection:
            text = json.dumps(sorted({name.hex() for name in names}))
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_UNREAD, text))


def _is_whole(snapshot_id: bytes, signed: bytes, record_block: bytes) -> bool:
    try:
        record = open_record(signed)
    except ReplicatorError:
        return False
    return record.snapshot_id == snapshot_id and block_id(Kind.RECORD, signed) == record_block
