"""Site syncs as an operator meets them: real nodes, the command line, and what it says."""

import os
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import Node, become_peers, eventually, started, tree_of, write_tree

pytestmark = pytest.mark.slow


def sync_of(node: Node) -> dict[str, Any]:
    [one] = node.cli("sync", "list", "--json").json
    return dict(one)


def snapshots_of(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.cli("snapshot", "list", "--json").json
    return found


def test_an_order_is_planned_queued_waits_for_its_window_runs_and_is_in_the_history(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    write_tree(tmp_path / "data", files=20, size=20_000)
    with started(home, cabin):
        become_peers(home, cabin)
        assert home.cli("protect", str(tmp_path / "data"), "--tenant", "acme").code == 0
        later = datetime.now(UTC) + timedelta(hours=3)
        window = f"{later:%a}".lower() + f" {later:%H}:00-24:00"
        added = home.cli(
            "sync", "add", "--to", "cabin", "--tenant", "acme", "--window", window, "--priority", "2", "--keep", "30d",
            "--prefix", "acme-", "--rate", "5MB/s", "--do-not-expire", "--json",
        )  # fmt: skip
        assert added.code == 0, added
        sync = added.json["sync_id"]
        taken = home.cli("snapshot", "create", "data", "--json").json["snapshots"][0]["snapshot"]
        eventually(lambda: sync_of(home)["state"] == "waiting for window")
        [item] = home.cli("sync", "queue", "--json").json
        assert (item["snapshot"], item["priority"], item["state"]) == (taken, 2, "waiting for window")
        [planned] = home.cli("sync", "plan", sync, "--json").json
        [plan] = planned["plans"]
        assert plan["missing_blocks"] == 20 and 400_000 <= plan["missing_bytes"] <= 420_000
        assert re.search(
            r"403\.\d kB of 400\.0 kB missing, 0 % .* local seeds|kB of 400.0 kB missing", plan["sentence"]
        )
        assert "at the limit of 5.0 MB/s" in home.cli("sync", "plan").out or plan["rate_bytes"] == 5_000_000
        time.sleep(1.5)
        assert snapshots_of(cabin) == []
        # Other hours: it begins by itself.
        assert sync_of(home)["tenants"] == ["acme"]
        assert home.cli("sync", "change", sync, "--any-time", "--any-tenant").code == 0
        assert sync_of(home)["tenants"] == []
        eventually(lambda: sync_of(home)["state"] == "idle" and sync_of(home)["last_success_s"] is not None)
        [copy] = snapshots_of(cabin)
        assert copy["snapshot"] == taken and "tenant:acme" in copy["tags"]
        assert [volume["name"] for volume in cabin.client.get("/v1/volumes")] == ["acme-data"]
        # What home would like of its copies is written down there; what holds is the cabin's decision.
        [incoming] = cabin.cli("sync", "incoming", "list", "--json").json
        assert (incoming["keep"], incoming["asked_keep"], incoming["from"]) == ("", "30d", "home")
        assert cabin.cli("sync", "incoming", "set", "acme-data", "--keep", "7d,12m").code == 0
        [incoming] = cabin.cli("sync", "incoming", "list", "--json").json
        assert (incoming["keep"], incoming["decided_by"]) == ("7d,12m", "here")
        [run] = [job for job in home.cli("sync", "history", "--json").json if (job["result"] or {}).get("sent")]
        [sent] = run["result"]["sent"]
        assert sent["planned"]["blocks"] == sent["actual"]["blocks"] == 20
        assert "cabin" in home.cli("sync", "history").out
        assert home.cli("sync", "plan").out.strip() == f"{sync}: nothing is missing."


def test_pausing_stops_a_transfer_in_the_middle_and_going_on_sends_only_the_rest(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    (tmp_path / "data").mkdir()
    for number in range(800):  # 40 MB that nothing packs: forty seconds at the rate below, on a machine however busy.
        (tmp_path / "data" / str(number)).write_bytes(os.urandom(50_000))
    with started(home, cabin):
        become_peers(home, cabin)
        home.protect(tmp_path / "data")
        home.job("snapshot", names=["data"])
        sync = home.cli("sync", "add", "--to", "cabin", "--rate", "1MB/s", "--json").json["sync_id"]
        eventually(lambda: sync_of(home)["state"] == "throttled")
        eventually(lambda: cabin.status()["peers"][0]["bytes_in"] > 1_500_000)
        assert home.cli("sync", "pause", sync).code == 0
        eventually(lambda: sync_of(home)["state"].startswith("blocked (paused"))
        eventually(lambda: not home.status()["jobs"])
        before = eventually(lambda: cabin.status()["peers"][0]["bytes_in"])
        time.sleep(2)
        assert cabin.status()["peers"][0]["bytes_in"] <= before + 20_000, "heartbeats, and nothing else"
        assert home.cli("sync", "change", sync, "--rate", "none").code == 0
        assert home.cli("sync", "resume", sync).code == 0
        eventually(lambda: len(snapshots_of(cabin)) == 1)
        [sent] = next(j for j in home.cli("sync", "history", "--json").json if j["state"] == "done")["result"]["sent"]
        assert 0 < sent["blocks"] < 800 and sent["blocks_twice"] == 0


def test_one_that_fails_says_how_often_and_when_it_tries_again_and_one_that_is_refused_says_why(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    write_tree(tmp_path / "data", files=3, size=1000)
    with started(home, cabin):
        become_peers(home, cabin)
        assert cabin.cli("pair", "policy", "home", "--deny", "offer").code == 0
        home.cli("protect", str(tmp_path / "data"), "--to", "cabin")
        home.job("snapshot", names=["data"])
        state = eventually(lambda: (s := sync_of(home)["state"]).startswith("blocked (") and s)
        assert "right to offer" in state
        alerts = {alert["kind"] for alert in home.status()["alerts"]}
        assert "sync_blocked" in alerts
        rows = home.cli("sync", "history").out.splitlines()[1:]
        assert rows and all(re.match(r"(failed|running|queued) +cabin ", row) for row in rows), "also of what failed"
        # It goes on by itself once that is mended: never given up.
        assert cabin.cli("pair", "policy", "home", "--allow", "offer").code == 0
        eventually(lambda: len(snapshots_of(cabin)) == 1, seconds=40)
        assert home.cli("pair", "rights").code == 0
        # The peer goes away: retrying, with a number and a time.
        cabin.stop()
        home.job("snapshot", names=["data"])
        state = eventually(lambda: (s := sync_of(home)["state"]).startswith("retrying (") and s, seconds=40)
        assert re.fullmatch(r"retrying \(\d+, next at \d\d:\d\d:\d\dZ\)", state)
        cabin.start()
        home.cli("sync", "run")
        eventually(lambda: sync_of(home)["state"] == "idle" and len(snapshots_of(cabin)) == 2)


def test_the_destination_may_own_the_schedule_and_pull(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=5, size=3000)
    with started(home, cabin):
        become_peers(home, cabin)
        assert cabin.cli("pair", "policy", "home", "--deny", "offer", "--deny", "read").code == 0
        home.cli("protect", str(data))
        home.job("snapshot", names=["data"])
        added = cabin.cli("sync", "add", "--from", "home", "--volume", "data", "--rpo", "6s", "--keep", "5", "--json")
        assert added.code == 0, added
        time.sleep(3)
        assert snapshots_of(cabin) == [], "home has not said that cabin may read it"
        assert home.cli("pair", "policy", "cabin", "--read", "data").code == 0
        eventually(lambda: len(snapshots_of(cabin)) == 1)
        (data / "file-0001").write_bytes(b"changed")
        home.job("snapshot", names=["data"])
        eventually(lambda: len(snapshots_of(cabin)) == 2)
        assert "cabin" in eventually(lambda: snapshots_of(home)[-1]["held_by"])
        one = sync_of(cabin)
        assert (one["direction"], one["state"], one["volume"], one["peer"]) == ("pull", "idle", "data", "home")
        runs = [job for job in cabin.cli("sync", "history", "--json").json if job["result"] and job["result"]["sent"]]
        plans = [sent["planned"]["blocks"] - sent["actual"]["blocks"] for job in runs for sent in job["result"]["sent"]]
        assert plans == [0, 0], "what was planned is what came"
        assert cabin.cli("sync", "plan").out.strip().endswith("nothing is missing.")
        assert cabin.cli("restore", "data", str(tmp_path / "back")).code == 0
        assert tree_of(tmp_path / "back") == tree_of(data)


def test_a_continuous_sync_keeps_the_copy_younger_than_it_promises(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=5, size=3000)
    with started(home, cabin):
        become_peers(home, cabin)
        home.cli("protect", str(data))
        assert home.cli("sync", "add", "--to", "cabin", "--volume", "data", "--rpo", "9s").code == 0
        eventually(lambda: snapshots_of(cabin))
        worst, end = 0.0, time.time() + 15
        while time.time() < end:
            (data / "file-0000").write_bytes(os.urandom(100))
            worst = max(worst, time.time() - max(one["taken_ns"] for one in cabin.client.get("/v1/snapshots")) / 1e9)
            time.sleep(0.2)
        assert worst < 9
        assert len(home.client.get("/v1/snapshots")) <= 13, "they are kept only while they are of use"


def test_a_cron_schedule_sends_at_its_time_and_not_before(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    write_tree(tmp_path / "data", files=2, size=100)
    with started(home, cabin):
        become_peers(home, cabin)
        home.cli("protect", str(tmp_path / "data"))
        home.job("snapshot", names=["data"])
        while datetime.now(UTC).second > 50:  # Not so near to the full minute that the order itself takes it.
            time.sleep(0.5)
        added = home.cli("sync", "add", "--to", "cabin", "--cron", "* * * * *", "--zone", "Europe/Berlin", "--json")
        assert added.code == 0, added
        began = datetime.now(UTC)
        eventually(lambda: snapshots_of(cabin), seconds=75)
        assert datetime.now(UTC).minute != began.minute
        assert home.cli("sync", "add", "--to", "cabin", "--cron", "now and then").code == 64


def test_a_site_changes_its_key_under_running_syncs_and_the_old_key_dies(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=5, size=3000)
    with started(home, cabin):
        become_peers(home, cabin)
        assert home.cli("protect", str(data), "--every", "1s", "--keep", "3", "--to", "cabin").code == 0
        old = home.cli("site", "show", "--json").json["site_id"]
        begun = home.cli("site", "rotate-key", "--overlap", "12s", "--json")
        assert begun.code == 0, begun
        new = begun.json["next_site_id"]
        assert new != old
        assert home.cli("site", "rotate-key").code == 64, "one at a time"
        eventually(lambda: home.cli("site", "show", "--json").json.get("noted_by") == ["cabin"])

        def changed() -> bool:
            said = home.cli("site", "show", "--json")
            return said.code == 0 and said.json["site_id"] == new

        eventually(changed)
        eventually(lambda: cabin.client.get("/v1/peers")[0]["site_id"] == new)
        eventually(lambda: cabin.client.get("/v1/peers")[0]["linked"])
        # Snapshots keep coming, the volume is still home's, and no sync has failed over it.
        seen = {one["snapshot"] for one in cabin.client.get("/v1/snapshots")}
        eventually(lambda: len({one["snapshot"] for one in cabin.client.get("/v1/snapshots")} - seen) >= 3)
        assert {volume["origin"] for volume in cabin.client.get("/v1/volumes")} == {"home"}
        assert sync_of(home)["failures"] == 0
        failed = [job for job in home.cli("sync", "history", "--json").json if job["state"] == "failed"]
        assert failed == []
        assert {peer["name"] for peer in cabin.client.get("/v1/peers")} == {"home"}
        home.stop()
        home.start()
        assert home.cli("site", "show", "--json").json["site_id"] == new
        assert not (home.root / "identity.next").exists()
        eventually(lambda: cabin.client.get("/v1/peers")[0]["linked"])
        # And if the catalogue is lost, the snapshots of both keys are found again as this site's own.
        before = {one["snapshot"] for one in home.client.get("/v1/snapshots")}
        home.stop()
        for file in home.root.glob("catalog.sqlite*"):
            file.unlink()
        home.start()
        found = home.client.get("/v1/snapshots")
        assert before <= {one["snapshot"] for one in found}
        assert {one["origin"] for one in found} <= {old, new}
        assert {volume["origin"] for volume in home.client.get("/v1/volumes")} == {"home"}
