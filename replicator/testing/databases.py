"""SQLite without a file. The last committed state outlives the node, as a file's would.

It is a real SQLite with the real schema, in memory, and one connection both writes and reads: in
a world without threads nothing can come between. A transaction that is open when the power
goes is rolled back by whoever opens the database next.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replicator.core.database import Database
from replicator.core.errors import StoreFull
from replicator.testing.power import Power, PowerCut


class MemoryDatabases:
    """All databases of one machine, by the name of the file that each would be."""

    def __init__(self) -> None:
        self._kept: dict[str, sqlite3.Connection] = {}
        self.is_full = False
        """No transaction can be committed: the disk is full."""

    def connection(self, name: str) -> sqlite3.Connection:
        if name not in self._kept:
            self._kept[name] = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        return self._kept[name]

    def is_kept(self, name: str, connection: sqlite3.Connection) -> bool:
        """Whether this is still the file of that name."""
        return self._kept.get(name) is connection

    def lose(self, name: str) -> None:
        """As if the file had been deleted."""
        self._kept.pop(name).close()

    def roll_back(self) -> None:
        """What the next start finds: nothing of a transaction that was not committed."""
        for connection in self._kept.values():
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()


class MemoryDatabase(Database):
    """One of them, opened by one life of the machine."""

    def __init__(self, path: Path, migrations: tuple[str, ...], *, kept: MemoryDatabases, power: Power) -> None:
        self._kept = kept
        self._power = power
        super().__init__(path, migrations)

    def _connect(self, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
        del factory  # One connection for all, so it cannot be of a reader's kind.
        return self._kept.connection(self.path.name)

    def _keep_name(self) -> None:
        """There is no folder that could forget it."""

    def _must_be_there(self) -> None:
        """A file is lost only while its machine is off: who still asks for it is something of that life. `PowerCut`."""
        if not self._kept.is_kept(self.path.name, self._writer):
            raise PowerCut

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        self._must_be_there()
        with super().write() as connection:
            yield connection
            if self._kept.is_full:
                raise StoreFull(f"{self.path} could not be written: the disk is full.", hint="Free space on that disk.")
            self._power.step()
        self._power.step()

    def read(self) -> sqlite3.Connection:
        self._must_be_there()
        return self._writer

    def close(self) -> None:
        """The connection is the disk's, and stays."""
