"""Ctrl-C at any moment: a word, an exit code, no process left behind, and the next run carries on."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import (
    PROGRAM,
    Node,
    Said,
    eventually,
    started,
    tree_of,
    write_tree,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("node") / "home", "home")
    with started(node):
        yield node


def interrupt(command: list[str], state: Path, *, after_s: float) -> Said:
    child = subprocess.Popen(
        [*PROGRAM, *command, "--state", str(state)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(after_s)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert "Traceback" not in out + err, err
    return Said(child.returncode, out, err)


def test_ctrl_c_ends_up_with_0_and_a_command_with_130_and_the_next_run_carries_on(tmp_path: Path) -> None:
    node = Node(tmp_path / "home", "home", rate_out="1MB/s")
    data = write_tree(tmp_path / "data", files=700, size=30_000)
    with started(node):
        node.protect(data)
        child = subprocess.Popen(
            [*PROGRAM, "snapshot", "create", "--state", str(node.root)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        eventually(lambda: node.status()["jobs"] or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert child.returncode in (0, 130) and "Traceback" not in err, (out, err)
        assert child.returncode == 0 or "goes on" in err
        eventually(lambda: not node.status()["jobs"])
        assert len(node.client.get("/v1/snapshots")) == 1, "the node went on with what it was asked"
        assert node.stop(signal.SIGINT) == 0
        # Offline: the restore itself is stopped, and the next one ends it.
        target = tmp_path / "back"
        child = subprocess.Popen(
            [*PROGRAM, "restore", "data", str(target), "--state", str(node.root)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        eventually(lambda: (target.is_dir() and any(target.iterdir())) or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert child.returncode in (0, 130) and "Traceback" not in err, (out, err)
        assert node.cli("restore", "data", str(target)).code == 0
        assert tree_of(target) == tree_of(data)
        node.start()
        assert node.cli("verify").code == 0


@pytest.mark.parametrize("package", ["attr", "cyclopts", "trio", "httpcore"])
def test_ctrl_c_while_the_program_is_still_being_loaded_ends_it_with_a_word(
    home: Node, package: str, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    with said.open("w") as err:
        child = subprocess.Popen(
            [PROGRAM[0], "-X", "importtime", *PROGRAM[1:], "status", "--live", "--state", str(home.root)],
            stdout=subprocess.DEVNULL, stderr=err,
        )  # fmt: skip
    eventually(lambda: f"| {package}." in re.sub(" +", " ", said.read_text()))
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == 130
    assert "Traceback" not in said.read_text() and "Stopped" in said.read_text().splitlines()[-1]


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_demo_leaves_no_process_behind(tmp_path: Path, asked: signal.Signals) -> None:
    work = tmp_path / "work"
    child = subprocess.Popen(
        [*PROGRAM, "demo", str(write_tree(tmp_path / "d", files=50, size=50_000)), "--work", str(work)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    eventually(lambda: (work / "home" / "node.log").exists() or child.poll() is not None)
    child.send_signal(asked)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in out + err, (out, err)
    left = subprocess.run(["pgrep", "-f", str(work)], capture_output=True, text=True).stdout.split()
    assert left == []
