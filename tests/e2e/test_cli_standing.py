"""A standing promise on two real nodes: `protect --every 1s --keep 3 --to cabin`."""

import os
import re
import signal
import stat
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.nodes import Node, become_peers, eventually, started, tree_of, write_tree

pytestmark = pytest.mark.slow


def _holding(node: Node) -> str:
    """The part of `status` that says who holds the same, once a heartbeat has come."""
    return node.cli("status").out.partition("WHO HOLDS THE SAME")[2]


def test_snapshots_come_on_time_are_pruned_to_the_rule_and_each_reaches_the_peer(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=3, size=2000)
    with started(home, cabin):
        become_peers(home, cabin)
        said = home.cli("protect", str(data), "--every", "1s", "--keep", "3", "--to", "cabin")
        assert said.code == 0, said
        began = time.time()
        seen: dict[str, int] = {}

        def look() -> int:
            for one in cabin.client.get("/v1/snapshots"):
                seen[one["snapshot"]] = one["taken_ns"]
            return len(seen)

        eventually(lambda: look() >= 6)
        took_s = time.time() - began
        assert took_s < 20
        [volume] = home.status()["volumes"]
        # Three by the rule, the one that the peer signed for last, and one that has just been taken.
        assert 3 <= volume["snapshots"] <= 5
        assert volume["protection"]["last_success_s"] < 5 and volume["protection"]["next_run_s"] <= 1
        assert "cabin" in eventually(lambda: home.client.get("/v1/snapshots")[-2]["held_by"])
        gaps = sorted(seen.values())
        assert all(late - early >= 0.5e9 for early, late in pairwise(gaps)), "none was made twice"
        text = home.cli("status").out
        assert "LAST SUCCESS" in text and "NEXT" in text and "cabin" in text
        assert re.search(r"data +home +.*home.* \d\n", eventually(lambda: _holding(home))), "who holds the same"

        # The doors.
        assert stat.S_IMODE(os.stat(home.root / "api.sock").st_mode) == 0o600
        with httpx.Client(base_url=f"http://{home.http}") as outside:
            assert outside.get("/health").json() == {"health": "up"}
            assert outside.get("/v1/status").json()["site"] == "home"
            families = list(text_string_to_metric_families(outside.get("/metrics").text))
            assert {family.name for family in families} >= {"replicator_store_blocks", "replicator_volume_snapshots"}
            for method, path in (
                ("POST", "/v1/jobs"), ("POST", "/v1/pair/invite"), ("POST", "/v1/protect"), ("POST", "/v1/throttle"),
                ("DELETE", "/v1/peers/cabin"), ("DELETE", "/v1/snapshots/data"), ("GET", "/v1/snapshots"),
            ):  # fmt: skip
                assert outside.request(method, path, json={}).status_code in (404, 405), path

        # The same folder comes back from the peer.
        assert cabin.cli("restore", "data", str(tmp_path / "back")).code == 0
        assert tree_of(tmp_path / "back") == tree_of(data)

        # The source dies: it can say nothing any more, so the peer does.
        home.kill()
        alerts = eventually(lambda: [one for one in cabin.status()["alerts"] if one["subject"] == "home/data"])
        assert alerts[0]["kind"] == "peer_missed_schedule" and alerts[0]["hint"]
        assert cabin.cli("status").code == 1
        # And comes back: one missed snapshot is made up for, and the alarm ends by itself.
        home.start()
        eventually(lambda: not [one for one in cabin.status()["alerts"] if one["kind"] == "peer_missed_schedule"])
        assert cabin.cli("verify").code == 0
        assert home.stop(signal.SIGTERM) == 0
        assert "Traceback" not in home.log() + cabin.log()


def test_a_paused_sync_sends_nothing_until_resumed_and_an_ended_schedule_takes_no_more(
    tmp_path: Path,
) -> None:
    """Through the command line, and through the client that programs use."""
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=2, size=2000)
    with started(home, cabin):
        become_peers(home, cabin)
        assert home.cli("protect", str(data), "--every", "1s", "--keep", "3", "--to", "cabin").code == 0
        eventually(lambda: cabin.client.get("/v1/snapshots"))
        [sync] = home.cli("sync", "list", "--json").json
        said = home.cli("sync", "pause", sync["sync_id"])
        assert said.code == 0 and "is paused" in said.out
        eventually(lambda: not [job for job in home.status()["jobs"] if job["kind"] == "sync"])
        there = len(cabin.client.get("/v1/snapshots"))
        page = eventually(lambda: (one := home.status()["syncs"][0])["pending_snapshots"] >= 2 and one)
        assert page["state"].startswith("blocked (paused here")
        assert len(cabin.client.get("/v1/snapshots")) == there
        assert home.client.post(f"/v1/syncs/{sync['sync_id']}/pause", {"paused": False})["paused"] is False
        eventually(lambda: len(cabin.client.get("/v1/snapshots")) > there)
        assert home.cli("sync", "resume", sync["sync_id"]).code == 0, "saying it twice does no harm"

        said = home.cli("unprotect", str(data))
        assert said.code == 0 and "no schedule" in said.out
        eventually(lambda: not home.status()["jobs"])
        taken = home.client.get("/v1/snapshots")
        time.sleep(2.5)
        ids = [[one["snapshot"] for one in listed] for listed in (taken, home.client.get("/v1/snapshots"))]
        assert ids[0] == ids[1]
        [volume] = home.status()["volumes"]
        assert volume["protection"] is None and home.status()["syncs"] == []
        for words in (("sync", "pause"), ("sync", "resume"), ("sync", "remove")):
            said = home.cli(*words, sync["sync_id"])
            assert said.code == 66 and sync["sync_id"] in said.text and "sync list" in said.text
        assert home.cli("unprotect", "data").code == 0
        said = home.cli("unprotect", "nothing")
        assert said.code == 66 and "nothing" in said.text
