"""Who we trust, and the codes by which a stranger becomes a peer."""

import hmac
import json
import re
from collections.abc import Sequence
from hashlib import sha256

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from replicator.catalog.model import Peer
from replicator.catalog.rights import BY_CODE, Rights, decode_rights, encode_rights
from replicator.core.database import Database
from replicator.core.errors import NotFound
from replicator.core.ports import WallClock

TRIES_MAX = 5


def plain_name(name: str) -> str:
    """What can be shown on a terminal, typed, and put into a URL."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:63].strip("-.") or "site"


class Peers:
    """The tables of peers and invites."""

    def __init__(self, db: Database, *, clock: WallClock) -> None:
        self._db = db
        self._clock = clock

    def add(
        self,
        site_id: bytes,
        *,
        name: str,
        addresses: Sequence[str],
        rights: Rights = BY_CODE,
        introduced_by: bytes | None = None,
    ) -> Peer:
        """Trust a site from now on. The name is the site's own idea: made plain, and with a number if it is taken.

        A site that is a peer already keeps its rights.
        """
        with self._db.write() as connection:
            taken = {row[0] for row in connection.execute("SELECT name FROM peers WHERE site_id != ?", (site_id,))}
            plain = plain_name(name)
            unique, number = plain, 2
            while unique in taken:
                unique, number = f"{plain}-{number}", number + 1
            connection.execute(
                "INSERT INTO peers (site_id, name, addresses, added_ns, rights, introduced_by) "
                "VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (site_id) DO UPDATE SET name = excluded.name, addresses = excluded.addresses",
                (
                    site_id, unique, json.dumps(list(addresses)), self._clock.now_ns(), encode_rights(rights),
                    introduced_by,
                ),
            )  # fmt: skip
            connection.execute("DELETE FROM revoked WHERE site_id = ?", (site_id,))
        return self.get(site_id)

    def all(self) -> list[Peer]:
        return self._db.remembered("peers", self._all)

    def _all(self) -> list[Peer]:
        sql = "SELECT site_id, name, addresses, added_ns, last_seen_ns, rights, introduced_by FROM peers ORDER BY name"
        rows = self._db.read().execute(sql)
        return [
            Peer(SiteId(row[0]), row[1], tuple(json.loads(row[2])), row[3], row[4], decode_rights(row[5]), row[6])
            for row in rows
        ]

    def rights_of(self, site_id: bytes) -> Rights:
        """None for a site that is not a peer."""
        row = self._db.read().execute("SELECT rights FROM peers WHERE site_id = ?", (site_id,)).fetchone()
        return Rights() if row is None else decode_rights(row[0])

    def set_rights(self, site_id: bytes, rights: Rights) -> None:
        """What the peer may ask of us from now on."""
        with self._db.write() as connection:
            connection.execute("UPDATE peers SET rights = ? WHERE site_id = ?", (encode_rights(rights), site_id))

    def is_revoked(self, site_id: bytes) -> bool:
        sql = "SELECT 1 FROM revoked WHERE site_id = ?"
        return self._db.read().execute(sql, (site_id,)).fetchone() is not None

    def get(self, site_id: bytes) -> Peer:
        """Raises `NotFound`."""
        for peer in self.all():
            if peer.site_id == site_id:
                return peer
        raise NotFound(f"Site {site_id.hex()[:12]} is not a peer.")

    def find(self, text: str) -> Peer:
        """By name, or by the beginning of its id. Raises `NotFound`."""
        peers = self.all()
        found = [peer for peer in peers if peer.name == text] or [
            peer for peer in peers if len(text) >= 4 and peer.site_id.hex().startswith(text.lower())
        ]
        if len(found) != 1:
            names = ", ".join(peer.name for peer in peers) or "none yet"
            raise NotFound(f"There is no peer {text!r}.", hint=f"Known peers: {names}.")
        return found[0]

    def name_of(self, site_id: bytes) -> str:
        """What to call a site in a sentence, peer or not."""
        for peer in self.all():
            if peer.site_id == site_id:
                return peer.name
        return site_id.hex()[:12]

    def note_seen(self, site_id: bytes) -> None:
        with self._db.write() as connection:
            connection.execute("UPDATE peers SET last_seen_ns = ? WHERE site_id = ?", (self._clock.now_ns(), site_id))

    def note_incarnation(self, site_id: bytes, incarnation: bytes) -> bool:
        """Remember it. Returns whether the site had another one before, that is, has lost state since."""
        with self._db.write() as connection:
            row = connection.execute("SELECT incarnation FROM peers WHERE site_id = ?", (site_id,)).fetchone()
            if row is None or row[0] == incarnation:
                return False
            connection.execute("UPDATE peers SET incarnation = ? WHERE site_id = ?", (incarnation, site_id))
            return row[0] is not None

    def revoke(self, site_id: bytes) -> None:
        """Trust a site no more, and forget what was promised to it and by it. The caller cuts its links.

        Kept promises would fail for ever, and their alerts would never end.
        """
        peer = self.get(site_id)
        with self._db.write() as connection:
            connection.execute("DELETE FROM peers WHERE site_id = ?", (site_id,))
            connection.execute("DELETE FROM syncs WHERE peer = ?", (site_id,))
            connection.execute("DELETE FROM expectations WHERE peer = ?", (site_id,))
            connection.execute("DELETE FROM throttles WHERE scope = ?", (site_id,))
            connection.execute(
                "INSERT OR REPLACE INTO revoked VALUES (?, ?, ?)", (site_id, peer.name, self._clock.now_ns())
            )

    # -- invites --------------------------------------------------------------------------

    def add_invite(self, invite_id: bytes, secret: bytes, *, expires_ns: int) -> None:
        with self._db.write() as connection:
            connection.execute("DELETE FROM invites WHERE expires_ns < ?", (self._clock.now_ns() - 86_400 * 10**9,))
            connection.execute(
                "INSERT INTO invites VALUES (?, ?, ?, ?, NULL)",
                (invite_id, sha256(secret).digest(), expires_ns, TRIES_MAX),
            )

    def invites(self) -> list[bytes]:
        """Ids of codes that are remembered, spent ones too: their holders are told what is wrong with them."""
        return [row[0] for row in self._db.read().execute("SELECT invite_id FROM invites ORDER BY expires_ns")]

    def redeem(self, invite_id: bytes, secret: bytes, *, by: bytes) -> ErrorCode:
        """Use a code up. The same site may ask twice: its first answer may have been lost on the way."""
        with self._db.write() as connection:
            row = connection.execute(
                "SELECT secret_hash, expires_ns, tries_left, used_by FROM invites WHERE invite_id = ?", (invite_id,)
            ).fetchone()
            if row is None:
                return ErrorCode.PAIR_CODE_WRONG
            secret_hash, expires_ns, tries_left, used_by = row
            if tries_left <= 0:
                return ErrorCode.PAIR_CODE_DEAD
            if not hmac.compare_digest(sha256(secret).digest(), secret_hash):
                connection.execute("UPDATE invites SET tries_left = tries_left - 1 WHERE invite_id = ?", (invite_id,))
                return ErrorCode.PAIR_CODE_WRONG
            if used_by is not None and used_by != by:
                return ErrorCode.PAIR_CODE_USED
            if self._clock.now_ns() > expires_ns:
                return ErrorCode.PAIR_CODE_EXPIRED
            connection.execute("UPDATE invites SET used_by = ? WHERE invite_id = ?", (by, invite_id))
            return ErrorCode.OK
