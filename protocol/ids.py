"""Typed identities, so that one kind of bytes is never taken for another.

All of them are plain `bytes` at run time: an id travels through hot loops by the
million, and a wrapper object would cost more than the work it labels.
"""

from typing import Final, NewType

BlockId = NewType("BlockId", bytes)
"""The 32-byte BLAKE3 of a block's body, in the domain of the block's kind."""

SiteId = NewType("SiteId", bytes)
"""A site *is* its Ed25519 public key: 32 bytes, pinned by every peer."""

SnapshotId = NewType("SnapshotId", bytes)
"""16 random bytes, chosen by the origin. Names are labels, ids identify."""

VolumeId = NewType("VolumeId", bytes)
"""16 random bytes, chosen by the site that first protected the volume."""

StreamId = NewType("StreamId", int)
"""One conversation on a connection: odd when the dialer opened it, even otherwise."""

BLOCK_ID_BYTES: Final = 32
SITE_ID_BYTES: Final = 32
SNAPSHOT_ID_BYTES: Final = 16
VOLUME_ID_BYTES: Final = 16

ZERO_BLOCK: Final = BlockId(bytes(BLOCK_ID_BYTES))
"""Stands for a run of zeros or a hole. No block has this id, so nothing is stored or sent for it."""


def split_ids(packed: bytes) -> list[BlockId]:
    """Cut one run of digests into its ids. The caller has checked that the length is a multiple of 32."""
    return [BlockId(packed[at : at + BLOCK_ID_BYTES]) for at in range(0, len(packed), BLOCK_ID_BYTES)]


def short(identity: bytes) -> str:
    """Twelve hex digits: enough for a person to tell ids apart in a log line, never used to look one up."""
    return identity.hex()[:12]
