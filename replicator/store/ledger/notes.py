"""What the ledger is the only witness of: which blocks are in quarantine, and which a collection has condemned.

Losing it costs a second scrub or a second collection, never a block. It is small, it is asked in
several ways, and it changes row by row: SQLite is right for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.ids import BlockId
from replicator.core.database import Database
from replicator.store.ports import Cause, Fault, Place

_MIGRATIONS: Final = (
    """
    -- A block whose last known copy is broken. Never also in the table of blocks.
    CREATE TABLE broken (
      id BLOB PRIMARY KEY, kind INTEGER NOT NULL, cause TEXT NOT NULL,
      segment INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL, found_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- A block that nothing spoke for when `epoch` was marked. Still in the table, still readable.
    CREATE TABLE condemned (
      id BLOB PRIMARY KEY, epoch INTEGER NOT NULL, at_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    """,
)
_BATCH: Final = 500


class Notes:
    """The small tables. Thread-safe; one transaction a call."""

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _MIGRATIONS)

    # -- quarantine -----------------------------------------------------------------------

    def any_broken(self) -> bool:
        return bool(self._db.read().execute("SELECT EXISTS (SELECT 1 FROM broken)").fetchone()[0])

    def broken_count(self) -> int:
        count: int = self._db.read().execute("SELECT count(*) FROM broken").fetchone()[0]
        return count

    def broken(self) -> list[Fault]:
        rows = self._db.read().execute("SELECT id, kind, cause, segment, offset, length FROM broken ORDER BY id")
        return [Fault(BlockId(row[0]), row[1], Cause(row[2]), Place(row[3], row[4], row[5])) for row in rows]

    def broken_causes(self, ids: Sequence[BlockId]) -> dict[BlockId, tuple[Cause, int]]:
        found: dict[BlockId, tuple[Cause, int]] = {}
        for part in _parts(ids):
            marks = ",".join("?" * len(part))
            rows = self._db.read().execute(f"SELECT id, cause, kind FROM broken WHERE id IN ({marks})", part)
            found |= {BlockId(row[0]): (Cause(row[1]), row[2]) for row in rows}
        return found

    def add_broken(self, faults: Sequence[Fault], *, now_ns: int) -> None:
        rows = [
            (f.block_id, f.kind, f.cause.value, f.place.segment, f.place.offset, f.place.length, now_ns)
            for f in faults
            if f.place is not None
        ]
        with self._db.write() as connection:
            connection.executemany("INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def drop_broken(self, ids: Sequence[bytes]) -> None:
        with self._db.write() as connection:
            connection.executemany("DELETE FROM broken WHERE id = ?", [(block,) for block in ids])

    # -- sentences ------------------------------------------------------------------------

    def any_condemned(self) -> bool:
        return bool(self._db.read().execute("SELECT EXISTS (SELECT 1 FROM condemned)").fetchone()[0])

    def condemned_among(self, ids: Sequence[bytes]) -> dict[BlockId, int]:
        """Those of `ids` that are condemned, and the epoch of each sentence."""
        found: dict[BlockId, int] = {}
        for part in _parts(ids):
            marks = ",".join("?" * len(part))
            rows = self._db.read().execute(f"SELECT id, epoch FROM condemned WHERE id IN ({marks})", part)
            found |= {BlockId(row[0]): row[1] for row in rows}
        return found

    def condemn(self, ids: Sequence[bytes], *, epoch: int, now_ns: int) -> None:
        with self._db.write() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO condemned VALUES (?, ?, ?)", [(block, epoch, now_ns) for block in ids]
            )

    def revive(self, ids: Sequence[bytes]) -> None:
        with self._db.write() as connection:
            connection.executemany("DELETE FROM condemned WHERE id = ?", [(block,) for block in ids])

    def revive_all(self) -> int:
        with self._db.write() as connection:
            return connection.execute("DELETE FROM condemned").rowcount

    def condemned(self, *, epoch_below: int, at_most_ns: int) -> list[BlockId]:
        rows = self._db.read().execute(
            "SELECT id FROM condemned WHERE epoch < ? AND at_ns <= ? ORDER BY id", (epoch_below, at_most_ns)
        )
        return [BlockId(row[0]) for row in rows]

    def sentences(self) -> list[tuple[BlockId, int, int]]:
        rows = self._db.read().execute("SELECT id, epoch, at_ns FROM condemned")
        return [(BlockId(row[0]), row[1], row[2]) for row in rows]

    def condemned_count(self) -> int:
        count: int = self._db.read().execute("SELECT count(*) FROM condemned").fetchone()[0]
        return count

    # -- facts ----------------------------------------------------------------------------

    def fact(self, name: str) -> int:
        row = self._db.read().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else row[0]

    def set_fact(self, name: str, value: int) -> None:
        with self._db.write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def check(self) -> str:
        """What SQLite says of its own file: empty if it is sound."""
        answer: str = self._db.read().execute("PRAGMA quick_check(1)").fetchone()[0]
        return "" if answer == "ok" else answer

    def close(self) -> None:
        self._db.close()


def _parts(ids: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH)]
