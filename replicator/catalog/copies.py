"""The catalogue's verbs for copies of volumes from elsewhere, and for whose data a volume is.

What is kept here is decided here. A sender's wish is written down, and counts only if its
rights here say so; and then it may make a rule more generous, never stricter, because a source
that was taken over would otherwise send `keep 1` and a worthless snapshot.
"""

from protocol.ids import VolumeId
from replicator.catalog.model import CopyRule
from replicator.catalog.retention import is_as_generous
from replicator.core.database import Database

HERE = "here"


class Copies:
    """A part of `Catalog`."""

    db: Database

    def copy_rules(self) -> dict[VolumeId, CopyRule]:
        return {rule.volume_id: rule for rule in self.db.remembered("copy rules", self._copy_rules)}

    def _copy_rules(self) -> list[CopyRule]:
        rows = self.db.read().execute(
            "SELECT volume_id, keep, prefix, is_passive, decided_by, asked_keep FROM copy_rules"
        )
        return [CopyRule(VolumeId(r[0]), r[1], r[2], bool(r[3]), r[4], r[5]) for r in rows]

    def set_copy_rule(self, volume_id: bytes, *, keep: str, prefix: str, is_passive: bool) -> CopyRule:
        """The operator of this site, or a pull of ours, decides."""
        before = self.copy_rules().get(VolumeId(volume_id))
        asked = before.asked_keep if before is not None and before.asked_keep != keep else ""
        rule = CopyRule(VolumeId(volume_id), keep, prefix, is_passive, HERE, asked)
        self._put(rule)
        return rule

    def note_wish(
        self, volume_id: bytes, *, peer: bytes, keep: str, prefix: str, is_passive: bool, may_retain: bool
    ) -> CopyRule | None:
        """What a sender would like of its copies. Returns the rule that holds."""
        volume = VolumeId(volume_id)
        before = self.copy_rules().get(volume)
        if before is None:
            if not (keep or prefix or is_passive):
                return None
            granted = keep if may_retain else ""
            rule = CopyRule(volume, granted, prefix, is_passive, peer.hex(), "" if granted == keep else keep)
        elif keep == before.keep or (
            may_retain and before.decided_by == peer.hex() and is_as_generous(keep, before.keep)
        ):
            rule = CopyRule(volume, keep, before.prefix, before.is_passive, before.decided_by, "")
        else:
            rule = CopyRule(volume, before.keep, before.prefix, before.is_passive, before.decided_by, keep)
        if rule != before:
            self._put(rule)
        return rule

    def _put(self, rule: CopyRule) -> None:
        with self.db.write() as connection:
            old = connection.execute("SELECT prefix FROM copy_rules WHERE volume_id = ?", (rule.volume_id,)).fetchone()
            was = "" if old is None else old[0]
            row = connection.execute("SELECT name FROM volumes WHERE volume_id = ?", (rule.volume_id,)).fetchone()
            if row is not None and was != rule.prefix:
                plain = row[0].removeprefix(was)
                connection.execute(
                    "UPDATE volumes SET name = ? WHERE volume_id = ?", (rule.prefix + plain, rule.volume_id)
                )
            connection.execute(
                "INSERT OR REPLACE INTO copy_rules VALUES (?, ?, ?, ?, ?, ?)",
                (rule.volume_id, rule.keep, rule.prefix, int(rule.is_passive), rule.decided_by, rule.asked_keep),
            )

    # -- whose data it is -----------------------------------------------------------------

    def set_tenant(self, volume_id: bytes, tenant: str) -> None:
        """Later snapshots of the volume carry the label; an empty one takes it away."""
        with self.db.write() as connection:
            if tenant:
                connection.execute("INSERT OR REPLACE INTO labels VALUES (?, ?)", (volume_id, tenant))
            else:
                connection.execute("DELETE FROM labels WHERE volume_id = ?", (volume_id,))

    def tenant_of(self, volume_id: bytes) -> str:
        row = self.db.read().execute("SELECT tenant FROM labels WHERE volume_id = ?", (volume_id,)).fetchone()
        return "" if row is None else str(row[0])
