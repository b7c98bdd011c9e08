"""Real nodes for a measurement: made and paired by the command line, asked over the public API."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from bench.peers.base import BenchError, free_port
from replicator.api.client import NodeClient
from replicator.app.config import StateFolder

_PROGRAM: Final = (sys.executable, "-m", "replicator.app.main")
_PATIENCE_S: Final = 60.0
_LOOK_S_MAX: Final = 0.15
_LOOK_SHARE: Final = 0.05
"""We look again after a twentieth of the time that it took so far: no figure is off by more."""


class Node:
    """One node process. Leaving the block stops it and deletes its state.

    `distance_s` puts that much of a round trip between this node and whoever dials it.
    """

    def __init__(self, name: str, root: Path, *, distance_s: float = 0.0) -> None:
        self.name = name
        self.state = StateFolder(root)
        self._told: set[str] = set()
        self._proxy: subprocess.Popen[bytes] | None = None
        shutil.rmtree(root, ignore_errors=True)
        port = free_port()
        more: tuple[str, ...] = ()
        if distance_s:
            near = free_port()
            command = [sys.executable, "-m", "bench.proxy", str(near), "127.0.0.1", str(port), str(distance_s * 500)]
            self._proxy = subprocess.Popen(command)
            more = ("--advertise", f"127.0.0.1:{near}")
        self._command("init", "--name", name, "--listen", f"127.0.0.1:{port}", "--http", "127.0.0.1:0", *more)
        self.start()

    def start(self) -> None:
        with self.state.log.open("ab") as log:
            command = [*_PROGRAM, "up", "--state", str(self.state.root)]
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.client = NodeClient(self.state.socket, patience_s=_PATIENCE_S)
        self.client.get("/health")

    def stop(self) -> None:
        self.client.close()
        self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def __enter__(self) -> "Node":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
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
        self.wait_linked(other.name)

    def wait_linked(self, name: str) -> None:
        self._wait(
            f"a link with {name}",
            lambda: any(peer["linked"] for peer in self.client.get("/v1/peers") if peer["name"] == name),
        )

    def snapshot(self) -> str:
        """Take one of everything that is protected; its id if that is one volume."""
        taken: str = self.run("snapshot", {})["snapshots"][0]["snapshot"]
        return taken

    def run(self, kind: str, args: dict[str, Any]) -> dict[str, Any]:
        """A job, to its end."""
        job_id = os.urandom(8).hex()
        self.client.post("/v1/jobs", {"kind": kind, "args": args, "job_id": job_id})
        return self._result(job_id)

    def start_sync(self, other: "Node") -> None:
        """From now on everything here goes to the other one."""
        self.client.post("/v1/syncs", {"to": other.name})

    def wait_sync(self, *, count: int = 1) -> list[dict[str, Any]]:
        """The next snapshots that other sites sign for, which no call has told of before."""
        began = time.monotonic()
        sent: list[dict[str, Any]] = []
        while len(sent) < count:
            for job in self.client.get("/v1/jobs", limit=16):
                if job["kind"] == "sync" and job["job_id"] not in self._told:
                    result = self._result(job["job_id"])
                    self._told.add(job["job_id"])
                    sent += result["sent"]
            _pause(began)
        return sent

    def _result(self, job_id: str) -> dict[str, Any]:
        while (job := self.client.job(job_id, wait_s=1.0))["state"] in ("queued", "running"):
            pass
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


def _pause(began: float) -> None:
    time.sleep(min(_LOOK_S_MAX, max(0.004, (time.monotonic() - began) * _LOOK_SHARE)))
