"""Real nodes for a measurement: made and paired by the command line, asked over the public API."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from replicator.api.client import NodeClient
from replicator.app.config import StateFolder

_PROGRAM: Final = (sys.executable, "-m", "replicator.app.main")
_PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.15
"""As often as the command line asks: more would be measured too."""


class BenchError(Exception):
    """A measurement could not be made."""


class Node:
    """One node process. Leaving the block stops it and deletes its state."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.state = StateFolder(root)
        self._told: set[str] = set()
        shutil.rmtree(root, ignore_errors=True)
        listen = f"127.0.0.1:{_free_port()}"
        self._command("init", "--name", name, "--listen", listen, "--http", "127.0.0.1:0")
        with self.state.log.open("ab") as log:
            command = [*_PROGRAM, "up", "--state", str(root)]
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.client = NodeClient(self.state.socket, patience_s=_PATIENCE_S)
        self.client.get("/health")

    def __enter__(self) -> "Node":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        shutil.rmtree(self.state.root, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def segments(self) -> Path:
        return self.state.store / "segments"

    def _command(self, *words: str) -> Any:
        command = [*_PROGRAM, *words, "--state", str(self.state.root), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"`{' '.join(words[:2])}` of {self.name} failed: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def protect(self, path: Path) -> None:
        self._command("protect", str(path))

    def pair_with(self, other: "Node") -> None:
        code = self._command("pair", "invite")["code"]
        other._command("pair", "join", code)
        self._wait(f"a link with {other.name}", lambda: any(peer["linked"] for peer in self.client.get("/v1/peers")))

    def run(self, kind: str, args: dict[str, Any]) -> dict[str, Any]:
        """A job, to its end."""
        job_id = os.urandom(8).hex()
        self.client.post("/v1/jobs", {"kind": kind, "args": args, "job_id": job_id})
        return self._result(job_id)

    def start_sync(self, other: "Node") -> None:
        """From now on everything here goes to the other one."""
        self.client.post("/v1/syncs", {"to": other.name})

    def wait_sync(self) -> dict[str, Any]:
        """The next snapshot that the other side signs for, which no call has told of before."""
        while True:
            for job in self.client.get("/v1/jobs", limit=8):
                if job["kind"] == "sync" and job["job_id"] not in self._told:
                    result = self._result(job["job_id"])
                    self._told.add(job["job_id"])
                    if result["sent"]:
                        sent: dict[str, Any] = result["sent"][0]
                        return sent
            time.sleep(_LOOK_S)

    def _result(self, job_id: str) -> dict[str, Any]:
        while (job := self.client.get(f"/v1/jobs/{job_id}"))["state"] in ("queued", "running"):
            time.sleep(_LOOK_S)
        if job["state"] != "done":
            raise BenchError(f"{job['kind']} on {self.name} ended as {job['state']}: {job.get('error')}")
        result: dict[str, Any] = job["result"]
        return result

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not is_so():
            if time.monotonic() > deadline:
                raise BenchError(f"waited {_PATIENCE_S:.0f} s for {what} in vain")
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
