"""A node that is down, cannot come up, or has no room: what is still possible, and what its user is told."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.nodes import (
    PROGRAM,
    Forks,
    Node,
    Said,
    run_cli,
    started,
    tree_of,
    write_state,
    write_tree,
)
from tests.support.words import expect, expect_json

pytestmark = pytest.mark.slow


def test_a_node_that_is_down_can_still_be_verified_scrubbed_and_restored_from(tmp_path: Path) -> None:
    node = Node(tmp_path / "home", "home")
    with started(node):
        node.protect(write_tree(tmp_path / "data", files=3, size=5000))
        node.job("snapshot", tags=[])
        node.stop()
        assert node.cli("verify").code == 0
        assert node.cli("scrub").code == 0
        assert node.cli("restore", "data", str(tmp_path / "back")).code == 0
        assert tree_of(tmp_path / "back") == tree_of(tmp_path / "data")
        expect(node.cli("restore", "nothing", str(tmp_path / "x")), 66, "nothing")
        expect(node.cli("status"), 69, "No node answers", "replicator up")
        expect_json(node.cli("snapshot", "create", "--json"), 69, "node_down")
        # Garbage for a ledger: rebuilt from the segments.
        (node.root / "store/ledger/manifest").write_bytes(os.urandom(9000))
        (node.root / "jobs.sqlite").write_bytes(b"not a database, not at all" * 100)
        node.start()
        assert node.cli("verify").code == 0
        assert len(node.client.get("/v1/snapshots")) == 1
        node.stop()
        # A truncated catalogue: said, not guessed at; the copy put back, everything is there.
        catalog = node.root / "catalog.sqlite"
        whole = catalog.read_bytes()
        for broken in (whole[: len(whole) // 2], b"garbage" * 1000):
            catalog.write_bytes(broken)
            expect(node.cli("up"), 65, str(catalog), "copy")
            expect(node.cli("up", "--detach"), 65, str(catalog))
        catalog.write_bytes(whole)
        node.start()
        assert node.cli("verify").code == 0


def test_a_port_that_is_taken_is_named_with_the_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for setting in ("listen", "http"):
            state = tmp_path / setting
            write_state(state, "home", **{setting: address})
            expect(run_cli("up", state=state), 78, address, f"`{setting}`")


def test_a_configuration_that_is_wrong_is_named_with_its_file(tmp_path: Path) -> None:
    write_state(tmp_path, "home")
    config = tmp_path / "config.toml"
    text = config.read_text()
    config.write_text(text + 'rate_uot = "none"\n')
    expect(run_cli("up", state=tmp_path), 78, "rate_uot", "rate_out", str(config))
    config.write_text(text + 'log_level = "loud"\n')
    expect(run_cli("up", "--detach", state=tmp_path), 78, "log_level")
    expect(run_cli("init", state=tmp_path), 78, "already")
    expect(run_cli("up", state=tmp_path / "nowhere"), 78, "replicator init")
    said = run_cli("init", "--name", "x", "--http", 'a"b', state=tmp_path / "new")
    assert said.code == 78 and not (tmp_path / "new/config.toml").exists(), said


def test_a_node_that_has_lost_its_settings_does_not_come_up_as_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "home", "home")
    with started(node):
        node.stop()
    config = (node.root / "config.toml").read_text()
    (node.root / "config.toml").unlink()
    monkeypatch.setenv("REPLICATOR_STATE", str(node.root))
    for words in (("up",), ("up", "--detach")):
        said = run_cli(*words, prefix=("env",))
        expect(said, 78, "config.toml is gone", "replicator init")
    assert not (node.root / "config.toml").exists()
    key = (node.root / "identity.key").read_bytes()
    listen = next(line for line in config.splitlines() if line.startswith("listen")).split('"')[1]
    assert node.cli("init", "--name", "home", "--listen", listen, "--http", "").code == 0
    assert (node.root / "identity.key").read_bytes() == key
    again = Node(node.root, "home")
    with started(again):
        assert again.status()["site"] == "home"


def can_mount() -> bool:
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace of its own")
def test_a_disk_that_fills_up_loses_nothing_that_was_kept_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """The node and its disk of 24 MiB live in a mount namespace; nothing of it is seen outside."""
    small = write_tree(tmp_path / "small", files=3, size=100_000)
    large = write_tree(tmp_path / "large", files=60, size=1_000_000)
    kept, state = tmp_path / "kept", tmp_path / "state"
    write_state(kept, "home", reserve="1MiB")
    state.mkdir()
    inside = Forks("unshare", "-m", "--propagation", "private")

    def run(*words: str) -> Said:
        said = inside.run([*words, "--state", str(state)])
        assert "Traceback" not in said.out + said.err, said.err
        return said

    try:
        assert inside.run(["!", f"mount -t tmpfs -o size=24m none {state} && cp {kept}/* {state}/"]).code == 0
        assert run("up", "--detach").code == 0
        for path in (small, large):
            assert run("protect", str(path)).code == 0
        assert run("snapshot", "create", "small").code == 0
        expect(run("snapshot", "create", "large"), 73, "reserve", "replicator gc")
        assert run("verify").code == 0
        # Then something else takes the last byte: reading and restoring go on.
        inside.run(["!", f"dd if=/dev/zero of={state}/filler bs=64k"])
        assert run("snapshot", "create", "small").code in (73, 74)
        assert run("verify").code == 0
        assert run("restore", "small", str(tmp_path / "back")).code == 0
        assert tree_of(tmp_path / "back") == tree_of(small)
        assert run("status").code in (0, 1)
        # And there is room again.
        inside.run(["!", f"rm {state}/filler"])
        assert run("gc", "--grace", "0", "--yes").code == 0
        (small / "new").write_bytes(b"new")
        assert run("snapshot", "create", "small").code == 0
        assert run("restore", "small", str(tmp_path / "again")).code == 0
        assert tree_of(tmp_path / "again") == tree_of(small)
        assert "Traceback" not in inside.run(["!", f"cat {state}/node.log"]).out
    finally:
        inside.run(["!", f"kill $(cat {state}/store/lock)"])
        inside.close()


def test_a_node_without_a_page_names_none_when_it_is_up(tmp_path: Path) -> None:
    write_state(tmp_path / "home", "home")
    with subprocess.Popen(
        [*PROGRAM, "up", "--state", str(tmp_path / "home")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as up:
        try:
            assert up.stdout is not None
            said = up.stdout.readline()
        finally:
            up.terminate()
    assert said.startswith("home is up: peers at 127.0.0.1:") and "http" not in said
