"""SQLite, opened one way everywhere.

WAL with synchronous=FULL: a committed transaction survives a power cut, and readers do not
wait for the writer. One connection writes, under a lock, and owns the checkpoints (SQLite up
to 3.51.2 could corrupt a database when two connections checkpointed at once); each thread
that reads has a connection of its own, which goes when the thread goes.

What SQLite raises is turned into our errors here, for reads too: a disk that fails under a
query is a sentence with a next step for whoever asked, not a traceback.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakSet, finalize

from replicator.core.errors import ConfigError, DatabaseDamaged, StoreError, StoreFull, StoreReadOnly
from replicator.core.facts import SENSELESS, damaged_cell
from replicator.core.files import sync_directory

P = ParamSpec("P")
T = TypeVar("T")
_OURS: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError)
"""What only a mistake in a statement of ours can raise: it stays what it is."""
_LOST: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
"""After these nobody knows what is on the disk: the kernel forgets what it could not write, and the next flush
"succeeds" (PostgreSQL, 2018)."""
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
"""The second one is a full disk too: not even the little file that connections share can grow."""


_REMEMBERED_MAX: Final = 10_000
"""Rows of a table that are kept in memory between two changes: more is no short list, and is read each time."""


def _failure(error: sqlite3.Error, what: str, *, writing: bool = False) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0)
    said = f"{what}: {error}."
    if code in _NO_ROOM:
        return StoreFull(said, hint="Free space on that disk.")
    match code & 0xFF:
        case sqlite3.SQLITE_IOERR if writing:
            return StoreReadOnly(said, hint="Check the disk, then restart the node.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseDamaged(said, hint="Check the disk, then restart the node: what can be rebuilt, is.")
    return StoreError(said)


def _typed(step: Callable[P, T]) -> Callable[P, T]:
    def stepped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return step(*args, **kwargs)
        except _OURS:
            raise
        except sqlite3.Error as error:
            raise _failure(error, "A database could not be read") from error

    return stepped


class _Cursor(sqlite3.Cursor):
    """A cursor whose errors are ours. Rows are stepped by SQLite's own code: one that is read costs nothing more."""

    execute = _typed(sqlite3.Cursor.execute)
    fetchone = _typed(sqlite3.Cursor.fetchone)
    fetchall = _typed(sqlite3.Cursor.fetchall)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from iter(super().__next__, None)
        except sqlite3.Error as error:
            raise _failure(error, "A database could not be read") from error


class _ReadingConnection(sqlite3.Connection):
    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(sql, parameters)


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
        self._ended_count = 0
        """Transactions that have ended, one way or the other."""
        self._remembered: dict[str, tuple[int, list[Any]]] = {}
        self.poisoned = ""
        """Why nothing is written any more, once the disk has lost something of this file; empty while all is well."""
        is_new = not path.exists()
        try:
            self._writer = self._connect(sqlite3.Connection)
            try:
                self._migrate(migrations)
                self._check_schema(migrations)
                if is_new:
                    self._keep_name()
            except BaseException:
                self._writer.close()
                raise
        except UnicodeDecodeError as error:
            # SQLite's message quotes what it cannot parse as it is, and Python cannot make text of that.
            raise _damaged() from error

    def _keep_name(self) -> None:
        """SQLite flushes the folder of a new file too, and does not look at what comes of it."""
        try:
            sync_directory(self.path.parent)
        except OSError as error:
            raise StoreError(f"{self.path} could not be made: {error.strerror}.", hint="Check the disk.") from error

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
        if _fresh_schema(migrations) != _schema(self._writer):
            raise _damaged()

    def check(self) -> str:
        """What SQLite says of its own file: empty if it is sound. Raises `sqlite3.DatabaseError` if it cannot say."""
        answer: str = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]
        return "" if answer == "ok" else answer

    def _connect(self, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=30, factory=factory
        )
        try:
            # One rotten letter must not make a row that nobody can read.
            connection.text_factory = _text
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                # SQLite does not call it an error if a flush failed meanwhile: it goes on without a log.
                raise StoreError(
                    f"{self.path} cannot be kept with a log of what is written (mode {mode!r}).",
                    hint="Check the disk; a file system of another machine cannot do it.",
                )
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA cache_size=-16384")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it, or, if the block raises, nothing of it.

        Raises `StoreFull`, or `StoreReadOnly` if the disk failed: what a flush has refused once is not tried again,
        and every later call raises the same. `DatabaseDamaged` if the file makes no sense.
        """
        with self._write_lock:
            if self.poisoned:
                raise StoreReadOnly(self.poisoned, hint="Check the disk, then restart the node.")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
                self._ended_count += 1
            except _OURS:
                self._roll_back()
                raise
            except sqlite3.Error as error:
                failure = _failure(error, f"{self.path} could not be written", writing=True)
                if getattr(error, "sqlite_errorcode", 0) in _LOST:
                    self.poisoned = failure.message
                self._roll_back()
                raise failure from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        self._ended_count += 1
        # On a failing disk this fails too; then the transaction ends with the connection.
        with suppress(sqlite3.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def remembered(self, name: str, read: Callable[[], list[T]]) -> list[T]:
        """What `read` gives, read once for as long as nothing is written. The list is the caller's own.

        For short lists that are looked at all the time: who is a peer is asked at each frame of a status, and each
        second by several workers. A commit that ends while somebody reads makes the next one read again. Raises
        `DatabaseDamaged` if a cell makes no sense.
        """
        ended = self._ended_count
        known = self._remembered.get(name)
        if known is None or known[0] != ended:
            try:
                known = ended, read()
            except SENSELESS as error:
                raise damaged_cell(name, error) from error
            if len(known[1]) <= _REMEMBERED_MAX:
                self._remembered[name] = known
        return list(known[1])

    @property
    def changes_count(self) -> int:
        """Rows changed since the file was opened: who has derived something knows from it whether to do so again."""
        return self._writer.total_changes

    def read(self) -> sqlite3.Connection:
        """This thread's connection for reading. What it raises is a `StoreError`."""
        reader: _Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            try:
                reader = _Reader(self._connect(_ReadingConnection))
            except sqlite3.Error as error:
                raise _failure(error, f"{self.path} could not be opened to read") from error
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


@lru_cache(maxsize=8)
def _fresh_schema(migrations: tuple[str, ...]) -> list[tuple[str, str, str | None]]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        for script in migrations:
            fresh.executescript(script)
        return _schema(fresh)


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
