"""Room for a full disk, and what else must go on while there is none."""

import io
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from replicator.core import logging as our_logging
from replicator.core.ballast import Ballast
from replicator.core.database import Database
from replicator.core.errors import DatabaseDamaged, StoreError, StoreFull, StoreReadOnly

MIB = 1 << 20
TABLE = ("CREATE TABLE t (n INTEGER)",)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A disk of 1 GiB with so many MiB free."""
    free = SimpleNamespace(f_bavail=500, f_frsize=MIB, f_blocks=1024)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    return free


def test_it_is_laid_beside_the_reserve_and_not_in_it(tmp_path: Path, room: SimpleNamespace) -> None:
    ballast = Ballast(tmp_path / "ballast")
    assert ballast.is_short
    room.f_bavail = 100
    assert not ballast.lay(keep_free=90 * MIB)
    assert ballast.lay(keep_free=80 * MIB)
    assert not ballast.is_short
    assert ballast.bytes_here == 16 * MIB, "allocated, and not a hole"


def test_of_a_small_disk_it_takes_a_small_part_and_of_size_0_nothing(tmp_path: Path, room: SimpleNamespace) -> None:
    room.f_blocks = 256
    assert Ballast(tmp_path / "ballast").bytes_wanted == 8 * MIB
    none = Ballast(tmp_path / "none", bytes_max=0)
    assert not none.is_short
    assert none.lay(keep_free=0)
    assert not (tmp_path / "none").exists()


def test_a_start_on_a_full_disk_takes_a_little_and_a_delete_takes_all(tmp_path: Path, room: SimpleNamespace) -> None:
    ballast = Ballast(tmp_path / "ballast")
    assert ballast.lay(keep_free=0)
    assert not ballast.give_some_if_full("starting"), "there is room"
    room.f_bavail = 0
    assert ballast.give_some_if_full("starting")
    assert ballast.bytes_here == 14 * MIB
    assert ballast.is_short
    tried: list[int] = []

    def delete() -> str:
        tried.append(ballast.bytes_here)
        if ballast.bytes_here:
            raise StoreFull("no room")
        return "done"

    assert ballast.with_room("deleting", delete) == "done"
    assert tried == [14 * MIB, 0]


def test_without_a_ballast_a_full_disk_is_what_it_is(tmp_path: Path) -> None:
    def delete() -> None:
        raise StoreFull("no room")

    with pytest.raises(StoreFull):
        Ballast(tmp_path / "ballast").with_room("deleting", delete)


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    """A node whose log lies on the full disk died of the first line that it could not write."""
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  (closed below: closing a text stream would flush it)
    text = io.TextIOWrapper(full, write_through=True)  # type: ignore[type-var]
    stream = our_logging._Forgiving(text)
    assert stream.write("a line\n") == 7
    stream.flush()
    full.close()


class Failing:
    """A connection whose next COMMIT fails."""

    def __init__(self, real: sqlite3.Connection, code: int) -> None:
        self._real, self.code = real, code

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, sql: str, *arguments: object) -> object:
        if sql == "COMMIT" and self.code:
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode, self.code = self.code, 0
            raise error
        return self._real.execute(sql, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "code, raised, for_good",
    [
        (sqlite3.SQLITE_IOERR_FSYNC, StoreReadOnly, True),
        (sqlite3.SQLITE_IOERR_WRITE, StoreReadOnly, True),
        (sqlite3.SQLITE_FULL, StoreFull, False),
        (sqlite3.SQLITE_IOERR_SHMSIZE, StoreFull, False),
        (sqlite3.SQLITE_CORRUPT, DatabaseDamaged, False),
    ],
)
def test_a_table_whose_flush_failed_is_closed_for_good_and_a_full_one_is_not(
    tmp_path: Path, code: int, raised: type[StoreError], for_good: bool
) -> None:
    database = Database(tmp_path / "t.sqlite", TABLE)
    database._writer = Failing(database._writer, code)  # type: ignore[assignment]
    insert: Callable[[sqlite3.Connection], object] = lambda c: c.execute("INSERT INTO t VALUES (1)")  # noqa: E731
    with pytest.raises(raised), database.write() as connection:
        insert(connection)
    if for_good:
        assert database.poisoned
        with pytest.raises(StoreReadOnly), database.write() as connection:
            insert(connection)
    else:
        with database.write() as connection:
            insert(connection)
    assert database.read().execute("SELECT count(*) FROM t").fetchone() == (0 if for_good else 1,)
    database._writer = database._writer._real  # type: ignore[attr-defined]
    database.close()


def test_a_table_that_cannot_be_read_says_so_in_our_words(tmp_path: Path) -> None:
    database = Database(tmp_path / "t.sqlite", TABLE)
    with database.write() as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5000)])
    database.close()
    pages = bytearray((tmp_path / "t.sqlite").read_bytes())
    pages[4096:] = b"\xff" * (len(pages) - 4096)
    (tmp_path / "t.sqlite").write_bytes(pages)
    database = Database(tmp_path / "t.sqlite", TABLE)
    for read in (lambda q: q.fetchall(), list, lambda q: q.fetchone()):
        with pytest.raises(DatabaseDamaged):
            read(database.read().execute("SELECT n FROM t"))  # type: ignore[no-untyped-call]
    database.close()
