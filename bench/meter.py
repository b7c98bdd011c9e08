"""What processes have used, as the kernel tells it."""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.network import wire_bytes

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SAMPLE_S: Final = 0.05
_REAP_S: Final = 0.1
"""How long a server may take to bury the child that served us: only then its seconds are in the sum."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Over a stretch of time: seconds of processor, and the most memory that was resident."""

    user_s: float
    system_s: float
    peak_bytes: int

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


class Meter:
    """Measures one process with all that is below it, alive or buried, from `__init__` to `stop`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._proc = Path(f"/proc/{pid}")
        # 5 forgets the high-water mark of resident memory: proc(5).
        (self._proc / "clear_refs").write_text("5")
        self._before = self._times()

    def stop(self) -> Usage:
        user, system = self._times()
        return Usage(user - self._before[0], system - self._before[1], self._peak())

    def _times(self) -> tuple[float, float]:
        times = [_times(pid) for pid in (self._pid, *_tree(self._pid))]
        return sum(user for user, _ in times), sum(system for _, system in times)

    def _peak(self) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


class Watch:
    """Wall time."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began


@contextmanager
def gauged(figures: dict[str, float], *, servers: Iterable[int] = ()) -> Iterator[None]:
    """Measure what happens inside: wall, processor of both sides, bytes on the wire, memory.

    One side are the processes that are started and ended inside; the other are `servers`, which
    were running before, with their children.
    """
    servers = list(servers)
    meters = [Meter(pid) for pid in servers]
    idle = set(_children(os.getpid())) - set(servers)
    memory = _Memory(lambda: [pid for pid in _tree(os.getpid()) if pid not in idle])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    wire, watch = wire_bytes(), Watch()
    with memory:
        yield
        figures["wall_s"] = watch.seconds
    figures["wire_bytes"] = wire_bytes() - wire
    if servers:
        time.sleep(_REAP_S)
    used = [meter.stop() for meter in meters]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    client_s = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    figures["cpu_s"] = client_s + sum(one.cpu_s for one in used)
    figures["peak_bytes"] = memory.peak


class _Memory:
    """Looks now and then at what some processes have in memory together."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.peak = 0

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self.peak = max(self.peak, sum(map(_resident, self._pids())))


def _times(pid: int) -> tuple[float, float]:
    """User and system seconds, those of buried children included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    return (int(fields[11]) + int(fields[13])) * _TICK_S, (int(fields[12]) + int(fields[14])) * _TICK_S


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return found
    return found


def _tree(pid: int) -> list[int]:
    below = _children(pid)
    return below + [one for child in below for one in _tree(child)]
