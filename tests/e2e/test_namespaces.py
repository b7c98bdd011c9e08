"""Real nodes on hosts of their own: a cable of 100 Mbit/s, and a route that dies without a word."""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.namespaces import Host, hosts
from tests.support.nodes import Node, become_peers, eventually, tree_of, write_tree

MIB = 1024 * 1024
LINK = 12_500_000


def node_on(host: Host, root: Path, name: str) -> Node:
    return Node(root, name, listen=f"{host.address}:7421", http="").start(prefix=host.prefix)


def is_linked(node: Node, *peers: str) -> bool:
    """With those peers, or with all that it has."""
    return all(peer["linked"] for peer in node.status()["peers"] if not peers or peer["name"] in peers)


def open_sockets(node: Node) -> int:
    assert node.process is not None
    folder, found = f"/proc/{node.process.pid}/fd", 0
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            found += os.readlink(f"{folder}/{name}").startswith("socket:")
    return found


@pytest.mark.slow
def test_a_cable_is_filled_and_one_dead_route_is_noticed_survived_and_gone_around(tmp_path: Path) -> None:
    """Home fills the cable to cabin. Then what it sends to tower vanishes, without a word: cabin sees both."""
    image, data = tmp_path / "disk", write_tree(tmp_path / "data", files=10, size=50_000)
    image.write_bytes(random.Random(1).randbytes(48 * MIB))
    with hosts(3, rate="100mbit") as (one, two, three):
        nodes: list[Node] = []
        try:
            for host, name in ((one, "home"), (two, "cabin"), (three, "tower")):
                nodes.append(node_on(host, tmp_path / name, name))
            home, cabin, tower = nodes
            become_peers(home, cabin)
            home.protect(image, kind="image", to=["cabin"])
            home.job("snapshot", names=["disk"])
            eventually(lambda: cabin.status()["store"]["sealed_bytes"] >= 48 * MIB, seconds=60)
            sent = eventually(lambda: _sync_result(home))
            rate = sent["block_bytes"] / sent["took_s"]
            assert sent["blocks_twice"] == 0
            assert rate >= 0.85 * LINK, "of the whole sync, with its first round trips and its last flush"

            become_peers(cabin, tower)
            become_peers(home, tower)
            before = [open_sockets(node) for node in nodes]
            one.blackhole(three)
            began = time.monotonic()
            eventually(lambda: not is_linked(home, "tower") and not is_linked(tower, "home"), seconds=30)
            assert time.monotonic() - began > 3, "by silence: nobody was told"
            assert is_linked(home, "cabin") and is_linked(cabin, "tower", "home"), "one cut is one cut"
            home.protect(data, to=["cabin"])
            data_id = next(one["volume_id"] for one in home.status()["volumes"] if one["name"] == "data")
            home.job("snapshot", names=["data"])
            eventually(lambda: data_id in {one["volume_id"] for one in cabin.status()["volumes"]}, seconds=60)
            cabin.client.post("/v1/syncs", {"to": "tower", "volume": "data"})
            eventually(lambda: tower.client.get("/v1/snapshots"), seconds=60)
            assert tower.cli("restore", "data", str(tmp_path / "back")).code == 0
            assert tree_of(tmp_path / "back") == tree_of(data)
            one.see_again(three)
            eventually(lambda: all(is_linked(node) for node in nodes), seconds=90)
            eventually(lambda: all(open_sockets(n) <= most for n, most in zip(nodes, before, strict=True)))
        finally:
            for node in nodes:
                node.kill()
                node.client.close()


def _sync_result(home: Node) -> dict[str, float] | None:
    for job in home.client.get("/v1/jobs"):
        if job["kind"] == "sync" and job["state"] == "done":
            found: dict[str, float] = job["result"]["sent"][0]
            return found
    return None
