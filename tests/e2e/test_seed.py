"""A first copy on a disk, and what the wire then has to bring."""

import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from replicator.core.errors import BlockMissing, NotFound, SourceError, UsageError
from replicator.core.progress import Progress
from replicator.jobs.runner import JobContext
from replicator.jobs.seeding import SeedJobs
from tests.e2e.test_mesh_difference import protect_image
from tests.support.nodes import (
    Node,
    Site,
    a_pair,
    become_peers,
    eventually,
    open_site,
    started,
    tree_of,
    write_tree,
)

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


# -- by the command line, between real nodes --------------------------------------------------


def received_by(node: Node, source: str) -> int:
    """Bytes that have come over the link from a peer."""
    [peer] = [one for one in node.client.get("/v1/peers") if one["name"] == source]
    return int(peer["bytes_in"])


def sent_to(node: Node, peer: str) -> list[dict[str, Any]]:
    """What the syncs of a node have brought there, oldest first."""
    runs = [run for run in node.cli("sync", "history", "--json").json if run["state"] == "done"]
    return [one for run in reversed(runs) if run["result"]["peer"] == peer for one in run["result"]["sent"]]


@pytest.mark.slow
def test_a_disk_carries_the_first_copy_and_the_wire_only_what_has_changed_since(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=40, size=60_000)
    travels = tmp_path / "travels"
    with started(home, cabin):
        become_peers(home, cabin)
        assert home.cli("protect", str(data)).code == 0
        assert home.cli("snapshot", "create", "data").code == 0
        exported = home.cli("seed", "export", str(travels), "--json")
        assert exported.code == 0 and exported.json["blocks"] > 40, exported
        imported = cabin.cli("seed", "import", str(travels), "--json")
        assert imported.code == 0 and imported.json["blocks_new"] == exported.json["blocks"], imported
        assert "0 new" in cabin.cli("seed", "import", str(travels)).text
        assert home.cli("seed", "export", str(travels)).code == 64, "there is a seed already"

        write_tree(data, files=2, size=60_000, seed=5)
        before = received_by(cabin, "home")
        assert home.cli("snapshot", "create", "data").code == 0
        assert home.cli("sync", "add", "--to", "cabin").code == 0
        sent = eventually(lambda: done if len(done := sent_to(home, "cabin")) == 2 else None)
        assert sorted(one["blocks"] for one in sent) == [0, 2], "the first is signed for without a block"
        assert sum(one["blocks_twice"] for one in sent) == 0
        assert received_by(cabin, "home") - before < 2 * 60_000 + 30_000
        assert cabin.cli("restore", "data", str(tmp_path / "back")).code == 0
        assert tree_of(tmp_path / "back") == tree_of(data)


@pytest.mark.slow
def test_files_that_the_destination_has_of_its_own_and_other_volumes_need_not_travel(tmp_path: Path) -> None:
    """Somebody has carried the files over by hand, and protects them there; and a second volume holds the same."""
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=40, size=60_000)
    theirs = write_tree(tmp_path / "rsynced", files=38, size=60_000)
    with started(home, cabin):
        become_peers(home, cabin)
        assert cabin.cli("protect", str(theirs)).code == 0
        assert cabin.cli("snapshot", "create", "rsynced").code == 0
        assert home.cli("protect", str(data)).code == 0
        assert home.cli("snapshot", "create", "data").code == 0
        before = received_by(cabin, "home")
        later = ("--window", f"{datetime.now(UTC) + timedelta(hours=3):%a %H:00-24:00}".lower())
        sync = home.cli("sync", "add", "--to", "cabin", *later, "--json").json["sync_id"]
        [planned] = home.cli("sync", "plan", sync, "--json").json
        assert planned["plans"][0]["missing_blocks"] == 2
        assert "95 % of what changed from local seeds" in planned["plans"][0]["sentence"]
        assert home.cli("sync", "change", sync, "--window", "").code == 0
        [sent] = eventually(lambda: sent_to(home, "cabin"))
        assert (sent["blocks"], sent["blocks_already_there"]) == (2, 38)
        assert received_by(cabin, "home") - before < 2 * 60_000 + 40_000, "of 2.4 megabytes"

        # Another volume, most of which is the first one's.
        (tmp_path / "second").mkdir()
        for path in sorted(data.iterdir())[:30]:
            (tmp_path / "second" / f"moved-{path.name}").write_bytes(path.read_bytes())
        (tmp_path / "second" / "own").write_bytes(os.urandom(60_000))
        before = received_by(cabin, "home")
        assert home.cli("protect", str(tmp_path / "second")).code == 0
        assert home.cli("snapshot", "create", "second").code == 0
        sent = eventually(lambda: done[1] if len(done := sent_to(home, "cabin")) == 2 else None)
        assert (sent["blocks"], sent["blocks_already_there"]) == (1, 30)
        assert received_by(cabin, "home") - before < 60_000 + 40_000
        assert cabin.cli("restore", "second", str(tmp_path / "back")).code == 0
        assert tree_of(tmp_path / "back") == tree_of(tmp_path / "second")
