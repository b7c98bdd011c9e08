"""The table of jobs: what was asked, how it stands, how it ended.

A job is entered before it is acknowledged, under an id that the asker may choose; asking
again with the same id is the same job. A job that was running when the node died is found
here at the next start and run again: every kind of job is written so that running it again
carries on.
"""

import json
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from replicator.core.database import Database, OpenDatabase
from replicator.core.errors import ConfigError, DatabaseDamaged, NotFound, StoreError
from replicator.core.facts import SENSELESS, damaged_cell
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock

_MIGRATIONS: Final = (
    """
    CREATE TABLE jobs (
      job_id TEXT PRIMARY KEY, kind TEXT NOT NULL, args TEXT NOT NULL,   -- JSON
      state TEXT NOT NULL,            -- queued | running | done | failed | cancelled
      created_ns INTEGER NOT NULL, started_ns INTEGER, finished_ns INTEGER,
      result TEXT, error TEXT         -- JSON
    ) WITHOUT ROWID;
    CREATE INDEX jobs_by_time ON jobs (created_ns);
    """,
)
UNFINISHED: Final = ("queued", "running")
_KEPT: Final = 5000
"""Finished jobs that stay in the table: months of hourly work."""

_UNWRITTEN_MAX: Final = 100
_NOT_DAMAGE: Final = (
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
)  # fmt: skip
"""What a whole file can be refused with: it must not be put aside for that."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job."""

    job_id: str
    kind: str
    args: dict[str, Any]
    state: str
    created_ns: int
    started_ns: int | None
    finished_ns: int | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class JobHistory:
    """Opened once a node."""

    def __init__(self, path: Path, *, clock: WallClock, open_database: OpenDatabase = Database) -> None:
        self._db = _open(path, open_database)
        self._clock = clock
        self._unwritten: dict[str, JobRow] = {}
        """Jobs whose last change could not be written: a full disk must not keep anybody from restoring, nor from
        learning how it went. At the next start such a job is forgotten, or run again."""

    def close(self) -> None:
        self._db.close()

    @property
    def trouble(self) -> str:
        """Why nothing is written into the table any more; empty while all is well."""
        return self._db.poisoned

    def enter(self, job_id: str, kind: str, args: dict[str, Any]) -> JobRow:
        """Durably, if the disk lets us; an id that is there already keeps its first meaning."""
        fresh = JobRow(job_id, kind, args, "queued", self._clock.now_ns(), None, None, None, None)
        try:
            self._insert(fresh)
        except StoreError as error:
            self._keep(fresh, error)
        return self.get(job_id)

    def _keep(self, row: JobRow, why: StoreError) -> None:
        get_logger().error("job.not_written", job=row.job_id, kind=row.kind, state=row.state, error=why.message)
        if row.state != "queued" or row.job_id not in self._unwritten:
            self._unwritten[row.job_id] = row
        for old in list(self._unwritten)[:-_UNWRITTEN_MAX]:
            del self._unwritten[old]

    def _insert(self, row: JobRow) -> None:
        with self._db.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO jobs (job_id, kind, args, state, created_ns) VALUES (?, ?, ?, 'queued', ?)",
                (row.job_id, row.kind, json.dumps(row.args), row.created_ns),
            )
            connection.execute(
                "DELETE FROM jobs WHERE state NOT IN ('queued', 'running') AND created_ns < "
                "(SELECT created_ns FROM jobs ORDER BY created_ns DESC LIMIT 1 OFFSET ?)",
                (_KEPT,),
            )

    def get(self, job_id: str) -> JobRow:
        """Raises `NotFound`."""
        if job_id in self._unwritten:
            return self._unwritten[job_id]
        rows = self._rows("WHERE job_id = ?", (job_id,))
        if not rows:
            raise NotFound(f"There is no job {job_id!r}.", hint="`replicator jobs list` shows the newest.")
        return rows[0]

    def unfinished(self) -> list[JobRow]:
        return self._rows("WHERE state IN ('queued', 'running') ORDER BY created_ns", ())

    def newest(self, *, limit: int) -> list[JobRow]:
        rows = {row.job_id: row for row in self._rows("ORDER BY created_ns DESC LIMIT ?", (limit,))} | self._unwritten
        return sorted(rows.values(), key=lambda row: row.created_ns, reverse=True)[:limit]

    def _rows(self, clause: str, values: tuple[object, ...]) -> list[JobRow]:
        sql = "SELECT job_id, kind, args, state, created_ns, started_ns, finished_ns, result, error FROM jobs "
        return [
            JobRow(r[0], r[1], _load(r[2]) or {}, r[3], r[4], r[5], r[6], _load(r[7]), _load(r[8]))
            for r in self._db.read().execute(sql + clause, values)
        ]

    def start(self, job_id: str) -> None:
        self._change(replace(self.get(job_id), state="running", started_ns=self._clock.now_ns()))

    def finish(self, job_id: str, state: str, *, result: dict[str, Any] | None, error: dict[str, Any] | None) -> None:
        now = self._clock.now_ns()
        self._change(replace(self.get(job_id), state=state, finished_ns=now, result=result, error=error))

    def _change(self, row: JobRow) -> None:
        try:
            with self._db.write() as connection:
                connection.execute(
                    "UPDATE jobs SET state = ?, started_ns = ?, finished_ns = ?, result = ?, error = ? "
                    "WHERE job_id = ?",
                    (
                        row.state, row.started_ns, row.finished_ns, _dump(row.result), _dump(row.error), row.job_id,
                    ),
                )  # fmt: skip
        except StoreError as error:
            self._keep(row, error)
        else:
            if row.job_id in self._unwritten:
                self._unwritten[row.job_id] = row


def _dump(value: dict[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)


def _check(database: Database) -> str:
    """What is wrong with the file or with a row; empty if nothing is."""
    try:
        if found := database.check():
            return found
        for row in database.read().execute("SELECT args, result, error FROM jobs"):
            for text in row:
                _load(text)
    except DatabaseDamaged as error:
        return error.message
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        return str(error)
    return ""


def _open(path: Path, open_database: OpenDatabase) -> Database:
    """The table, or, if its file is damaged, a new one: what is lost is the memory of work, not work.

    Unfinished jobs of the schedule are found again from what is due; one asked for by hand has to be asked for again.
    """
    try:
        database = open_database(path, _MIGRATIONS)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _NOT_DAMAGE:
            raise ConfigError(f"{path} cannot be opened: {error}.", hint="Look at its owner and its disk.") from error
        found = str(error)
    else:
        if not (found := _check(database)):
            return database
        database.close()
    get_logger().warning("jobs.damaged", path=str(path), found=found, then="beginning a new history")
    for suffix in ("", "-wal", "-shm"):
        damaged = Path(f"{path}{suffix}")
        if damaged.exists():
            damaged.rename(f"{damaged}.damaged")
    return open_database(path, _MIGRATIONS)


def _load(text: str | None) -> dict[str, Any] | None:
    """Raises `DatabaseDamaged`. (Names of files may be in it that are no valid text: JSON of Python's own.)"""
    if text is None:
        return None
    try:
        loaded = json.loads(text)
    except SENSELESS as error:
        raise damaged_cell("a job", error) from error
    if not isinstance(loaded, dict):
        raise damaged_cell("a job", TypeError("it is no table"))
    return loaded
