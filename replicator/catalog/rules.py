"""The catalogue's verbs for bandwidth rules that were set on a running node."""

from replicator.catalog.model import StoredRule
from replicator.core.database import Database


class Rules:
    """A part of `Catalog`."""

    db: Database

    def throttles(self) -> list[StoredRule]:
        rows = self.db.read().execute("SELECT scope, way, rule, zone, burst_s FROM throttles ORDER BY scope, way")
        return [StoredRule(*row) for row in rows]

    def set_throttle(self, rule: StoredRule) -> None:
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO throttles VALUES (?, ?, ?, ?, ?)",
                (rule.scope, rule.way, rule.text, rule.zone, rule.burst_s),
            )

    def end_throttles(self, scope: bytes) -> None:
        """For the node, what the configuration file says counts again."""
        with self.db.write() as connection:
            connection.execute("DELETE FROM throttles WHERE scope = ?", (scope,))
