"""Snapshot to snapshot: what the difference costs to tell, and what a long outage costs."""

import os
import random
import time
from pathlib import Path

from replicator.catalog.model import Snapshot, Volume
from replicator.core.progress import Progress
from replicator.jobs.replicate import SyncJobs
from replicator.jobs.runner import JobContext
from tests.support.nodes import Site, a_pair

BLOCK = 4096


def protect_image(site: Site, path: Path, *, block: int = BLOCK) -> Volume:
    volume = Volume(
        volume_id=site.parts.entropy.token(16),  # type: ignore[arg-type]
        name=path.name, kind="image", origin=site.parts.site_id, path=os.fsencode(path), block_bytes=block, exclude=(),
    )  # fmt: skip
    site.catalog.add_volume(volume)
    return volume


def write_blocks(path: Path, numbers: list[int], seed: int) -> None:
    rnd = random.Random(seed)
    with path.open("r+b") as image:
        for number in numbers:
            image.seek(number * BLOCK)
            image.write(rnd.randbytes(BLOCK))


async def test_a_scattered_change_costs_at_most_36_bytes_a_block_and_one_round_trip(tmp_path: Path) -> None:
    path, blocks = tmp_path / "disk", 8192
    path.touch()
    write_blocks(path, list(range(blocks)), seed=1)
    async with a_pair(tmp_path) as (home, cabin):
        volume = protect_image(home, path)
        first = await home.take(volume)
        await home.send(first, cabin)
        changed = sorted(random.Random(2).sample(range(blocks), blocks // 50))
        write_blocks(path, changed, seed=3)
        report = (await home.send(await home.take(volume), cabin)).report
        assert report.base_root == first.record.root
        assert (report.blocks_received, report.blocks_received_twice) == (len(changed), 0)
        assert report.round_trips == 1
        assert report.diff_entries == len(changed)
        assert report.diff_bytes <= 36 * len(changed)


async def test_after_a_long_outage_one_difference_brings_the_newest_and_the_older_ones_fill_in(tmp_path: Path) -> None:
    path, blocks = tmp_path / "disk", 512
    path.touch()
    write_blocks(path, list(range(blocks)), seed=0)
    async with a_pair(tmp_path) as (home, cabin):
        volume = protect_image(home, path)
        common = await home.take(volume)
        await home.send(common, cabin)
        missed: list[Snapshot] = []
        for number in range(1, 6):
            # Ten blocks are written over each time, and ten new places once.
            write_blocks(path, [*range(10), *range(10 * number, 10 * number + 10)], seed=number)
            missed.append(await home.take(volume))

        sync = home.catalog.add_sync("s", volume_id=volume.volume_id, peer=cabin.parts.site_id, keep="")
        home.catalog.add_receipt(common.snapshot_id, cabin.parts.site_id, b"")
        done = await SyncJobs(home.parts).run(JobContext("job", "sync", {"sync": sync}, Progress(clock=time.monotonic)))
        sent = done["sent"]
        assert [one["snapshot"] for one in sent] == [one.snapshot_id.hex() for one in reversed(missed)]
        newest, *older = sent
        assert newest["summary_entries"] == newest["blocks"] == 60, "one step over all five, not five steps"
        assert all(one["from_base"] and one["blocks_twice"] == 0 for one in sent)
        assert [one["summary_entries"] for one in older] == [20, 20, 20, 20], "each from its neighbour, not from afar"
        assert [one["blocks"] for one in older] == [10, 10, 10, 10], "only what was written over since"
        assert all(cabin.holds(one) for one in missed)
        assert home.block_ids() == cabin.block_ids()
