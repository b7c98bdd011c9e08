"""Starting processes for the fault suite, waiting for what they do, and never waiting for ever."""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]


class Hung(AssertionError):
    """A process did not do in time what it had to do."""


@dataclass(frozen=True, slots=True)
class Actor:
    """One process. What it says is in `said`, which lies where its disk's faults do not reach."""

    key: str
    pid: int
    said: Path

    def lines(self) -> list[str]:
        return self.said.read_text().splitlines() if self.said.exists() else []

    def errors(self) -> str:
        path = Path(f"{self.said}.err")
        return path.read_text(errors="replace") if path.exists() else ""

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Stage:
    """A zygote and its children."""

    def __init__(self) -> None:
        path = f"{TOP}:{os.environ.get('PYTHONPATH', '')}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, cwd=TOP,
        )  # fmt: skip
        self._numbers = itertools.count()
        self._rest = b""
        self._events: list[dict[str, Any]] = []

    def work(self, name: str, args: dict[str, Any], *, said: Path) -> Actor:
        """Start one of the works; each stops itself where its watched part begins."""
        return self._fork({"work": name, "args": args}, said)

    def program(self, *words: str, said: Path, stop: bool = False) -> Actor:
        """Start the command line."""
        return self._fork({"words": list(words), "stop": stop}, said)

    def _fork(self, request: dict[str, Any], said: Path) -> Actor:
        key = f"{next(self._numbers)}"
        line = json.dumps({**request, "key": key, "said": str(said)})
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        # The first one waits until the zygote has imported everything, which a busy machine takes its time for.
        return Actor(key, self._next(key, "forked", 120)["pid"], said)

    def wait_stopped(self, actor: Actor, *, seconds: float = 30) -> None:
        """Until it stands still and waits to be watched."""
        found = self._next(actor.key, "stopped", seconds, also="ended")
        assert found["event"] == "stopped", f"it ended before its part began: {actor.lines()[-3:]} {actor.errors()}"

    def wait_ended(self, actor: Actor, *, seconds: float = 30) -> int:
        """Its exit code, negative for a signal. Raises `Hung`, after killing it."""
        try:
            return int(self._next(actor.key, "ended", seconds)["code"])
        except Hung:
            actor.kill()
            self._next(actor.key, "ended", 10)
            raise

    def has_ended(self, actor: Actor) -> bool:
        self._read(0)
        return any(event["key"] == actor.key and event["event"] == "ended" for event in self._events)

    def _next(self, key: str, event: str, seconds: float, *, also: str = "") -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            for found in self._events:
                if found["key"] == key and found["event"] in (event, also):
                    self._events.remove(found)
                    return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise Hung(f"nothing said {event} within {seconds:.0f} s")
            self._read(left)

    def _read(self, seconds: float) -> None:
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        if not select.select([out], [], [], seconds)[0]:
            return
        piece = os.read(out, 65536)
        assert piece, "the zygote died"
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._events += [json.loads(line) for line in lines]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
