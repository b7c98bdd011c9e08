"""A writer that is really stopped past its lease, and woken, is refused; and doing it again works."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LEASE_S = 0.15
ROUNDS = int(os.environ.get("STOPPED_WRITER_ROUNDS", "12"))
"""The night asks for 200."""


def test_a_writer_stopped_past_its_lease_is_refused_by_the_store_and_its_retry_is_whole(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.lease_worker", str(tmp_path / "store"), str(ROUNDS), str(LEASE_S)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []
    try:
        assert child.stdout is not None
        for line in child.stdout:
            said.append(line.strip())
            if said[-1] == "asleep":
                os.kill(child.pid, signal.SIGSTOP)
                time.sleep(LEASE_S * 1.2)
                os.kill(child.pid, signal.SIGCONT)
    finally:
        child.kill()
        child.wait(30)
        child.stdout.close()
    assert said == ["asleep", "refused", "retried"] * ROUNDS
