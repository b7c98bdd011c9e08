"""Hosts of their own for nodes under test: network namespaces joined by cables that can be slow or dead.

Needs root (or the right to make namespaces) and iproute2; without, a test skips and says why.
There is no netem on every kernel, so delay and loss are `tests.support.proxy`'s; rates are tbf's.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=check)


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. `prefix` starts a command inside."""

    name: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def blackhole(self, other: "Host") -> None:
        """What goes to that host vanishes without a word."""
        ip("-n", self.name, "route", "add", "blackhole", f"{other.address}/32")

    def see_again(self, other: "Host") -> None:
        ip("-n", self.name, "route", "del", "blackhole", f"{other.address}/32")


@contextmanager
def two_hosts(*, rate: str = "") -> Iterator[tuple[Host, Host]]:
    """Two hosts and a cable; `rate` as tbf writes it, each way."""
    tag = f"rp{os.getpid() % 100_000}"
    hosts = (Host(f"{tag}a", "10.213.7.1"), Host(f"{tag}b", "10.213.7.2"))
    made = ip("netns", "add", hosts[0].name, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces on this machine: {made.stderr.strip()}")
    try:
        ip("netns", "add", hosts[1].name)
        ip("link", "add", f"{tag}x", "netns", hosts[0].name, "type", "veth", "peer", f"{tag}y", "netns", hosts[1].name)
        for host, device in zip(hosts, (f"{tag}x", f"{tag}y"), strict=True):
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", device)
            for up in (device, "lo"):
                ip("-n", host.name, "link", "set", up, "up")
            if rate:
                shaped = subprocess.run(
                    [*host.prefix, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
                     "burst", "256kb", "latency", "100ms"],
                    capture_output=True, text=True, timeout=20,
                )  # fmt: skip
                if shaped.returncode:
                    pytest.skip(f"this kernel shapes no traffic: {shaped.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts:
            ip("netns", "del", host.name, check=False)
