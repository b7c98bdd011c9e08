"""The catalogue's verbs for the audit of repairs: who asked for which block, who served it, and how it ended."""

from collections.abc import Sequence

from protocol.ids import BlockId
from replicator.catalog.model import RepairLine
from replicator.core.database import Database


class RepairLines:
    """A part of `Catalog`."""

    db: Database

    def add_repairs(self, lines: Sequence[RepairLine]) -> None:
        with self.db.write() as connection:
            connection.executemany(
                "INSERT INTO repairs (at_ns, block_id, kind, cause, role, peer, outcome, took_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(r.at_ns, r.block_id, r.kind, r.cause, r.role, r.peer, r.outcome, r.took_s) for r in lines],
            )

    def begin_repairs(self, lines: Sequence[RepairLine]) -> dict[BlockId, int]:
        """Enter lines whose end is not known yet; returns their numbers by block."""
        with self.db.write() as connection:
            first = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM repairs").fetchone()[0]
            connection.executemany(
                "INSERT INTO repairs (number, at_ns, block_id, kind, cause, role, peer, outcome, took_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (n, r.at_ns, r.block_id, r.kind, r.cause, r.role, r.peer, r.outcome, r.took_s)
                    for n, r in enumerate(lines, first)
                ],
            )
        return {r.block_id: n for n, r in enumerate(lines, first)}

    def end_repairs(self, ends: dict[int, tuple[str, float]]) -> None:
        """By number: how it ended, and after how long."""
        with self.db.write() as connection:
            connection.executemany(
                "UPDATE repairs SET outcome = ?, took_s = ? WHERE number = ?",
                [(outcome, took_s, number) for number, (outcome, took_s) in ends.items()],
            )

    def begun_repairs(self) -> dict[int, BlockId]:
        """Lines without an end: what was being asked for when the node died."""
        rows = self.db.read().execute("SELECT number, block_id FROM repairs WHERE outcome = 'asking'")
        return {row[0]: BlockId(row[1]) for row in rows}

    def repairs(self, *, limit: int) -> list[RepairLine]:
        """The newest lines of the audit, newest first."""
        rows = self.db.read().execute(
            "SELECT at_ns, block_id, kind, cause, role, peer, outcome, took_s FROM repairs "
            "ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return [RepairLine(*row) for row in rows]

    def repair_counts(self) -> dict[tuple[str, str], int]:
        """How many lines there are of each role and outcome."""
        rows = self.db.read().execute("SELECT role, outcome, count(*) FROM repairs GROUP BY role, outcome")
        return {(row[0], row[1]): row[2] for row in rows}
