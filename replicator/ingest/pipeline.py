"""The one way to take a snapshot of a source.

The caller holds the lease before and after: it ends it once the record with the root is
published. Nothing of a failed attempt is lost to the next one, whose lease begins before
the blocks that were written could be collected.
"""

from pathlib import Path
from typing import assert_never

from replicator.core.ports import Offload, WallClock
from replicator.core.progress import Progress
from replicator.ingest.config import IngestConfig
from replicator.ingest.given import take_given_image, take_given_tree
from replicator.ingest.image import take_image
from replicator.ingest.sealer import Ahead
from replicator.ingest.sources import GivenImage, GivenTree, ImageSource, Source, Taken, TreeSource
from replicator.ingest.tree import take_tree
from replicator.store.ports import BlockStore, Lease


async def take(
    source: Source,
    *,
    store: BlockStore,
    lease: Lease,
    offload: Offload,
    progress: Progress,
    clock: WallClock,
    memo: Path | None,
    config: IngestConfig,
    ahead: Ahead | None = None,
) -> Taken:
    """Put a source into the store, durably, and say what it is now.

    `memo` is where this volume's memo lies, or None to read everything. `ahead` is told of each new block of data.

    Raises `SourceError` if the source as a whole cannot be read, `StoreError` if the store cannot
    take it. Single paths that cannot be read are in `Taken.skipped`.
    """
    match source:
        case TreeSource():
            return await take_tree(
                source,
                store=store,
                lease=lease,
                offload=offload,
                progress=progress,
                clock=clock,
                memo=memo,
                config=config,
                ahead=ahead,
            )
        case ImageSource():
            return await take_image(
                source,
                store=store,
                lease=lease,
                offload=offload,
                progress=progress,
                clock=clock,
                memo=memo,
                config=config,
                ahead=ahead,
            )
        case GivenTree():
            return await take_given_tree(
                source, store=store, lease=lease, offload=offload, progress=progress, config=config, ahead=ahead
            )
        case GivenImage():
            return await take_given_image(
                source, store=store, lease=lease, offload=offload, progress=progress, config=config, ahead=ahead
            )
        case _:
            assert_never(source)
