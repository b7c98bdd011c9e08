"""Real nodes on hosts of their own: a cable of 100 Mbit/s, and a route that dies without a word."""

import random
import time
from pathlib import Path

import pytest

from tests.support.namespaces import Host, two_hosts
from tests.support.nodes import Node, become_peers, eventually

MIB = 1024 * 1024
LINK = 12_500_000


def node_on(host: Host, root: Path, name: str) -> Node:
    return Node(root, name, listen=f"{host.address}:7421", http="").start(prefix=host.prefix)


def is_linked(node: Node) -> bool:
    return all(peer["linked"] for peer in node.status()["peers"])


@pytest.mark.slow
def test_a_cable_of_a_hundred_megabits_is_filled_and_a_dead_route_is_noticed_and_survived(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(random.Random(1).randbytes(48 * MIB))
    with two_hosts(rate="100mbit") as (one, two):
        nodes: list[Node] = []
        try:
            home = node_on(one, tmp_path / "home", "home")
            nodes.append(home)
            cabin = node_on(two, tmp_path / "cabin", "cabin")
            nodes.append(cabin)
            become_peers(home, cabin)
            home.protect(image, kind="image", to=["cabin"])
            home.job("snapshot", names=["disk"])
            eventually(lambda: cabin.status()["store"]["sealed_bytes"] >= 48 * MIB, seconds=60)
            sent = eventually(lambda: _sync_result(home))
            rate = sent["block_bytes"] / sent["took_s"]
            assert sent["blocks_twice"] == 0
            assert rate >= 0.85 * LINK, "of the whole sync, with its first round trips and its last flush"

            one.blackhole(two)
            began = time.monotonic()
            eventually(lambda: not is_linked(home) and not is_linked(cabin), seconds=30)
            assert time.monotonic() - began > 3, "by silence: nobody was told"
            one.see_again(two)
            eventually(lambda: is_linked(home) and is_linked(cabin), seconds=60)
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
