"""The ledger: which block lies where.

It is a cache of the segments and can be rebuilt from them (`replay`), with two exceptions
that it is the only witness of: what is in quarantine, and what a collection has condemned.
Losing either costs a second scrub or a second collection, never a block.

A key of 32 random bytes in a clustered table (WITHOUT ROWID) is stored once. The second
index exists for the scrub, which must ask a segment what it *should* hold.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from protocol.ids import BlockId
from protocol.wire.envelope import Header
from replicator.core.database import Database
from replicator.store.ports import Cause, Fault, Place

_MIGRATIONS: Final = (
    """
    -- One row a block that is here and, as far as we know, sound.
    CREATE TABLE blocks (
      id BLOB PRIMARY KEY,         -- 32 bytes
      segment INTEGER NOT NULL,
      offset INTEGER NOT NULL,     -- of the sealed block's header in the segment
      length INTEGER NOT NULL,     -- of the whole sealed block
      kind INTEGER NOT NULL,       -- protocol.wire.hashing.Kind
      body INTEGER NOT NULL        -- bytes of the body
    ) WITHOUT ROWID;
    CREATE INDEX blocks_by_place ON blocks (segment, offset, length, kind);
    -- A block whose last known copy is broken. Never also in `blocks`.
    CREATE TABLE broken (
      id BLOB PRIMARY KEY, kind INTEGER NOT NULL, cause TEXT NOT NULL,
      segment INTEGER, offset INTEGER, length INTEGER, found_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- A block that nothing spoke for when `epoch` was marked. Still in `blocks`, still readable.
    CREATE TABLE condemned (
      id BLOB PRIMARY KEY, epoch INTEGER NOT NULL, at_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- How far a segment's bytes are known to the ledger, and when they were last proven.
    CREATE TABLE segments (
      number INTEGER PRIMARY KEY, known_bytes INTEGER NOT NULL, verified_ns INTEGER
    );
    CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- Sums over `blocks`, kept by triggers: counting ten million rows takes seconds, and status asks each second.
    CREATE TABLE totals (
      only INTEGER PRIMARY KEY CHECK (only = 1), blocks INTEGER NOT NULL, sealed INTEGER NOT NULL, body INTEGER NOT NULL
    );
    INSERT INTO totals VALUES (1, 0, 0, 0);
    CREATE TRIGGER blocks_in AFTER INSERT ON blocks BEGIN
      UPDATE totals SET blocks = blocks + 1, sealed = sealed + new.length, body = body + new.body;
    END;
    CREATE TRIGGER blocks_moved AFTER UPDATE OF length, body ON blocks BEGIN
      UPDATE totals SET sealed = sealed + new.length - old.length, body = body + new.body - old.body;
    END;
    CREATE TRIGGER blocks_out AFTER DELETE ON blocks BEGIN
      UPDATE totals SET blocks = blocks - 1, sealed = sealed - old.length, body = body - old.body;
    END;
    """,
)
_BATCH: Final = 500


class Ledger:
    """The table of blocks. Thread-safe; one transaction a call."""

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _MIGRATIONS)

    # -- looking up -----------------------------------------------------------------------

    def present(self, ids: Sequence[BlockId]) -> set[BlockId]:
        return {BlockId(row[0]) for row in self._select("SELECT id FROM blocks WHERE id IN", ids)}

    def condemned_among(self, ids: Sequence[BlockId]) -> set[BlockId]:
        # Nearly always the table is empty, and this is asked for every batch of every writer.
        if not self._db.read().execute("SELECT EXISTS (SELECT 1 FROM condemned)").fetchone()[0]:
            return set()
        return {BlockId(row[0]) for row in self._select("SELECT id FROM condemned WHERE id IN", ids)}

    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, tuple[Place, int]]:
        """Where these lie, and their kinds; absent ones are left out."""
        sql = "SELECT id, segment, offset, length, kind FROM blocks WHERE id IN"
        return {BlockId(row[0]): (Place(row[1], row[2], row[3]), row[4]) for row in self._select(sql, ids)}

    def broken_causes(self, ids: Sequence[BlockId]) -> dict[BlockId, tuple[Cause, int]]:
        sql = "SELECT id, cause, kind FROM broken WHERE id IN"
        return {BlockId(row[0]): (Cause(row[1]), row[2]) for row in self._select(sql, ids)}

    def _select(self, sql: str, ids: Sequence[BlockId]) -> Iterator[tuple[Any, ...]]:
        connection = self._db.read()
        for at in range(0, len(ids), _BATCH):
            part = ids[at : at + _BATCH]
            yield from connection.execute(f"{sql} ({','.join('?' * len(part))})", part)

    def of_kind(self, kind: int) -> list[BlockId]:
        """All blocks of a kind. Reads every row: for a disaster, not for every day."""
        return [BlockId(row[0]) for row in self._db.read().execute("SELECT id FROM blocks WHERE kind = ?", (kind,))]

    def in_segment(self, number: int, *, from_offset: int, limit: int) -> list[tuple[BlockId, Place, int]]:
        """What a segment should hold from an offset on, in the order of offsets."""
        sql = (
            "SELECT id, offset, length, kind FROM blocks INDEXED BY blocks_by_place "
            "WHERE segment = ? AND offset >= ? ORDER BY offset LIMIT ?"
        )
        rows = self._db.read().execute(sql, (number, from_offset, limit))
        return [(BlockId(row[0]), Place(number, row[1], row[2]), row[3]) for row in rows]

    def beyond(self, number: int, *, end: int) -> list[Fault]:
        """The blocks that should lie in a segment and reach past `end`, as faults."""
        sql = (
            "SELECT id, kind, offset, length FROM blocks INDEXED BY blocks_by_place "
            "WHERE segment = ? AND offset + length > ?"
        )
        rows = self._db.read().execute(sql, (number, end))
        return [Fault(BlockId(row[0]), row[1], Cause.MISSING, Place(number, row[2], row[3])) for row in rows]

    def packed_ids(self, batch: int = 65536) -> Iterator[bytes]:
        """All ids, ascending, in batches joined to one run of bytes."""
        last = b""
        while True:
            sql = "SELECT id FROM blocks WHERE id > ? ORDER BY id LIMIT ?"
            rows = self._db.read().execute(sql, (last, batch)).fetchall()
            if not rows:
                return
            yield b"".join(row[0] for row in rows)
            last = rows[-1][0]

    def broken(self) -> list[Fault]:
        rows = self._db.read().execute("SELECT id, kind, cause, segment, offset, length FROM broken ORDER BY id")
        return [
            Fault(BlockId(row[0]), row[1], Cause(row[2]), None if row[3] is None else Place(row[3], row[4], row[5]))
            for row in rows
        ]

    # -- changing -------------------------------------------------------------------------

    def insert(self, rows: Sequence[tuple[Header, Place]], *, replace: bool = False) -> None:
        """Enter blocks whose bytes are on the disk; a sound copy also ends a quarantine."""
        otherwise = (
            "UPDATE SET segment = excluded.segment, offset = excluded.offset, length = excluded.length"
            if replace
            else "NOTHING"
        )
        with self._db.write() as connection:
            connection.executemany(
                f"INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO {otherwise}",
                [(h.block_id, p.segment, p.offset, p.length, h.kind, h.body_bytes) for h, p in rows],
            )
            if connection.execute("SELECT EXISTS (SELECT 1 FROM broken)").fetchone()[0]:
                connection.executemany("DELETE FROM broken WHERE id = ?", [(h.block_id,) for h, _ in rows])
            ends: dict[int, int] = {}
            for _, place in rows:
                ends[place.segment] = max(ends.get(place.segment, 0), place.offset + place.length)
            self._extend(connection, ends)

    def note_known(self, ends: dict[int, int]) -> None:
        """These segments hold nothing unknown before these offsets."""
        with self._db.write() as connection:
            self._extend(connection, ends)

    @staticmethod
    def _extend(connection: sqlite3.Connection, ends: dict[int, int]) -> None:
        connection.executemany(
            "INSERT INTO segments (number, known_bytes) VALUES (?, ?) "
            "ON CONFLICT (number) DO UPDATE SET known_bytes = max(known_bytes, excluded.known_bytes)",
            list(ends.items()),
        )

    def quarantine(self, faults: Sequence[Fault], *, now_ns: int) -> int:
        """Move rows to `broken`, but only while they still point at the place that was found broken."""
        moved = 0
        with self._db.write() as connection:
            for fault in faults:
                place = fault.place
                if place is None:
                    continue
                gone = connection.execute(
                    "DELETE FROM blocks WHERE id = ? AND segment = ? AND offset = ?",
                    (fault.block_id, place.segment, place.offset),
                ).rowcount
                if gone:
                    moved += 1
                    where = (place.segment, place.offset, place.length)
                    connection.execute(
                        "INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (fault.block_id, fault.kind, fault.cause.value, *where, now_ns),
                    )
        return moved

    # -- collection -----------------------------------------------------------------------

    def condemn(self, ids: Sequence[bytes], *, epoch: int, now_ns: int) -> None:
        with self._db.write() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO condemned VALUES (?, ?, ?)", [(block, epoch, now_ns) for block in ids]
            )

    def revive(self, ids: Sequence[BlockId]) -> None:
        """Something speaks for these again."""
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

    def condemned_count(self) -> int:
        count: int = self._db.read().execute("SELECT count(*) FROM condemned").fetchone()[0]
        return count

    def sweep(self, ids: Sequence[bytes], *, epoch_below: int) -> int:
        """Forget these blocks, each only if it is still condemned from before that epoch. Returns sealed bytes."""
        freed = 0
        with self._db.write() as connection:
            for block in ids:
                row = connection.execute(
                    "SELECT length FROM blocks JOIN condemned USING (id) WHERE id = ? AND epoch < ?",
                    (block, epoch_below),
                ).fetchone()
                connection.execute("DELETE FROM condemned WHERE id = ? AND epoch < ?", (block, epoch_below))
                if row is not None:
                    connection.execute("DELETE FROM blocks WHERE id = ?", (block,))
                    freed += row[0]
        return freed

    def drop_broken(self, ids: Sequence[bytes]) -> None:
        """Nothing speaks for these any more, so nobody waits for their repair."""
        with self._db.write() as connection:
            connection.executemany("DELETE FROM broken WHERE id = ?", [(block,) for block in ids])

    def live_bytes(self) -> dict[int, int]:
        """Sealed bytes of present blocks in each segment that has any."""
        sql = "SELECT segment, sum(length) FROM blocks INDEXED BY blocks_by_place GROUP BY segment"
        return dict(self._db.read().execute(sql).fetchall())

    # -- segments, facts ------------------------------------------------------------------

    def known_segments(self) -> dict[int, int]:
        """How many bytes of each segment the ledger has accounted for."""
        return dict(self._db.read().execute("SELECT number, known_bytes FROM segments").fetchall())

    def forget_segments(self, numbers: Sequence[int]) -> None:
        with self._db.write() as connection:
            connection.executemany("DELETE FROM segments WHERE number = ?", [(number,) for number in numbers])

    def note_verified(self, number: int, *, now_ns: int) -> None:
        with self._db.write() as connection:
            connection.execute("UPDATE segments SET verified_ns = ? WHERE number = ?", (now_ns, number))

    def oldest_verified_ns(self) -> int | None:
        """When the least recently proven segment was proven; None if one never was."""
        sql = "SELECT min(ifnull(verified_ns, 0)) FROM segments"
        return self._db.read().execute(sql).fetchone()[0] or None

    def fact(self, name: str) -> int:
        row = self._db.read().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else row[0]

    def set_fact(self, name: str, value: int) -> None:
        with self._db.write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def totals(self) -> tuple[int, int, int]:
        """Blocks, sealed bytes, body bytes."""
        blocks, sealed, body = self._db.read().execute("SELECT blocks, sealed, body FROM totals").fetchone()
        return blocks, sealed, body

    def check(self) -> str:
        """What SQLite says of its own file: empty if it is sound."""
        answer: str = self._db.read().execute("PRAGMA quick_check(1)").fetchone()[0]
        return "" if answer == "ok" else answer

    def close(self) -> None:
        self._db.close()
