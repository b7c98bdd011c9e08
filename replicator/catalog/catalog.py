"""The catalogue's verbs for volumes and snapshots; those for other nouns are in the files beside it.

Every verb is one transaction and returns when it is durable. They are short enough to run on
the event loop; whoever writes thousands of rows batches them.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.ids import SNAPSHOT_ID_BYTES, BlockId, SiteId, SnapshotId, VolumeId
from replicator.catalog.copies import Copies
from replicator.catalog.database import MIGRATIONS
from replicator.catalog.lost import LostRecords
from replicator.catalog.model import EVERY_VOLUME, Snapshot, Volume
from replicator.catalog.peers import Peers
from replicator.catalog.promises import Promises
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.catalog.repairs import RepairLines
from replicator.catalog.rules import Rules
from replicator.catalog.successions import Successions
from replicator.catalog.syncs import Syncs
from replicator.core.database import Database, OpenDatabase
from replicator.core.errors import CatalogError, DatabaseDamaged, Held, ManifestDamaged, NotFound, Untrusted, UsageError
from replicator.core.facts import read_fact
from replicator.core.ports import WallClock

_PEAKS: Final = "snapshots.peaks"
_HOUR_NS: Final = 3600 * 10**9
_PEAKS_KEPT_H: Final = 48
"""Hours of which is known how many snapshots there were: more than anybody looks back."""
_ID_DIGITS_MIN: Final = 4
"""Of a snapshot's id: fewer soon name another one as well."""


def _open(path: Path, open_database: OpenDatabase) -> Database:
    """Raises `CatalogError` for a damaged file: half a catalogue would look like deleted snapshots."""
    try:
        database = open_database(path, MIGRATIONS)
        if not (found := database.check()):
            return database
        database.close()
    except sqlite3.DatabaseError as error:
        found = str(error)
    raise _unusable(path, found)


def _unusable(path: Path, found: str) -> CatalogError:
    return CatalogError(
        f"The catalogue at {path} cannot be used: {found}.",
        hint="Put a copy of it back, with its -wal file; or move it away: the snapshots are then found again in the "
        "store, and peers and schedules have to be made again.",
    )


