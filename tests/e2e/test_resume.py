"""What a kill in the middle of a first sync costs: counted in bytes that crossed the wire, on real processes."""

import json
import time
from pathlib import Path

import pytest

from tests.support.nodes import Node, become_peers, eventually, started, write_tree

pytestmark = pytest.mark.slow
MB = 1_000_000
SIZE = 120 * MB
LOST_MAX = 8 * 1024 * 1024


def bytes_sent(node: Node, peer: str) -> int:
    """By all links that there ever were."""
    ended = 0
    for line in node.log().splitlines():
        if "link.closed" in line:
            fields = json.loads(line)
            ended += fields["bytes_out"] if fields["peer"] == peer else 0
    [now] = [one for one in node.client.get("/v1/peers") if one["name"] == peer]
    return ended + int(now["bytes_out"])


def start_again(node: Node) -> None:
    """Its port is one of those that any program is given for a moment."""
    for _ in range(20):
        try:
            node.start()
        except AssertionError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{node.name} does not come up again")


def test_a_receiver_that_is_killed_again_and_again_is_sent_little_twice(tmp_path: Path) -> None:
    write_tree(tmp_path / "data", files=SIZE // MB, size=MB, seed=5)
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    with started(home, cabin):
        become_peers(home, cabin)
        # Slow enough that a kill meets it in the middle, on any machine.
        home.cli("throttle", "--out", "30MB/s")
        home.protect(tmp_path / "data")
        home.job("snapshot", names=["data"])
        assert home.cli("sync", "add", "--to", "cabin").code == 0
        kills = 0
        for share in (0.25, 0.6):
            eventually(lambda share=share: bytes_sent(home, "cabin") > share * SIZE, seconds=60)  # type: ignore[misc]
            cabin.kill()
            kills += 1
            time.sleep(0.3)
            start_again(cabin)
        eventually(lambda: cabin.client.get("/v1/snapshots"), seconds=90)
        again = bytes_sent(home, "cabin") - SIZE
        print(f"{again / MB:.1f} MB again after {kills} kills")
        # Frames, the difference and the manifest's nodes are in it: half a percent.
        assert 0 <= again <= kills * LOST_MAX + SIZE // 200
