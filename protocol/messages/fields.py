"""The shapes of fields that many messages share, so that each bound is written once."""

from typing import Annotated

from protocol.ids import BLOCK_ID_BYTES, SITE_ID_BYTES, SNAPSHOT_ID_BYTES, VOLUME_ID_BYTES, BlockId, SiteId, SnapshotId
from protocol.ids import VolumeId as _VolumeId
from protocol.limits import HAVE_ROOTS_MAX, WANT_BLOCKS_MAX
from protocol.messages.registry import Size

Site = Annotated[SiteId, Size(SITE_ID_BYTES)]
Snapshot = Annotated[SnapshotId, Size(SNAPSHOT_ID_BYTES)]
Volume = Annotated[_VolumeId, Size(VOLUME_ID_BYTES)]
Root = Annotated[BlockId, Size(BLOCK_ID_BYTES)]
Roots = Annotated[bytes, Size(BLOCK_ID_BYTES, multiple=True, most=HAVE_ROOTS_MAX)]
WantedIds = Annotated[bytes, Size(BLOCK_ID_BYTES, multiple=True, most=WANT_BLOCKS_MAX)]
Ids = Annotated[bytes, Size(BLOCK_ID_BYTES, multiple=True)]
Signature = Annotated[bytes, Size(64)]
Nonce16 = Annotated[bytes, Size(16)]
