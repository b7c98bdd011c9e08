"""What a process has used, as the kernel tells it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


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
    """Measures one process from `__init__` to `stop`."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        # 5 forgets the high-water mark of resident memory: proc(5).
        (self._proc / "clear_refs").write_text("5")
        self._before = self._times()

    def stop(self) -> Usage:
        user, system = self._times()
        return Usage(user - self._before[0], system - self._before[1], self._peak())

    def _times(self) -> tuple[float, float]:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) * _TICK_S, int(fields[12]) * _TICK_S

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
