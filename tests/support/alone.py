"""A site that is alone: a store, and taking and reading without a node around it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.entries import Entry, decode_entry, key_path
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import entries
from replicator.core.errors import BlockMissing
from replicator.core.ports import ThreadOffload
from replicator.core.progress import Progress
from replicator.ingest.config import IngestConfig
from replicator.ingest.pipeline import take
from replicator.ingest.sources import Source, Taken, TreeSource
from replicator.restore.tree import Restored, restore_tree
from replicator.store.config import StoreConfig
from replicator.store.local import LocalStore
from tests.support.clocks import FakeWallClock
from tests.support.store import damage

SMALL = IngestConfig(
    piece_bytes_min=4096, piece_bytes_beyond_min=8192, piece_bytes_max=65536, batch_bytes=1 << 18, batch_files=16
)
"""Small pieces, so that a small file already has many, and a tree many batches."""


class Site:
    """A store, and the two things that one does with it. Also the reader that restores ask for."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore.open(folder, StoreConfig(reserve_bytes_max=0, grace_s=0.0))
        self.memo = folder / "memo"
        self.offload = ThreadOffload()
        self.progress = Progress(clock=time.monotonic)
        self.clock = FakeWallClock()
        self.clock.ns = time.time_ns() + 3600 * 10**9  # So that no file counts as touched just now.

    async def take(self, source: Source | Path, *, memo: bool = True, config: IngestConfig = SMALL) -> Taken:
        lease = self.store.begin("test")
        try:
            return await take(
                TreeSource(path=source) if isinstance(source, Path) else source,
                store=self.store,
                lease=lease,
                offload=self.offload,
                progress=self.progress,
                clock=self.clock,
                memo=self.memo if memo else None,
                config=config,
            )
        finally:
            self.store.end(lease)

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        bodies = await self.offload.run(self.store.read, ids)
        if bodies.faults:
            raise BlockMissing(bodies.faults[0].block_id)
        return bodies.sound

    def lose(self, block: BlockId) -> None:
        """Damage a block at rest, and let the store notice."""
        place, _ = self.store.ledger.places([block])[block]
        # Near the end: elsewhere a flipped bit may unpack to the same body.
        damage(self.store, block, at=place.length - 5)
        assert self.store.quarantine(self.store.read([block]).faults) == 1

    async def entries(self, root: BlockId) -> dict[bytes, Entry]:
        return {key_path(key): decode_entry(value) async for key, value in entries(self, root, Shape.NAMES)}


def fill(folder: Path, count: int = 40) -> None:
    for number in range(count):
        path = folder / f"part-{number % 5}" / f"file-{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d " % number * (number * 37 + 1))


async def restore(
    site: Site, root: BlockId, target: Path, *, only: bytes | None = None, overwrite: bool = False
) -> Restored:
    return await restore_tree(
        site,
        root,
        target,
        only=only,
        overwrite=overwrite,
        as_root=os.geteuid() == 0,
        offload=site.offload,
        progress=site.progress,
    )
