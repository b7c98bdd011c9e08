"""A first copy on a disk, and what the wire then has to bring."""

import random
import time
from pathlib import Path

import pytest

from replicator.core.errors import BlockMissing, NotFound, SourceError, UsageError
from replicator.core.progress import Progress
from replicator.jobs.runner import JobContext
from replicator.jobs.seeding import SeedJobs
from tests.e2e.test_mesh_difference import protect_image
from tests.support.nodes import Site, a_pair, open_site, write_tree

KIB = 1024
BLOCK = 64 * KIB


async def export(site: Site, folder: Path, *names: str) -> dict[str, object]:
    args = {"path": str(folder), "names": list(names)}
    return await SeedJobs(site.parts).export(JobContext("e", "seed-export", args, Progress(clock=time.monotonic)))


async def take_in(site: Site, folder: Path) -> dict[str, object]:
    context = JobContext("i", "seed-import", {"path": str(folder)}, Progress(clock=time.monotonic))
    return await SeedJobs(site.parts).take_in(context)


async def test_after_a_seed_the_first_sync_brings_only_what_changed_since(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(random.Random(1).randbytes(40 * BLOCK))
    tree = write_tree(tmp_path / "tree", files=10, size=20 * KIB)
    async with a_pair(tmp_path) as (home, cabin):
        image, folder = protect_image(home, disk, block=BLOCK), home.protect(tree)
        first = [await home.take(image), await home.take(folder)]
        written = await export(home, tmp_path / "travels")
        assert written["snapshots"] == [one.snapshot_id.hex() for one in first]
        taken = await take_in(cabin, tmp_path / "travels")
        assert taken["blocks"] == taken["blocks_new"] == written["blocks"]
        assert all(cabin.holds(one) for one in first)
        assert cabin.block_ids() == home.block_ids()
        again = await take_in(cabin, tmp_path / "travels")
        assert (again["blocks"], again["blocks_new"]) == (written["blocks"], 0)

        with disk.open("r+b") as file:
            file.seek(7 * BLOCK)
            file.write(random.Random(2).randbytes(2 * BLOCK))
        done = await home.send(await home.take(image), cabin)
        assert (done.report.blocks_received, done.report.base_root) == (2, first[0].record.root)
        done = await home.send(first[1], cabin)
        assert done.report.blocks_received == 0, "it is signed for without a byte"


async def test_only_the_named_volumes_are_exported_and_a_seed_is_not_written_over(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home:
        with pytest.raises(NotFound):
            await export(home, tmp_path / "travels")
        for name in ("one", "two"):
            await home.take(home.protect(write_tree(tmp_path / name, files=2, size=KIB, seed=ord(name[0]))))
        done = await export(home, tmp_path / "travels", "two")
        assert len(done["snapshots"]) == 1  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="already"):
            await export(home, tmp_path / "travels")


@pytest.mark.parametrize("harm", ["flip", "cut", "lost", "unfinished", "index", "origin"])
async def test_a_damaged_seed_enters_no_snapshot(tmp_path: Path, harm: str) -> None:
    travels = tmp_path / "travels"
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        await home.take(home.protect(write_tree(tmp_path / "data", files=20, size=3 * KIB)))
        await export(home, travels)
        blocks, index = travels / "blocks-00000", travels / "snapshots"
        data = bytearray(blocks.read_bytes())
        match harm:
            case "flip":
                data[len(data) // 2] ^= 1
            case "cut":
                del data[-100:]
            case "lost":
                data = data[: 56 + int.from_bytes(data[12:16], "big")]  # One whole block, and no more.
            case "unfinished":
                index.unlink()
            case "index":
                index.write_bytes(index.read_bytes()[:-1])
            case "origin":
                changed = bytearray(index.read_bytes())
                changed[-1] ^= 1
                index.write_bytes(changed)
        blocks.write_bytes(data)
        before = len(cabin.catalog.snapshots())
        with pytest.raises((SourceError, BlockMissing)) if harm != "origin" else pytest.raises(Exception) as caught:
            await take_in(cabin, travels)
        assert harm != "origin" or type(caught.value).__name__ == "Untrusted"
        assert len(cabin.catalog.snapshots()) == before == 0
