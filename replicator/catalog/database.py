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
    -- Records of snapshots that were deleted here on purpose: a record in the store that is neither in `snapshots`
    -- nor here belongs to a snapshot that this file has forgotten, because it was lost or set back.
    CREATE TABLE deleted (record_block BLOB PRIMARY KEY, at_ns INTEGER NOT NULL) WITHOUT ROWID;
    """,
)