class Catalog(Promises, Syncs, Copies, Rules, Successions, RepairLines):
    """Opened once a node."""

    def __init__(self, path: Path, *, clock: WallClock, open_database: OpenDatabase = Database) -> None:
        self.db = _open(path, open_database)
        self._clock = clock
        self.peers = Peers(self.db, clock=clock)
        self.lost = LostRecords(self.db)
        self._records: dict[bytes, SnapshotRecord] = {}
        try:
            # One row that makes no sense would stop every schedule, or every sync, in a node that seems to be well.
            self.volumes()
            self.peers.all()
            self.syncs()
            self.successions()
            self.copy_rules()
            self.lost.unread()
        except (ValueError, TypeError, DatabaseDamaged) as error:
            self.db.close()
            raise _unusable(path, f"what it says of volumes or peers is damaged ({error})") from error

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
        return self.db.remembered("volumes", self._volumes)

    def _volumes(self) -> list[Volume]:
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
                (
                    record.volume_id, record.volume_name, record.kind, self.current_key(record.origin),
                    record.block_bytes, now,
                ),
            )  # fmt: skip
            connection.execute("DELETE FROM deleted WHERE snapshot_id = ?", (record.snapshot_id,))
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
        owner = self.current_key(record.origin, sequence=record.sequence)
        if known is not None and (self.current_key(known[0]), known[1]) != (owner, record.kind):
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
        if volume_id is None:
            return self.db.remembered("snapshots", self._snapshots)
        sql = "SELECT record, record_block, received_ns, held FROM snapshots WHERE volume_id = ? ORDER BY sequence"
        return [self._snapshot(row) for row in self.db.read().execute(sql, (volume_id,))]

    def _snapshots(self) -> list[Snapshot]:
        sql = "SELECT record, record_block, received_ns, held FROM snapshots ORDER BY received_ns, sequence"
        return [self._snapshot(row) for row in self.db.read().execute(sql)]

    def _snapshot(self, row: tuple[bytes, bytes, int, str]) -> Snapshot:
        """A row, with its record checked once: the scheduler looks at all of them each second."""
        signed, record_block, received_ns, held = row
        record = self._records.get(signed)
        if record is None:
            try:
                record = self._records[signed] = open_record(signed)
            except (ManifestDamaged, Untrusted) as error:
                # Left out, it would look deleted, and a collection would take its blocks.
                raise CatalogError(
                    f"The catalogue's row of a snapshot (record {record_block.hex()[:16]}) is damaged: {error.message}",
                    hint="Run `replicator scrub`: it mends the row from the record's block.",
                ) from error
        return Snapshot(record, signed, BlockId(record_block), received_ns, held)

    def has_snapshot(self, snapshot_id: bytes) -> bool:
        sql = "SELECT 1 FROM snapshots WHERE snapshot_id = ?"
        return self.db.read().execute(sql, (snapshot_id,)).fetchone() is not None

    def has_or_had(self, snapshot_id: bytes) -> bool:
        """Whether it is here, or was, and this site let it go."""
        gone = self.db.read().execute("SELECT 1 FROM let_go WHERE snapshot_id = ?", (snapshot_id,)).fetchone()
        return gone is not None or self.has_snapshot(snapshot_id)

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
        is_id = bool(text) and all(letter in "0123456789abcdef" for letter in lowered)
        if is_id and len(text) >= _ID_DIGITS_MIN:
            if len(text) == 2 * SNAPSHOT_ID_BYTES and self.has_snapshot(bytes.fromhex(text)):
                return self.snapshot(bytes.fromhex(text))  # The usual case, and the only one that an index serves.
            sql = "SELECT snapshot_id FROM snapshots WHERE hex(snapshot_id) LIKE ?"
            rows = self.db.read().execute(sql, (lowered + "%",)).fetchall()
            if len(rows) == 1:
                return self.snapshot(rows[0][0])
            if rows:
                raise UsageError(f"{len(rows)} snapshots begin with {text}.", hint="Give more of the id.")
        try:
            volume = self.find_volume(text.removesuffix("@latest"))
        except NotFound as error:
            if is_id and len(text) < _ID_DIGITS_MIN:
                hint = f"To name a snapshot by its id, give {_ID_DIGITS_MIN} digits of it at least."
                raise NotFound(error.message, hint=hint) from None
            raise
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
        gone = [self.snapshot(snapshot_id) for snapshot_id in ids]
        for one in gone:
            if one.held:
                name = one.snapshot_id.hex()[:12]
                raise Held(
                    f"Snapshot {name} is held: {one.held}.",
                    hint=f"Release it first: `replicator snapshot release {name}`.",
                )
        now = self._clock.now_ns()
        with self.db.write() as connection:
            _note_peak(connection, now)
            for sql in (
                "INSERT OR REPLACE INTO let_go SELECT snapshot_id, ? FROM snapshots JOIN volumes USING (volume_id) "
                "WHERE snapshot_id = ? AND path IS NULL",
                "INSERT OR IGNORE INTO deleted SELECT snapshot_id, record_block, ? FROM snapshots "
                "WHERE snapshot_id = ?",
            ):
                connection.executemany(sql, [(now, one) for one in ids])
            connection.executemany("DELETE FROM snapshots WHERE snapshot_id = ?", [(one,) for one in ids])
        for one in gone:  # The others need not be checked again.
            self._records.pop(one.signed, None)

    def snapshot_count(self) -> int:
        return int(self.db.read().execute("SELECT count(*) FROM snapshots").fetchone()[0])

    def peak_since(self, at_ns: int) -> int:
        """The most snapshots that there were before any deletion since then; 0 if there was none."""
        return max(
            (count for hour, count in _peaks(self.fact(_PEAKS)).items() if (hour + 1) * _HOUR_NS > at_ns), default=0
        )

    def forget_peak(self) -> None:
        """What was deleted until now was meant."""
        self.set_fact(_PEAKS, "")

    def newest_received_ns(self) -> int:
        """The latest time at which a snapshot came, by the clock of that moment; 0 if there is none."""
        row = self.db.read().execute("SELECT max(received_ns) FROM snapshots").fetchone()
        return int(row[0] or 0)

    def hold(self, snapshot_id: bytes, reason: str) -> None:
        """Keep a snapshot from being removed; an empty reason lets go."""
        with self.db.write() as connection:
            connection.execute("UPDATE snapshots SET held = ? WHERE snapshot_id = ?", (reason, snapshot_id))

    # -- facts ----------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        row = self.db.read().execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_fact(self, name: str, value: str) -> None:
        with self.db.write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def forget_fact(self, name: str) -> None:
        with self.db.write() as connection:
            connection.execute("DELETE FROM facts WHERE name = ?", (name,))


def _peaks(text: str | None) -> dict[int, int]:
    return read_fact(text, dict[int, int], name="how many snapshots there were") if text else {}


def _note_peak(connection: sqlite3.Connection, now_ns: int) -> None:
    """How many there are before a deletion: the most of this hour, for the guard against deleting many in a day."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (_PEAKS,)).fetchone()
    count = int(connection.execute("SELECT count(*) FROM snapshots").fetchone()[0])
    now = now_ns // _HOUR_NS
    peaks = {hour: most for hour, most in _peaks(row[0] if row else None).items() if hour > now - _PEAKS_KEPT_H}
    peaks[now] = max(count, peaks.get(now, 0))
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (_PEAKS, json.dumps(peaks)))


__all__ = ["EVERY_VOLUME", "Catalog"]
