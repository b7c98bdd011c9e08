"""The catalogue's verbs for keys that took the place of others.

A site *is* its key, so a new key is a new name for everything that the old one named: links,
syncs, receipts, volumes. Records that the old key signed stay as they are, for ever; they are
believed up to the sequence at which the site changed its key, so whoever stole the old one
cannot add to them.
"""

import json
import sqlite3
from collections.abc import Callable

from protocol.ids import SiteId
from replicator.catalog.model import Succession
from replicator.core.database import Database
from replicator.core.facts import read_fact

_CHAIN_MAX = 64
"""Keys of one site: one a year for a lifetime. It also ends a loop that should not be there."""


class Successions:
    """A part of `Catalog`."""

    db: Database

    def successions(self) -> list[Succession]:
        return self.db.remembered("successions", self._successions)

    def _successions(self) -> list[Succession]:
        rows = self.db.read().execute(
            "SELECT old, new, until_ns, sequence_max, by_old, by_new, told FROM successions ORDER BY until_ns"
        )
        return [
            Succession(r[0], r[1], r[2], r[3], r[4], r[5], frozenset(bytes.fromhex(one) for one in json.loads(r[6])))
            for r in rows
        ]

    def add_succession(self, one: Succession) -> None:
        """Enter it; what is known already stays as it is."""
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO successions (old, new, until_ns, sequence_max, by_old, by_new) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (one.old, one.new, one.until_ns, one.sequence_max, one.by_old, one.by_new),
            )

    def note_told(self, old: bytes, peer: bytes) -> None:
        """A peer has noted our new key."""
        with self.db.write() as connection:
            row = connection.execute("SELECT told FROM successions WHERE old = ?", (old,)).fetchone()
            if row is not None:
                told = sorted({*read_fact(row[0], list[str], name="who was told of a key"), peer.hex()})
                connection.execute("UPDATE successions SET told = ? WHERE old = ?", (json.dumps(told), old))

    def current_key(self, site: SiteId, *, sequence: int | None = None) -> SiteId:
        """The newest key of a site. With the sequence of a record that `site` signed: `site` itself if the record is
        newer than its key may sign, so that it is taken for a stranger's."""
        followed = {one.old: one for one in self.successions()}
        key = site
        for _ in range(_CHAIN_MAX):
            if key not in followed:
                break
            if sequence is not None and sequence > followed[key].sequence_max:
                return site
            key = followed[key].new
        return key

    def is_own_key(self, current: SiteId) -> Callable[[SiteId], bool]:
        """Whether a key is, or once was, that of the site whose key of today is `current`."""
        before = {one.new: one.old for one in self.successions()}
        ours, key = {current}, current
        for _ in range(_CHAIN_MAX):
            if key not in before:
                break
            key = before[key]
            ours.add(key)
        return ours.__contains__

    def rename_site(self, old: bytes, new: bytes) -> None:
        """Everything that the old key named is named by the new one from now on."""
        with self.db.write() as connection:
            _rename(connection, "peers", "site_id", old, new)
            _rename(connection, "peers", "introduced_by", old, new)
            _rename(connection, "volumes", "origin", old, new)
            _rename(connection, "syncs", "peer", old, new)
            _rename(connection, "receipts", "site_id", old, new)
            _rename(connection, "expectations", "peer", old, new)
            _rename(connection, "throttles", "scope", old, new)
            connection.execute("UPDATE copy_rules SET decided_by = ? WHERE decided_by = ?", (new.hex(), old.hex()))


def _rename(connection: sqlite3.Connection, table: str, column: str, old: bytes, new: bytes) -> None:
    # The names are ours, from the lines above; nothing that anybody typed gets here.
    connection.execute(f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {column} = ?", (new, old))
