"""The catalogue's verbs for standing promises: a snapshot this often, and what peers promised to us."""

import json
from typing import Final

from replicator.catalog.model import Expectation, Protection
from replicator.core.database import Database
from replicator.core.ports import WallClock

_EVERY_MOST_S: Final = 100 * 365 * 86_400
"""A peer may promise anything; a century is as good as never, and is a number that can be kept."""


class Promises:
    """A part of `Catalog`."""

    db: Database
    _clock: WallClock

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

    def begin_protection(self, volume_id: bytes) -> None:
        """Count a volume among what is protected here (again)."""
        with self.db.write() as connection:
            connection.execute("DELETE FROM facts WHERE name = ?", (f"ended:{volume_id.hex()}",))

    def end_protection(self, volume_id: bytes) -> None:
        """No more schedule and no more syncs of this volume. What was taken stays; if nothing ever was, it is gone."""
        ended, numbered = f"ended:{volume_id.hex()}", f"sequence:{volume_id.hex()}"
        with self.db.write() as connection:
            connection.execute("DELETE FROM protections WHERE volume_id = ?", (volume_id,))
            connection.execute("DELETE FROM syncs WHERE volume_id = ?", (volume_id,))
            sql = "SELECT 1 FROM facts WHERE name = ? UNION SELECT 1 FROM snapshots WHERE volume_id = ?"
            if connection.execute(sql, (numbered, volume_id)).fetchone() is None:
                connection.execute("DELETE FROM volumes WHERE volume_id = ?", (volume_id,))
            else:
                connection.execute("INSERT OR REPLACE INTO facts VALUES (?, 'yes')", (ended,))

    def is_ended(self, volume_id: bytes) -> bool:
        """Whether somebody said that this volume is no longer protected here."""
        sql = "SELECT 1 FROM facts WHERE name = ?"
        return self.db.read().execute(sql, (f"ended:{volume_id.hex()}",)).fetchone() is not None

    def protections(self) -> list[Protection]:
        return self.db.remembered("protections", self._protections)

    def _protections(self) -> list[Protection]:
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
