"""The catalogue: what this node remembers besides blocks. One SQLite file, a handful of tables.

This is the canonical description of them. Times are nanoseconds of UTC by this node's own
clock unless a column says otherwise. Unlike the ledger this is *not* a cache, with one
exception: `snapshots` can be found again from the record blocks in the store.
"""

from typing import Final

MIGRATIONS: Final = (
    """
    -- Sites that we trust with copies, by the key that pins them.
    CREATE TABLE peers (
      site_id BLOB PRIMARY KEY,      -- Ed25519 public key
      name TEXT NOT NULL UNIQUE,
      addresses TEXT NOT NULL,       -- JSON list of host:port; may be empty for a site that only dials out
      added_ns INTEGER NOT NULL,
      last_seen_ns INTEGER,          -- when a link to it last carried anything
      incarnation BLOB
    ) WITHOUT ROWID;
    -- Sites that were peers once and must never be again without a new pairing.
    CREATE TABLE revoked (site_id BLOB PRIMARY KEY, name TEXT NOT NULL, revoked_ns INTEGER NOT NULL) WITHOUT ROWID;
    -- Pairing codes. A used one is kept until it expires, so that a lost answer can be asked for again.
    CREATE TABLE invites (
      invite_id BLOB PRIMARY KEY, secret_hash BLOB NOT NULL, expires_ns INTEGER NOT NULL,
      tries_left INTEGER NOT NULL, used_by BLOB
    ) WITHOUT ROWID;
    -- What is protected here (path set), or was received from elsewhere (path NULL).
    CREATE TABLE volumes (
      volume_id BLOB PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, origin BLOB NOT NULL,
      path BLOB, block_bytes INTEGER NOT NULL, exclude TEXT NOT NULL, created_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX volumes_by_path ON volumes (path) WHERE path IS NOT NULL;
    -- Snapshots that are here, whole. received_ns is our clock, and what retention counts from.
    CREATE TABLE snapshots (
      snapshot_id BLOB PRIMARY KEY, volume_id BLOB NOT NULL REFERENCES volumes, sequence INTEGER NOT NULL,
      root BLOB NOT NULL, received_ns INTEGER NOT NULL, system_id BLOB NOT NULL,
      record BLOB NOT NULL,          -- signed by its origin
      record_block BLOB NOT NULL,    -- id of the same bytes in the store
      held TEXT NOT NULL DEFAULT ''  -- why it must not be removed; empty if it may
    ) WITHOUT ROWID;
    CREATE INDEX snapshots_by_volume ON snapshots (volume_id, sequence);
    -- Standing promises: a snapshot this often, kept by this rule, sent to these sites.
    CREATE TABLE protections (
      volume_id BLOB PRIMARY KEY REFERENCES volumes, every_s REAL NOT NULL, keep TEXT NOT NULL,
      next_run_ns INTEGER NOT NULL, last_success_ns INTEGER, last_error TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID;
    -- Site syncs: which volume goes to which peer. volume_id empty = every volume that is here.
    CREATE TABLE syncs (
      sync_id TEXT PRIMARY KEY, volume_id BLOB NOT NULL, peer BLOB NOT NULL, keep TEXT NOT NULL,
      paused INTEGER NOT NULL DEFAULT 0, created_ns INTEGER NOT NULL,
      last_success_ns INTEGER, last_error TEXT NOT NULL DEFAULT '', failures INTEGER NOT NULL DEFAULT 0,
      next_try_ns INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    -- Proof that a peer holds a snapshot: its signed receipt.
    CREATE TABLE receipts (
      snapshot_id BLOB NOT NULL, site_id BLOB NOT NULL, receipt BLOB NOT NULL, received_ns INTEGER NOT NULL,
      PRIMARY KEY (snapshot_id, site_id)
    ) WITHOUT ROWID;
    -- What a peer promised to send us; silence is an alarm here as well.
    CREATE TABLE expectations (
      volume_id BLOB NOT NULL, peer BLOB NOT NULL, every_s INTEGER NOT NULL, last_ns INTEGER NOT NULL,
      PRIMARY KEY (volume_id, peer)
    ) WITHOUT ROWID;
    -- One line a block that was healed here or served to a peer: who asked, who served, how long it took.
    CREATE TABLE repairs (
      number INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, block_id BLOB NOT NULL, kind INTEGER NOT NULL,
      cause TEXT NOT NULL, role TEXT NOT NULL,  -- asked | served
      peer TEXT NOT NULL, outcome TEXT NOT NULL, took_s REAL NOT NULL
    );
    CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    """,
    """
    -- Site syncs as objects. `terms` is JSON (catalog/terms.py): direction, filters, schedule, windows, wishes.
    ALTER TABLE syncs ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE syncs ADD COLUMN next_run_ns INTEGER NOT NULL DEFAULT 0;  -- of its schedule; 0 if it has none
    ALTER TABLE syncs ADD COLUMN needs_person INTEGER NOT NULL DEFAULT 0; -- the last error will not mend itself
    -- What a peer may ask of us: JSON (catalog/rights.py). Peers of an older release were all paired by code.
    ALTER TABLE peers ADD COLUMN rights TEXT NOT NULL DEFAULT '{"may": ["offer", "read", "repair", "audit"]}';
    ALTER TABLE peers ADD COLUMN introduced_by BLOB;  -- the peer that vouched for it; NULL for one that was paired
    -- Whose data a volume is. Snapshots carry it as the tag `tenant:NAME`, so that it travels with them.
    CREATE TABLE labels (volume_id BLOB PRIMARY KEY, tenant TEXT NOT NULL) WITHOUT ROWID;
    -- What this site has decided about copies of a volume from elsewhere. No row: keep all, offer onward.
    CREATE TABLE copy_rules (
      volume_id BLOB PRIMARY KEY, keep TEXT NOT NULL, prefix TEXT NOT NULL, is_passive INTEGER NOT NULL,
      decided_by TEXT NOT NULL,      -- `here`, or the hex id of a peer that may set rules
      asked_keep TEXT NOT NULL       -- what the sender would like, and does not get
    ) WITHOUT ROWID;
    -- Copies that this site has let go: a pull does not fetch them again.
    CREATE TABLE let_go (snapshot_id BLOB PRIMARY KEY, at_ns INTEGER NOT NULL) WITHOUT ROWID;
    -- Bandwidth rules by scope: empty for the node, else a peer's id. They outrank the configuration file.
    CREATE TABLE throttles (
      scope BLOB NOT NULL, way TEXT NOT NULL,  -- out | in
      rule TEXT NOT NULL, zone TEXT NOT NULL, burst_s REAL NOT NULL, PRIMARY KEY (scope, way)
    ) WITHOUT ROWID;
    -- Keys that took the place of others, ours and those of peers.
    CREATE TABLE successions (
      old BLOB PRIMARY KEY, new BLOB NOT NULL, until_ns INTEGER NOT NULL, sequence_max INTEGER NOT NULL,
      by_old BLOB NOT NULL, by_new BLOB NOT NULL,
      told TEXT NOT NULL DEFAULT '[]'  -- JSON list of hex ids: the peers that have noted our own new key
    ) WITHOUT ROWID;
    """,
    """
    -- Snapshots that were deleted here. Their record blocks lie in the store until a collection takes them, and a
    -- record without a row would else look like a row that was lost.
    CREATE TABLE deleted (
      snapshot_id BLOB PRIMARY KEY, record_block BLOB NOT NULL, deleted_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- Before this table nothing was noted. Where nothing can have been deleted yet, nothing is missing in it.
    INSERT INTO facts SELECT 'deletions.noted', 'yes' WHERE NOT EXISTS (SELECT 1 FROM snapshots);
    """,
)
