"""The catalogue's verbs for volumes, snapshots and promises.

Every verb is one transaction and returns when it is durable. They are short enough to run on
the event loop; whoever writes thousands of rows batches them.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from replicator.catalog.database import MIGRATIONS
from replicator.catalog.model import Expectation, Protection, RepairLine, SiteSync, Snapshot, Volume
from replicator.catalog.peers import Peers
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.core.database import Database
from replicator.core.errors import CatalogError, Held, NotFound, Untrusted, UsageError
from replicator.core.ports import WallClock

EVERY_VOLUME = VolumeId(b"")
"""In a site sync: whatever is here, also what comes later and from elsewhere."""
_DELETED_MAX: Final = 1_000_000
"""Deletions that are remembered: a century of hourly snapshots of one volume, in 50 MB at most."""
_EVERY_MOST_S: Final = 100 * 365 * 86_400
"""A peer may promise anything; a century is as good as never, and is a number that can be kept."""


def _open(path: Path) -> Database:
    """Raises `CatalogError` for a damaged file: half a catalogue would look like deleted snapshots."""
    try:
        database = Database(path, MIGRATIONS)
        if not (found := database.check()):
            return database
        database.close()
    except sqlite3.DatabaseError as error:
        found = str(error)
    raise CatalogError(
        f"The catalogue at {path} cannot be used: {found}.",
        hint="Put a copy of it back, with its -wal file. The blocks are not touched; peers have the snapshots.",
    )


class Catalog:
    """Opened once a node."""

    def __init__(self, path: Path, *, clock: WallClock) -> None:
        self.db = _open(path)
        self._clock = clock
        self.peers = Peers(self.db, clock=clock)
        self._records: dict[bytes, SnapshotRecord] = {}

    def close(self) -> None:
        self.db.close()

    # -- volumes --------------------------------------------------------------------------

    def add_volume(self, volume: Volume) -> None:
        """Enter a volume; one that is known already keeps its path and settings."""
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    volume.volume_id, volume.name, volume.kind, volume.origin, volume.path, volume.block_bytes,
                    json.dumps(volume.exclude), self._clock.now_ns(),
                ),
            )  # fmt: skip

    def volumes(self) -> list[Volume]:
        rows = self.db.read().execute(
            "SELECT volume_id, name, kind, origin, path, block_bytes, exclude FROM volumes ORDER BY created_ns, name"
        )
        return [Volume(VolumeId(r[0]), r[1], r[2], SiteId(r[3]), r[4], r[5], tuple(json.loads(r[6]))) for r in rows]

    def volume(self, volume_id: bytes) -> Volume:
        """Raises `NotFound`."""
        for volume in self.volumes():
            if volume.volume_id == volume_id:
                return volume
        raise NotFound(f"Volume {volume_id.hex()} is not known here.")

    def find_volume(self, text: str) -> Volume:
        """By path, by name, or by the beginning of its id. Raises `NotFound`, `UsageError` if it could be several."""
        volumes = self.volumes()
        path = text.encode(errors="surrogateescape")
        found = [v for v in volumes if v.path == path] or [v for v in volumes if v.name == text]
        if not found and len(text) >= 4:
            found = [v for v in volumes if v.volume_id.hex().startswith(text.lower())]
        if not found:
            names = ", ".join(sorted({v.name for v in volumes})) or "none yet"
            raise NotFound(f"There is no volume {text!r}.", hint=f"Known: {names}.")
        if len(found) > 1:
            choices = ", ".join(f"{v.volume_id.hex()[:8]} (from {v.origin.hex()[:8]})" for v in found)
            raise UsageError(f"{text!r} could be several volumes: {choices}.", hint="Give the id.")
        return found[0]

    # -- snapshots ------------------------------------------------------------------------

    def add_snapshot(self, signed: bytes, record_block: BlockId) -> Snapshot:
        """Publish a snapshot whose every block is committed: from here on it is acknowledged.

        Raises `Untrusted` as `check_owner` does.
        """
        record = open_record(signed)
        self.check_owner(record)
        now = self._clock.now_ns()
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO volumes VALUES (?, ?, ?, ?, NULL, ?, '[]', ?)",
                (record.volume_id, record.volume_name, record.kind, record.origin, record.block_bytes, now),
            )
            connection.execute("DELETE FROM deleted WHERE record_block = ?", (record_block,))
            connection.execute(
                "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, '')",
                (
                    record.snapshot_id, record.volume_id, record.sequence, record.root, now, record.system_id,
                    signed, record_block,
                ),
            )  # fmt: skip
        return self.snapshot(record.snapshot_id)

    def check_owner(self, record: SnapshotRecord) -> None:
        """A volume belongs to the site that it came from first, and only that site says what was in it.

        Otherwise any peer could put a snapshot of its own making on top of ours, and it would be the one restored.
        Raises `Untrusted`.
        """
        sql = "SELECT origin, kind FROM volumes WHERE volume_id = ?"
        known = self.db.read().execute(sql, (record.volume_id,)).fetchone()
        if known is not None and known != (record.origin, record.kind):
            raise Untrusted(
                f"Site {record.origin.hex()[:12]} offers a snapshot ({record.kind}) of {record.volume_name}, a volume "
                f"({known[1]}) of site {known[0].hex()[:12]}.",
                hint="Is that site still yours?",
            )
        held = self.db.read().execute("SELECT record FROM snapshots WHERE snapshot_id = ?", (record.snapshot_id,))
        row = held.fetchone()
        if row is not None and open_record(row[0]) != record:
            raise Untrusted(f"Another snapshot is known by the id {record.snapshot_id.hex()[:12]}.")

    def snapshots(self, volume_id: bytes | None = None) -> list[Snapshot]:
        """Oldest first, of one volume or of all."""
        sql = "SELECT record, record_block, received_ns, held FROM snapshots "
        if volume_id is None:
            rows = self.db.read().execute(sql + "ORDER BY received_ns, sequence")
        else:
            rows = self.db.read().execute(sql + "WHERE volume_id = ? ORDER BY sequence", (volume_id,))
        return [self._snapshot(row) for row in rows]

    def _snapshot(self, row: tuple[bytes, bytes, int, str]) -> Snapshot:
        """A row, with its record checked once: the scheduler looks at all of them each second."""
        signed, record_block, received_ns, held = row
        record = self._records.get(signed)
        if record is None:
            record = self._records[signed] = open_record(signed)
        return Snapshot(record, signed, BlockId(record_block), received_ns, held)

    def has_snapshot(self, snapshot_id: bytes) -> bool:
        sql = "SELECT 1 FROM snapshots WHERE snapshot_id = ?"
        return self.db.read().execute(sql, (snapshot_id,)).fetchone() is not None

    def snapshot(self, snapshot_id: bytes) -> Snapshot:
        """Raises `NotFound`."""
        sql = "SELECT record, record_block, received_ns, held FROM snapshots WHERE snapshot_id = ?"
        row = self.db.read().execute(sql, (snapshot_id,)).fetchone()
        if row is None:
            raise NotFound(f"Snapshot {snapshot_id.hex()} is not here.")
        return self._snapshot(row)

    def find_snapshot(self, text: str) -> Snapshot:
        """By the beginning of its id, or `VOLUME@latest`, or `VOLUME` for its newest. Raises `NotFound`."""
        lowered = text.lower()
        if len(text) >= 4 and all(letter in "0123456789abcdef" for letter in lowered):
            sql = "SELECT snapshot_id FROM snapshots WHERE hex(snapshot_id) LIKE ?"
            rows = self.db.read().execute(sql, (lowered + "%",)).fetchall()
            if len(rows) == 1:
                return self.snapshot(rows[0][0])
            if rows:
                raise UsageError(f"{len(rows)} snapshots begin with {text}.", hint="Give more of the id.")
        volume = self.find_volume(text.removesuffix("@latest"))
        found = self.snapshots(volume.volume_id)
        if not found:
            raise NotFound(f"Volume {volume.name!r} has no snapshot here yet.")
        return found[-1]

    def newest(self, volume_id: bytes) -> Snapshot | None:
        found = self.snapshots(volume_id)
        return found[-1] if found else None

    def next_sequence(self, volume_id: bytes) -> int:
        """One more than any number this node has seen or given out for the volume, deleted ones included."""
        with self.db.write() as connection:
            name = f"sequence:{volume_id.hex()}"
            seen = connection.execute("SELECT max(sequence) FROM snapshots WHERE volume_id = ?", (volume_id,))
            given = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            number = max(seen.fetchone()[0] or 0, given[0] if given else 0) + 1
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, number))
            return int(number)

    def delete_snapshots(self, ids: Sequence[SnapshotId]) -> None:
        """Forget snapshots. Their blocks stay until a collection finds that nothing else needs them.

        Raises `NotFound`, `Held`; then none of them is deleted.
        """
        for snapshot_id in ids:
            if reason := self.snapshot(snapshot_id).held:
                raise Held(f"Snapshot {snapshot_id.hex()[:12]} is held: {reason}.", hint="Release it first.")
        now = self._clock.now_ns()
        with self.db.write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO deleted SELECT record_block, ? FROM snapshots WHERE snapshot_id = ?",
                [(now, one) for one in ids],
            )
            connection.executemany("DELETE FROM snapshots WHERE snapshot_id = ?", [(one,) for one in ids])
            connection.execute(
                "DELETE FROM deleted WHERE at_ns < (SELECT at_ns FROM deleted ORDER BY at_ns DESC LIMIT 1 OFFSET ?)",
                (_DELETED_MAX,),
            )
        self._records.clear()

    def unexplained_records(self, records: Sequence[BlockId]) -> list[BlockId]:
        """Those of the store's record blocks that belong to no snapshot, known or deleted."""
        rows = self.db.read().execute("SELECT record_block FROM snapshots UNION SELECT record_block FROM deleted")
        explained = {row[0] for row in rows}
        return [name for name in records if name not in explained]

    def hold(self, snapshot_id: bytes, reason: str) -> None:
        """Keep a snapshot from being removed; an empty reason lets go."""
        with self.db.write() as connection:
            connection.execute("UPDATE snapshots SET held = ? WHERE snapshot_id = ?", (reason, snapshot_id))

    # -- promises -------------------------------------------------------------------------

    def set_protection(self, volume_id: bytes, *, every_s: float, keep: str) -> None:
        now = self._clock.now_ns()
        with self.db.write() as connection:
            connection.execute(
                "INSERT INTO protections (volume_id, every_s, keep, next_run_ns) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (volume_id) DO UPDATE SET every_s = excluded.every_s, keep = excluded.keep, "
                "next_run_ns = min(next_run_ns, excluded.next_run_ns)",
                (volume_id, every_s, keep, now),
            )

    def set_exclude(self, volume_id: bytes, patterns: tuple[str, ...]) -> None:
        """What later snapshots of a volume leave out."""
        with self.db.write() as connection:
            connection.execute("UPDATE volumes SET exclude = ? WHERE volume_id = ?", (json.dumps(patterns), volume_id))

    def end_protection(self, volume_id: bytes) -> None:
        """No more schedule and no more syncs of this volume; what was taken stays."""
        with self.db.write() as connection:
            connection.execute("DELETE FROM protections WHERE volume_id = ?", (volume_id,))
            connection.execute("DELETE FROM syncs WHERE volume_id = ?", (volume_id,))

    def remove_sync(self, sync_id: str) -> None:
        """Raises `NotFound`."""
        with self.db.write() as connection:
            if not connection.execute("DELETE FROM syncs WHERE sync_id = ?", (sync_id,)).rowcount:
                raise NotFound(f"There is no sync {sync_id!r}.", hint="`replicator sync list` shows them.")

    def pause_sync(self, sync_id: str, *, paused: bool) -> None:
        """Raises `NotFound`."""
        with self.db.write() as connection:
            sql = "UPDATE syncs SET paused = ?, next_try_ns = 0 WHERE sync_id = ?"
            if not connection.execute(sql, (int(paused), sync_id)).rowcount:
                raise NotFound(f"There is no sync {sync_id!r}.", hint="`replicator sync list` shows them.")

    def protections(self) -> list[Protection]:
        rows = self.db.read().execute("SELECT * FROM protections ORDER BY next_run_ns")
        return [Protection(*row) for row in rows]

    def note_protection_run(self, volume_id: bytes, *, next_run_ns: int) -> None:
        with self.db.write() as connection:
            connection.execute("UPDATE protections SET next_run_ns = ? WHERE volume_id = ?", (next_run_ns, volume_id))

    def note_protection_result(self, volume_id: bytes, *, error: str) -> None:
        with self.db.write() as connection:
            if error:
                connection.execute("UPDATE protections SET last_error = ? WHERE volume_id = ?", (error, volume_id))
            else:
                connection.execute(
                    "UPDATE protections SET last_success_ns = ?, last_error = '' WHERE volume_id = ?",
                    (self._clock.now_ns(), volume_id),
                )

    def add_sync(self, sync_id: str, *, volume_id: bytes, peer: bytes, keep: str) -> str:
        """Enter a site sync; the same volume and peer twice is the same sync. Returns its id."""
        with self.db.write() as connection:
            row = connection.execute(
                "SELECT sync_id FROM syncs WHERE volume_id = ? AND peer = ?", (volume_id, peer)
            ).fetchone()
            if row is not None:
                return str(row[0])
            connection.execute(
                "INSERT INTO syncs (sync_id, volume_id, peer, keep, created_ns) VALUES (?, ?, ?, ?, ?)",
                (sync_id, volume_id, peer, keep, self._clock.now_ns()),
            )
            return sync_id

    def syncs(self) -> list[SiteSync]:
        rows = self.db.read().execute(
            "SELECT sync_id, volume_id, peer, keep, paused, last_success_ns, last_error, failures, next_try_ns "
            "FROM syncs ORDER BY created_ns"
        )
        return [SiteSync(r[0], r[1], r[2], r[3], bool(r[4]), r[5], r[6], r[7], r[8]) for r in rows]

    def note_sync_result(self, sync_id: str, *, error: str, next_try_ns: int = 0) -> None:
        with self.db.write() as connection:
            if error:
                connection.execute(
                    "UPDATE syncs SET last_error = ?, failures = failures + 1, next_try_ns = ? WHERE sync_id = ?",
                    (error, next_try_ns, sync_id),
                )
            else:
                connection.execute(
                    "UPDATE syncs SET last_success_ns = ?, last_error = '', failures = 0, next_try_ns = 0 "
                    "WHERE sync_id = ?",
                    (self._clock.now_ns(), sync_id),
                )

    def add_receipt(self, snapshot_id: bytes, site_id: bytes, receipt: bytes) -> None:
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?)",
                (snapshot_id, site_id, receipt, self._clock.now_ns()),
            )

    def receipts(self) -> dict[tuple[SnapshotId, SiteId], int]:
        """When each peer last proved that it holds a snapshot."""
        rows = self.db.read().execute("SELECT snapshot_id, site_id, received_ns FROM receipts")
        return {(SnapshotId(row[0]), SiteId(row[1])): row[2] for row in rows}

    def forget_receipts(self, site_id: bytes) -> int:
        """What a site signed for before it lost its state counts no more. Returns how many receipts that were."""
        with self.db.write() as connection:
            return connection.execute("DELETE FROM receipts WHERE site_id = ?", (site_id,)).rowcount

    def expect(self, volume_id: bytes, peer: bytes, *, every_s: int) -> None:
        """A snapshot came, and the next is promised within `every_s`; 0 is no promise."""
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO expectations VALUES (?, ?, ?, ?)",
                (volume_id, peer, min(every_s, _EVERY_MOST_S), self._clock.now_ns()),
            )

    def expectations(self) -> list[Expectation]:
        rows = self.db.read().execute("SELECT volume_id, peer, every_s, last_ns FROM expectations WHERE every_s > 0")
        return [Expectation(*row) for row in rows]

    # -- audit, facts ---------------------------------------------------------------------

    def add_repairs(self, lines: Sequence[RepairLine]) -> None:
        with self.db.write() as connection:
            connection.executemany(
                "INSERT INTO repairs (at_ns, block_id, kind, cause, role, peer, outcome, took_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(r.at_ns, r.block_id, r.kind, r.cause, r.role, r.peer, r.outcome, r.took_s) for r in lines],
            )

    def begin_repairs(self, lines: Sequence[RepairLine]) -> dict[BlockId, int]:
        """Enter lines whose end is not known yet; returns their numbers by block."""
        numbers: dict[BlockId, int] = {}
        with self.db.write() as connection:
            for r in lines:
                cursor = connection.execute(
                    "INSERT INTO repairs (at_ns, block_id, kind, cause, role, peer, outcome, took_s) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (r.at_ns, r.block_id, r.kind, r.cause, r.role, r.peer, r.outcome, r.took_s),
                )
                numbers[r.block_id] = cursor.lastrowid or 0
        return numbers

    def end_repairs(self, outcomes: dict[int, str], *, took_s: float) -> None:
        with self.db.write() as connection:
            connection.executemany(
                "UPDATE repairs SET outcome = ?, took_s = ? WHERE number = ?",
                [(outcome, took_s, number) for number, outcome in outcomes.items()],
            )

    def begun_repairs(self) -> dict[int, BlockId]:
        """Lines without an end: what was being asked for when the node died."""
        rows = self.db.read().execute("SELECT number, block_id FROM repairs WHERE outcome = 'asking'")
        return {row[0]: BlockId(row[1]) for row in rows}

    def repairs(self, *, limit: int) -> list[RepairLine]:
        """The newest lines of the audit, newest first."""
        rows = self.db.read().execute(
            "SELECT at_ns, block_id, kind, cause, role, peer, outcome, took_s FROM repairs "
            "ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return [RepairLine(*row) for row in rows]

    def repair_counts(self) -> dict[tuple[str, str], int]:
        """How many lines there are of each role and outcome."""
        rows = self.db.read().execute("SELECT role, outcome, count(*) FROM repairs GROUP BY role, outcome")
        return {(row[0], row[1]): row[2] for row in rows}

    def fact(self, name: str) -> str | None:
        row = self.db.read().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_fact(self, name: str, value: str) -> None:
        with self.db.write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
