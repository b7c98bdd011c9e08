"""The specification is enough: a client that was written from it fetches a snapshot from a real node."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import trio

from tests.e2e.test_mesh_difference import protect_image
from tests.e2e.test_mesh_trust import invite
from tests.support.nodes import Site, open_site, running

CLIENT = Path(__file__).with_name("client.py")


def test_the_client_imports_neither_package() -> None:
    names = set()
    for node in ast.walk(ast.parse(CLIENT.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            names.add((node.module or "").partition(".")[0])
    assert not names & {"protocol", "replicator", "tests", "bench"}


async def show_everything_to_the_first_peer(home: Site) -> None:
    """As its operator would: what a peer may read is what a sync names for it."""
    while not (peers := home.catalog.peers.all()):  # noqa: ASYNC110  (the catalogue calls nobody)
        await trio.sleep(0.05)
    home.catalog.add_sync("all", volume_id=b"", peer=peers[0].site_id, keep="")


async def test_it_pairs_greets_and_fetches_a_snapshot_that_it_has_verified(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    noise, text = os.urandom(10 << 20), b"all work and no play makes jack a dull boy. " * 20_000
    image.write_bytes(noise + bytes(1 << 20) + text)  # More than one stream's credit; a hole; something for LZ4.
    with open_site(tmp_path / "home", "home") as home:
        async with running(home):
            await home.take(protect_image(home, image))
            code = str(invite(home))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show_everything_to_the_first_peer, home)
                done = await trio.run_process(
                    [sys.executable, str(CLIENT), code, "disk", str(tmp_path / "back")],
                    capture_stdout=True, stderr=subprocess.STDOUT, check=False, cwd=tmp_path,
                )  # fmt: skip
                nursery.cancel_scope.cancel()
            assert done.returncode == 0, done.stdout.decode()
            assert (tmp_path / "back").read_bytes() == image.read_bytes()
            said = json.loads(done.stdout)
            assert (said["node"], said["snapshots"]) == ("home", 1)
            assert said["blocks"] >= 10 << 8
            assert [peer.name for peer in home.catalog.peers.all()] == ["stranger"]
