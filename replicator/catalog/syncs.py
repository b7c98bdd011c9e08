"""The catalogue's verbs for site syncs, and for the receipts by which they end."""

from protocol.ids import SiteId, SnapshotId
from replicator.catalog.model import SiteSync
from replicator.catalog.terms import SyncTerms, decode_terms, encode_terms
from replicator.core.database import Database
from replicator.core.errors import NotFound
from replicator.core.ports import WallClock

_HINT = "`replicator sync list` shows them."


class Syncs:
    """A part of `Catalog`."""

    db: Database
    _clock: WallClock

    def add_sync(
        self, sync_id: str, *, volume_id: bytes, peer: bytes, keep: str, terms: SyncTerms | None = None
    ) -> str:
        """Enter a site sync. The same volume, peer and direction twice is the same sync; terms that are given replace
        those that held. Returns its id."""
        wanted = terms or SyncTerms()
        for known in self.syncs():
            same = (known.volume_id, known.peer, known.terms.direction, known.terms.volume)
            if same == (volume_id, peer, wanted.direction, wanted.volume):
                if terms is not None:
                    self.change_sync(known.sync_id, keep=keep, terms=terms)
                return known.sync_id
        with self.db.write() as connection:
            connection.execute(
                "INSERT INTO syncs (sync_id, volume_id, peer, keep, created_ns, terms) VALUES (?, ?, ?, ?, ?, ?)",
                (sync_id, volume_id, peer, keep, self._clock.now_ns(), encode_terms(wanted)),
            )
        return sync_id

    def change_sync(self, sync_id: str, *, keep: str, terms: SyncTerms) -> None:
        """Other terms from now on. Its schedule is planned anew. Raises `NotFound`."""
        with self.db.write() as connection:
            sql = "UPDATE syncs SET keep = ?, terms = ?, next_run_ns = 0, next_try_ns = 0 WHERE sync_id = ?"
            if not connection.execute(sql, (keep, encode_terms(terms), sync_id)).rowcount:
                raise NotFound(f"There is no sync {sync_id!r}.", hint=_HINT)

    def syncs(self) -> list[SiteSync]:
        return self.db.remembered("syncs", self._syncs)

    def _syncs(self) -> list[SiteSync]:
        rows = self.db.read().execute(
            "SELECT sync_id, volume_id, peer, keep, paused, last_success_ns, last_error, failures, next_try_ns, "
            "terms, next_run_ns, needs_person FROM syncs ORDER BY created_ns"
        )
        return [
            SiteSync(r[0], r[1], r[2], r[3], bool(r[4]), r[5], r[6], r[7], r[8], decode_terms(r[9]), r[10], bool(r[11]))
            for r in rows
        ]

    def sync(self, sync_id: str) -> SiteSync:
        """Raises `NotFound`."""
        for sync in self.syncs():
            if sync.sync_id == sync_id:
                return sync
        raise NotFound(f"There is no sync {sync_id!r}.", hint=_HINT)

    def remove_sync(self, sync_id: str) -> None:
        """Raises `NotFound`."""
        with self.db.write() as connection:
            if not connection.execute("DELETE FROM syncs WHERE sync_id = ?", (sync_id,)).rowcount:
                raise NotFound(f"There is no sync {sync_id!r}.", hint=_HINT)

    def pause_sync(self, sync_id: str, *, paused: bool) -> None:
        """Raises `NotFound`."""
        with self.db.write() as connection:
            sql = "UPDATE syncs SET paused = ?, next_try_ns = 0 WHERE sync_id = ?"
            if not connection.execute(sql, (int(paused), sync_id)).rowcount:
                raise NotFound(f"There is no sync {sync_id!r}.", hint=_HINT)

    def plan_sync(self, sync_id: str, *, next_run_ns: int) -> None:
        """When its schedule comes next."""
        with self.db.write() as connection:
            connection.execute("UPDATE syncs SET next_run_ns = ? WHERE sync_id = ?", (next_run_ns, sync_id))

    def note_sync_result(self, sync_id: str, *, error: str, next_try_ns: int = 0, needs_person: bool = False) -> None:
        with self.db.write() as connection:
            if error:
                connection.execute(
                    "UPDATE syncs SET last_error = ?, failures = failures + 1, next_try_ns = ?, needs_person = ? "
                    "WHERE sync_id = ?",
                    (error, next_try_ns, int(needs_person), sync_id),
                )
            else:
                connection.execute(
                    "UPDATE syncs SET last_success_ns = ?, last_error = '', failures = 0, next_try_ns = 0, "
                    "needs_person = 0 WHERE sync_id = ?",
                    (self._clock.now_ns(), sync_id),
                )

    # -- receipts -------------------------------------------------------------------------

    def add_receipt(self, snapshot_id: bytes, site_id: bytes, receipt: bytes) -> None:
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?)",
                (snapshot_id, site_id, receipt, self._clock.now_ns()),
            )

    def receipts(self) -> dict[tuple[SnapshotId, SiteId], int]:
        """When each peer last proved that it holds a snapshot."""
        return dict(self.db.remembered("receipts", self._receipts))

    def _receipts(self) -> list[tuple[tuple[SnapshotId, SiteId], int]]:
        rows = self.db.read().execute("SELECT snapshot_id, site_id, received_ns FROM receipts")
        return [((SnapshotId(row[0]), SiteId(row[1])), row[2]) for row in rows]

    def forget_receipts(self, site_id: bytes) -> int:
        """What a site signed for before it lost its state counts no more. Returns how many receipts that were."""
        with self.db.write() as connection:
            return connection.execute("DELETE FROM receipts WHERE site_id = ?", (site_id,)).rowcount
