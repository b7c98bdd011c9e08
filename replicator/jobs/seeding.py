"""Writing seeds and taking them in."""

from pathlib import Path
from typing import Any

from replicator.core.errors import NotFound
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.sync.seed import Seeded, Seeder


class SeedJobs:
    """Jobs of the kinds `seed-export` and `seed-import`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._seeder = Seeder(store=parts.store, catalog=parts.catalog, reader=parts.reader, offload=parts.offload)

    async def export(self, context: JobContext) -> dict[str, Any]:
        """`{"path": folder, "names": volumes}`: the newest snapshot of each volume, or of all."""
        catalog, names = self._parts.catalog, context.args.get("names", [])
        volumes = [catalog.find_volume(name) for name in names] or catalog.volumes()
        newest = [found for volume in volumes if (found := catalog.newest(volume.volume_id)) is not None]
        if not newest:
            raise NotFound("There is no snapshot to put into a seed.", hint="Take one: `replicator snapshot take`.")
        return _described(await self._seeder.export(newest, Path(context.args["path"]), context.progress))

    async def take_in(self, context: JobContext) -> dict[str, Any]:
        """`{"path": folder}`."""
        done = await self._seeder.take_in(Path(context.args["path"]), context.progress)
        self._parts.wake_scheduler()
        return _described(done)


def _described(done: Seeded) -> dict[str, Any]:
    return {
        "snapshots": [one.hex() for one in done.snapshots],
        "blocks": done.blocks,
        "blocks_new": done.blocks_new,
        "sealed_bytes": done.sealed_bytes,
    }
