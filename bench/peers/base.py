"""What a program that is measured beside ours has to offer."""

import ctypes
import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final

_PATIENCE_S: Final = 30.0


class BenchError(Exception):
    """A measurement could not be made."""


class Subject(ABC):
    """One program with a source and an other side. Leaving the block stops it and deletes its state."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """Programs that must be installed."""
    takes: ClassVar[str] = "AB"
    """Which data it can be asked to copy."""

    def __init__(self, work: Path, source: Path) -> None:
        self.work = work
        self.source = source
        self._servers: list[subprocess.Popen[bytes]] = []

    @classmethod
    def missing(cls) -> str:
        """The first program that is not there."""
        return next((one for one in cls.needs if which(one) is None), "")

    @property
    def servers(self) -> list[int]:
        """The processes that serve it while it copies."""
        return [one.pid for one in self._servers]

    def __enter__(self) -> "Subject":
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        try:
            self.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for server in reversed(self._servers):
            server.terminate()
        for server in self._servers:
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self._servers.clear()
        shutil.rmtree(self.work, ignore_errors=True)

    @abstractmethod
    def start(self) -> None:
        """Start what listens, and make what must be there before the first copy."""

    @abstractmethod
    def copy(self) -> None:
        """Bring the source, as it is now, to the other side."""

    # -- what most of them need -----------------------------------------------------------

    def listen(self, *command: str, port: int) -> None:
        """Start a server and wait until it accepts."""
        with (self.work / "log").open("ab") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment())
        self._servers.append(server)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise BenchError(f"{self.name}: {command[0]} does not listen; see {self.work / 'log'}")

    def run(self, *command: str, may: Sequence[int] = (0,), cwd: Path | None = None) -> str:
        """Run a program to its end, and flush what it wrote: every subject is durable when it is done."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env=self.environment(),
        )
        if done.returncode not in may:
            raise BenchError(f"{self.name}: {' '.join(command[:3])} failed: {done.stderr.strip()[-400:]}")
        flush(self.work)
        return done.stdout

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.work)}


def which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def flush(folder: Path) -> None:
    """Everything on that file system is on its disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(handle)
