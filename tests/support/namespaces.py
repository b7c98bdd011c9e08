"""Hosts of their own for nodes under test: network namespaces joined by cables that can be slow or dead.

Needs root (or the right to make namespaces) and iproute2; without, a test skips and says why.
There is no netem on every kernel, so delay and loss are `tests.support.proxy`'s; rates are tbf's.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

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
        ip("-n", self.name, "rule", "add", "to", f"{other.address}/32", "priority", "100", "blackhole")

    def see_again(self, other: "Host") -> None:
        ip("-n", self.name, "rule", "del", "to", f"{other.address}/32", "priority", "100", "blackhole")


def why_no_hosts() -> str:
    """Why this machine has no namespaces for us; empty if it has."""
    if shutil.which("ip") is None:
        return "there is no `ip` here (iproute2)"
    name = f"rp{os.getpid() % 100_000}try"
    made = ip("netns", "add", name, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    ip("netns", "del", name, check=False)
    return ""


@contextmanager
def hosts(count: int, *, rate: str = "") -> Iterator[list[Host]]:
    """Hosts with a cable between each two; `rate` as tbf writes it, each way of each cable."""
    tag = f"rp{os.getpid() % 100_000}"
    found = [Host(f"{tag}{letter}", f"10.213.7.{number + 1}") for number, letter in enumerate("abcdefgh"[:count])]
    made = ip("netns", "add", found[0].name, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces on this machine: {made.stderr.strip()}")
    try:
        for host in found[1:]:
            ip("netns", "add", host.name)
        for host in found:
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "address", "add", f"{host.address}/32", "dev", "lo")
        for number, (one, other) in enumerate(combinations(found, 2)):
            near, far = f"{tag}x{number}", f"{tag}y{number}"
            ip("link", "add", near, "netns", one.name, "type", "veth", "peer", far, "netns", other.name)
            for host, device, at in ((one, near, other), (other, far, one)):
                ip("-n", host.name, "link", "set", device, "up")
                ip("-n", host.name, "route", "add", f"{at.address}/32", "dev", device, "src", host.address)
                if rate:
                    _shape(host, device, rate)
        yield found
    finally:
        for host in found:
            ip("netns", "del", host.name, check=False)


def _shape(host: Host, device: str, rate: str) -> None:
    shaped = subprocess.run(
        [*host.prefix, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
         "burst", "256kb", "latency", "100ms"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    if shaped.returncode:
        pytest.skip(f"this kernel shapes no traffic: {shaped.stderr.strip()}")
