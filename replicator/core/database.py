"""SQLite, opened one way everywhere.

WAL with synchronous=FULL: a committed transaction survives a power cut, and readers do not
wait for the writer. One connection writes, under a lock, and owns the checkpoints (SQLite up
to 3.51.2 could corrupt a database when two connections checkpointed at once); each thread
that reads has a connection of its own, which goes when the thread goes.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from weakref import WeakSet, finalize

from replicator.core.errors import ConfigError, StoreError, StoreFull, StoreReadOnly


class _Reader:
    """Owned by one thread: when that thread ends, nothing refers to it, and the connection is closed.

    (By hand: a connection refers to itself, and would wait for the garbage collector with its files open.)
    """

    __slots__ = ("__weakref__", "connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        finalize(self, connection.close)


class Database:
    """One SQLite file with a schema that only moves forward.

    `migrations[n]` takes the schema from version n to n+1. A file from a newer release is
    refused: guessing at it could lose what it says.
    """

    def __init__(self, path: Path, migrations: tuple[str, ...]) -> None:
        self.path = path
        self._local = threading.local()
        self._write_lock = threading.RLock()
        self._readers: WeakSet[_Reader] = WeakSet()
        try:
            self._writer = self._connect()
            try:
                self._migrate(migrations)
                self._check_schema(migrations)
            except BaseException:
                self._writer.close()
                raise
        except UnicodeDecodeError as error:
            # SQLite's message quotes what it cannot parse as it is, and Python cannot make text of that.
            raise _damaged() from error

    def _migrate(self, migrations: tuple[str, ...]) -> None:
        version: int = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise ConfigError(
                f"{self.path} was written by a newer release (schema {version}, this one knows {len(migrations)}).",
                hint="Upgrade this node.",
            )
        for number, script in enumerate(migrations[version:], version + 1):
            self._writer.executescript(f"BEGIN; {script}; PRAGMA user_version={number}; COMMIT;")

    def _check_schema(self, migrations: tuple[str, ...]) -> None:
        """A flipped bit in the name of a column makes another valid schema, which no check of SQLite's own can see.

        Raises `sqlite3.DatabaseError`.
        """
        with closing(sqlite3.connect(":memory:")) as fresh:
            for script in migrations:
                fresh.executescript(script)
            if _schema(fresh) != _schema(self._writer):
                raise _damaged()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            # One rotten letter must not make a row that nobody can read.
            connection.text_factory = _text
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA cache_size=-16384")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it, or, if the block raises, nothing of it.

        Raises `StoreFull`, or `StoreReadOnly` if the disk failed: what an fsync has refused once is not tried again.
        """
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._roll_back()
                raise self._failure(error) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _failure(self, error: sqlite3.OperationalError) -> StoreError:
        what = f"{self.path} could not be written: {error}."
        match error.sqlite_errorcode & 0xFF:
            case sqlite3.SQLITE_FULL:
                return StoreFull(what, hint="Free space on that disk.")
            case sqlite3.SQLITE_IOERR:
                return StoreReadOnly(what, hint="Check the disk, then restart the node.")
        return StoreError(what)

    @property
    def changes_count(self) -> int:
        """Rows changed since the file was opened: who has derived something knows from it whether to do so again."""
        return self._writer.total_changes

    def read(self) -> sqlite3.Connection:
        """This thread's connection for reading."""
        reader: _Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = _Reader(self._connect())
            reader.connection.execute("PRAGMA query_only=ON")
            self._local.reader = reader
            with self._write_lock:
                self._readers.add(reader)
        return reader.connection

    def close(self) -> None:
        """Let go of the file. What was committed is in it."""
        with self._write_lock:
            for reader in self._readers:
                reader.connection.close()
            self._readers.clear()
            self._writer.close()


def _schema(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    return connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
    ).fetchall()


def _damaged() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("its schema is damaged")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


OpenDatabase = Callable[[Path, tuple[str, ...]], Database]
"""How a database is opened: `Database` itself on a machine with a disk."""
