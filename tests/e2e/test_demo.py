"""The README's first command, as its user runs it, while somebody kills its nodes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def test_the_demo_keeps_every_promise_while_its_nodes_are_killed() -> None:
    """One run with two kill -9 at random moments of random nodes; `scripts/torture` does it as often as you like."""
    command = [
        sys.executable, str(TOP / "scripts" / "torture"), "--kills", "2", "--kills-a-run", "2", "--seed", "7",
        "--demo", f"{sys.executable} -m replicator.app.main demo",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "promises held" in done.stdout


@pytest.mark.slow
def test_the_demo_does_the_whole_job_on_a_folder_with_a_single_small_file(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "only.txt").write_text("a few bytes\n")
    program = [sys.executable, "-m", "replicator.app.main", "demo"]
    words = [*program, str(tmp_path / "given"), "--work", str(tmp_path / "w")]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    assert json.loads(done.stdout)["holds"] is True
