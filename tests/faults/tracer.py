"""strace, attached to a process at an exact moment: what it calls, and what is done to its k-th call.

strace counts the calls of each *thread* by itself, so a call is counted the same way here: a point is
(call, k), and it is reached when some thread makes its k-th such call since we attached.
"""

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

CAN_TRACE = shutil.which("strace") is not None
CHANGING = (
    "fsync", "fdatasync", "pwrite64", "pwritev", "pwritev2", "write", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "truncate", "ftruncate", "fallocate",
)  # fmt: skip
"""The calls that change what a disk holds."""
_LINE = re.compile(r"^(\d+)\s+(?:<\.\.\. (\w+) resumed|(\w+)\()")


class Tracer:
    """One strace on one process and all its threads."""

    def __init__(
        self, pid: int, log: Path, *, calls: Sequence[str], inject: Sequence[str] = (), more: Sequence[str] = ()
    ):
        self.log = log
        self._process = subprocess.Popen(
            ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={','.join(calls)}", *more,
             *(f"--inject={one}" for one in inject)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        said = self._process.stderr.readline().decode()
        if "attached" not in said:
            self._process.kill()
            self._process.communicate()
            raise AssertionError(f"strace could not attach: {said}")

    def wait(self, *, seconds: float = 30) -> None:
        """Until the process has ended."""
        try:
            self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.detach()

    def detach(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    @property
    def is_done(self) -> bool:
        return self._process.poll() is not None


def counted(log: Path) -> dict[str, int]:
    """How often each call was made by the thread that made it most."""
    calls: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        if (found := _LINE.match(line)) and found[3]:
            calls[found[1], found[3]] += 1
    most: dict[str, int] = {}
    for (_, call), count in calls.items():
        most[call] = max(most.get(call, 0), count)
    return most


def was_injected(log: Path) -> bool:
    return "(INJECTED" in log.read_text(errors="replace")


def calls_of(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def wait_for(path: Path, *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{os.fspath(path)} did not appear"
        time.sleep(0.01)
