"""The README's first command, as its user runs it, while somebody kills its nodes."""

import subprocess
import sys
from pathlib import Path

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
