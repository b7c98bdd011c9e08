"""The order of a commit, as the kernel saw it: bytes, flush, ledger, flush, and only then the word."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

COUNT = 200
CALL = re.compile(r"^\d+\s+(\w+)\((.*)$")


class Order:
    """What is not durable yet, by the calls so far."""

    def __init__(self) -> None:
        self.dirty: set[str] = set()
        self.acks = 0
        self.segment_flushes = 0

    def see(self, call: str, rest: str) -> None:
        match call:
            case "openat" if ".seg" in rest and "O_CREAT" in rest:
                self.dirty.add("the folder of segments")
            case "pwritev" | "pwritev2" | "pwrite64":
                self.write(rest)
            case "fsync" | "fdatasync":
                self.flush(rest)
            case "write" if '"ack ' in rest:
                assert self.dirty == set(), f"ack {self.acks} before {self.dirty} was flushed"
                self.acks += 1

    def write(self, rest: str) -> None:
        if ".seg>" in rest:
            self.dirty.add("the segment")
        elif "/ledger/" in rest and ".log>" in rest:
            # Rows are about to name bytes: these must be on the disk already.
            assert not self.dirty - {"the ledger"}, f"the ledger was written before {self.dirty} was flushed"
            self.dirty.add("the ledger")

    def flush(self, rest: str) -> None:
        if ".seg>" in rest:
            self.dirty.discard("the segment")
            self.segment_flushes += 1
        elif "/ledger/" in rest and ".log>" in rest:
            self.dirty.discard("the ledger")
        elif "/segments>" in rest:
            self.dirty.discard("the folder of segments")


def test_every_ack_comes_after_both_flushes_and_the_ledger_between_them(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = "pwritev,pwritev2,pwrite64,fdatasync,fsync,write,openat,unlink,rename"
    subprocess.run(
        [
            "strace", "-f", "-y", "--seccomp-bpf", "-s", "12", "-o", str(trace), "-e", f"trace={calls}",
            sys.executable, "-m", "tests.e2e.store_worker", "commit", str(tmp_path / "store"), str(COUNT),
        ],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    order = Order()
    for line in trace.read_text().splitlines():
        if found := CALL.match(line):
            order.see(found[1], found[2])
    assert order.acks == COUNT
    assert order.segment_flushes >= COUNT
