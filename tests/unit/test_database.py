"""A database with rotten bytes: noticed when it is opened, and never a traceback."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replicator.core.database import Database
from replicator.core.errors import StoreError
from replicator.core.ports import SystemClock
from replicator.jobs.history import JobHistory
from replicator.store.local import LocalStore
from tests.support.blocks import sealed_block
from tests.support.store import open_store, put

MIGRATIONS = ("CREATE TABLE things (name TEXT PRIMARY KEY, colour TEXT NOT NULL)", "CREATE INDEX i ON things (colour)")


@pytest.mark.parametrize(("old", "new"), [(b"colour TEXT", b"colouR TEXT"), (b"TABLE things", b"TA\xccLE things")])
def test_a_flipped_bit_in_the_schema_is_damage(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "db.sqlite"
    Database(path, MIGRATIONS).close()
    Database(path, MIGRATIONS).close()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(sqlite3.DatabaseError) as caught:
        Database(path, MIGRATIONS)
    assert caught.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CORRUPT


def rot(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))


def test_a_ledger_whose_schema_has_rotted_is_made_again_from_the_segments(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        put(store, [sealed_block(1)])
    rot(tmp_path / "ledger/notes.sqlite", b"CREATE TABLE facts", b"CREATE TABLE f\xccts")
    with closing(LocalStore.open(tmp_path)) as store:
        assert store.statistics().blocks == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: rot(path, b"state TEXT", b"stAte TEXT"),
        lambda path: rot(path, b'{"path": "odd"}', b'{"path": "o\xff"}'),
        lambda path: rot(path, b'{"path": "odd"}', b'["path": "odd"}'),
        lambda path: path.write_bytes(b"garbage" * 1000),
    ],
)
def test_a_rotten_table_of_jobs_is_put_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "jobs.sqlite"
    with closing(JobHistory(path, clock=SystemClock())) as history:
        history.enter("1", "gc", {"path": "odd"})
    damage(path)
    with closing(JobHistory(path, clock=SystemClock())) as history:
        assert len(history.unfinished()) <= 1
        history.enter("2", "gc", {})
        assert history.get("2").kind == "gc"


class _NoLog(sqlite3.Connection):
    """What SQLite does if a flush fails while it begins its log: nothing, and it says so nowhere else."""

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
        return super().execute("SELECT 'delete'" if sql == "PRAGMA journal_mode=WAL" else sql, *args)  # type: ignore[arg-type]


def test_a_database_that_cannot_begin_its_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kinds: real(*args, **{**kinds, "factory": _NoLog}))
    with pytest.raises(StoreError, match="cannot be kept with a log"):
        Database(tmp_path / "db.sqlite", MIGRATIONS)


def test_a_disk_that_fails_while_a_new_ledger_is_made_is_an_error_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(tmp_path)) as store:
        put(store, [sealed_block(1)])
    rot(tmp_path / "ledger/notes.sqlite", b"CREATE TABLE facts", b"CREATE TABLE f\xccts")
    real, opened = sqlite3.connect, list[str]()

    def failing(path: object, *args: Any, **kinds: Any) -> sqlite3.Connection:
        opened.append(str(path))
        if opened.count(str(tmp_path / "ledger/notes.sqlite")) == 2:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return real(path, *args, **kinds)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", failing)
    with pytest.raises(StoreError, match="disk I/O error"):
        LocalStore.open(tmp_path)
