"""Every cell of the node's own tables that is parsed when it is read, each with its reader.

SQLite has no sums: what a disk has spoiled in a page is read as it is. A cell may be refused as damaged, and with
nothing else; a reader of what can be done without begins anew.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from protocol.ids import SiteId, VolumeId
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Succession, Volume
from replicator.core.brake import _kept
from replicator.core.database import Database
from replicator.jobs.arrivals import arrivals
from replicator.jobs.bulk import BulkGuard, held_now
from replicator.jobs.history import JobHistory
from replicator.repair.scrub import Scrubber
from replicator.testing.databases import MemoryDatabase, MemoryDatabases
from replicator.testing.power import Power

Reading = Callable[[bytes], object]
_NOTHING: Any = None
"""What a reader is given and does not touch."""


class _Clock:
    def now_ns(self) -> int:
        return 10**18


class _Tables:
    """One catalogue and one history of jobs in memory, of which any cell can be made to say anything."""

    def __init__(self) -> None:
        clock, self.kept = _Clock(), MemoryDatabases()
        open_database = partial(MemoryDatabase, kept=self.kept, power=Power())
        self.catalog = Catalog(Path("catalog"), clock=clock, open_database=open_database)
        self.history = JobHistory(Path("jobs"), clock=clock, open_database=open_database)
        catalog = self.catalog
        catalog.add_volume(Volume(VolumeId(bytes(16)), "photos", "tree", SiteId(bytes(32)), b"/photos", 4096, ()))
        catalog.peers.add(bytes(32), name="cabin", addresses=[])
        catalog.add_sync("s", volume_id=bytes(16), peer=bytes(32), keep="")
        catalog.add_succession(Succession(SiteId(bytes(32)), SiteId(bytes(32)), 0, 0, b"", b""))
        self.history.enter("j", "scrub", {})

    def say(self, database: Database, sql: str, data: bytes, read: Callable[[], object]) -> None:
        """As text or, if it is none, as bytes: SQLite keeps in a cell whatever it is told to."""
        try:
            value: str | bytes = data.decode()
        except UnicodeDecodeError:
            value = data
        with database.write() as connection:
            connection.execute(sql, (value,))
        read()


_TABLES = lru_cache(maxsize=1)(_Tables)


def _cell(table: str, column: str, read: Callable[[Catalog], object]) -> Reading:
    def decoder(data: bytes) -> None:
        catalog = _TABLES().catalog
        _TABLES().say(catalog.db, f"UPDATE {table} SET {column} = ?", data, lambda: read(catalog))

    return decoder


def _fact(name: str, read: Callable[[Catalog], object]) -> Reading:
    def decoder(data: bytes) -> None:
        catalog = _TABLES().catalog
        sql = f"INSERT OR REPLACE INTO facts VALUES ('{name}', ?)"
        _TABLES().say(catalog.db, sql, data, lambda: read(catalog))

    return decoder


def _job(column: str) -> Reading:
    def decoder(data: bytes) -> None:
        history = _TABLES().history
        _TABLES().say(history._db, f"UPDATE jobs SET {column} = ?", data, lambda: history.get("j"))

    return decoder


def _scrubber(catalog: Catalog) -> Scrubber:

    one = Scrubber(store=_NOTHING, catalog=catalog, reader=_NOTHING, offload=_NOTHING, clock=_Clock(), heal=None)
    assert all(isinstance(found["what"], str) for found in one.findings)
    return one


CELLS: dict[str, Reading] = {
    "cell: what a volume leaves out": _cell("volumes", "exclude", lambda catalog: catalog.volumes()),
    "cell: addresses of a peer": _cell("peers", "addresses", lambda catalog: catalog.peers.all()),
    "cell: rights of a peer": _cell("peers", "rights", lambda catalog: catalog.peers.all()),
    "cell: terms of a sync": _cell("syncs", "terms", lambda catalog: catalog.syncs()),
    "cell: who was told of a key": _cell("successions", "told", lambda catalog: catalog.successions()),
    "cell: arguments of a job": _job("args"),
    "cell: result of a job": _job("result"),
    "cell: error of a job": _job("error"),
    "fact: records that cannot be read": _fact("catalogue.unread", lambda catalog: catalog.lost.unread()),
    "fact: peaks": _fact("snapshots.peaks", lambda catalog: catalog.peak_since(0)),
    "fact: a collection that is held": _fact("gc.held", held_now),
    "fact: the day's collections": _fact("gc.day", lambda catalog: BulkGuard(catalog, _NOTHING, lambda: 0)._stands()),
    "fact: copies of a volume": _fact(f"arrivals:{bytes(16).hex()}", lambda catalog: arrivals(catalog, bytes(16))),
    "fact: pass of a scrub": _fact("scrub.pass", _scrubber),
    "fact: findings of a scrub": _fact("scrub.findings", _scrubber),
    "fact: the clock": _fact("clock.watch", lambda catalog: _kept(catalog.fact("clock.watch"))),
}
"""What the node itself keeps as JSON in its own tables, which have no sums."""
