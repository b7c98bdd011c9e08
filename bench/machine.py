"""What the figures were measured on."""

import os
import platform
import ssl
from pathlib import Path


def describe_machine() -> dict[str, str | int | float]:
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_kib": int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]),
        "load_1m": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tls": ssl.OPENSSL_VERSION,
    }


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
