"""The three sites as processes: started, watched, and started again if somebody kills one.

A node that dies is restarted within a moment, as systemd would; if somebody else was faster,
and the node is already running again, it is left alone.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from replicator.api.client import NodeClient, RemoteError
from replicator.app.config import StateFolder
from replicator.core.errors import NodeDown, ReplicatorError, Unreachable

_PATIENCE_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_ASKING: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits: a process that is there and that nobody knows yet would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Nothing interrupts other threads.
        return
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in _ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


class Site:
    """One node under supervision."""

    def __init__(self, name: str, folder: Path, *, rate_out: str) -> None:
        self.name = name
        self.state = StateFolder(folder)
        self.restarts = 0
        self._rate_out = rate_out
        self._child: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._watcher: threading.Thread | None = None
        self.client = NodeClient(self.state.socket, patience_s=_PATIENCE_S)

    def make(self) -> None:
        """`replicator init`."""
        command = [
            *_program(), "init", "--state", str(self.state.root), "--name", self.name,
            "--listen", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{free_port()}",
            "--rate-out", self._rate_out, "--segment-size", "4MiB",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReplicatorError(f"`init` of {self.name} failed: {done.stderr.strip()}")

    def start(self) -> None:
        """`replicator up`, now and whenever it dies, until `stop` or `burn`."""
        self._wanted = True
        with _uninterrupted():
            self._spawn()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        self.client.get("/health")

    def _spawn(self) -> None:
        with self.state.log.open("ab") as log:
            command = [*_program(), "up", "--state", str(self.state.root)]
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _watch(self) -> None:
        while self._wanted:
            assert self._child is not None
            self._child.wait()
            if not self._is_wanted():
                return
            if self._answers():
                time.sleep(0.2)  # somebody else has started it; if that one dies too, it is our turn again
                continue
            self.restarts += 1
            self._spawn()
            time.sleep(0.3)

    def _is_wanted(self) -> bool:
        return self._wanted

    def _answers(self) -> bool:
        impatient = NodeClient(self.state.socket)
        try:
            impatient.get("/health")
        except NodeDown:
            return False
        finally:
            impatient.close()
        return True

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen."""
        self._end(signal.SIGTERM)

    def burn(self) -> None:
        """The site is gone: its process killed, its whole folder deleted."""
        self._end(signal.SIGKILL)
        subprocess.run(["rm", "-rf", "--", str(self.state.root)], check=True)

    def _end(self, how: signal.Signals) -> None:
        """No process of this site is left, also if its watcher was just about to start one."""
        self._wanted = False
        if self._child is None:
            return
        for _ in range(2):  # The second time whatever the watcher has started meanwhile.
            child = self._child
            child.send_signal(how)
            if (other := _lock_owner(self.state)) not in (0, child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, how)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if self._watcher is not None and self._watcher is not threading.current_thread():
                self._watcher.join()

    # -- asking, stubbornly ---------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(path, **query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """A call that is made again while the *other* site is on its way back."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.client.post(path, body)
            except RemoteError as error:
                if error.code != Unreachable.code or time.monotonic() > deadline:
                    raise
                time.sleep(0.3)


def _lock_owner(state: StateFolder) -> int:
    """The process that has the store open; 0 if the one that wrote itself down there is gone."""
    try:
        pid = int((state.store / "lock").read_text().strip() or 0)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if os.fsencode(state.root) in words else 0


def _program() -> list[str]:
    return [sys.executable, "-m", "replicator.app.main"]
