"""Killed at the k-th system call of a kind: whatever had been acknowledged is there, and opening is quick."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replicator.store.local import LocalStore
from tests.e2e.store_worker import BODY_BYTES
from tests.support.blocks import body_of, ids_of, sealed_block
from tests.support.store import collect, open_store, put, scrub

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

KILLED_AT = 400
COUNT = 40
POINTS = {
    "pwritev2": [1, 2, 9, 17, 30],
    "pwrite64": [2, 10, 30, 55, 77],
    "fdatasync": [3, 5, 6, 7, 40, 81],
    "fsync": [3, 4, 6, 9],
    "unlink": [2, 3, 4],
    "truncate": [],
}
OPEN_S_MAX = 5.0


@pytest.mark.parametrize("call", [call for call, points in POINTS.items() if points])
def test_a_kill_at_any_call_loses_nothing_that_was_acknowledged(call: str, tmp_path: Path) -> None:
    points = POINTS[call]
    subprocess.run(
        [
            "strace", "-f", "-qq", "-o", "/dev/null", f"--trace={call}",
            f"--inject={call}:signal=KILL:when={KILLED_AT}",
            sys.executable, "-m", "tests.e2e.store_worker",
            "forks", str(tmp_path), str(COUNT), call, str(KILLED_AT), *map(str, points),
        ],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    for point in points:
        said = (tmp_path / str(point) / "said").read_text().splitlines()
        assert "done" not in said, f"{call} was not called {point} times"
        check_survivor(tmp_path / str(point) / "store", promised(said))


def promised(said: list[str]) -> list[int]:
    """The seeds of blocks that must be there: what was kept at the last collection, and every ack since."""
    seeds: list[int] = []
    for line in said:
        word, *numbers = line.split()
        if word == "kept":
            seeds = [int(number) for number in numbers]
        elif word == "ack":
            seeds.append(int(numbers[0]))
    return seeds


def check_survivor(folder: Path, seeds: list[int]) -> None:
    began = time.monotonic()
    store = open_store(folder)
    assert time.monotonic() - began < OPEN_S_MAX
    assert_holds(store, seeds)
    assert scrub(store) == []
    put(store, [sealed_block(1000, size=BODY_BYTES)])
    for _ in range(2):
        collect(store, [block for seed in seeds for block in ids_of([sealed_block(seed, size=BODY_BYTES)])])
    assert_holds(store, seeds)
    assert store.statistics().blocks == len(seeds)
    store.close()


def assert_holds(store: LocalStore, seeds: list[int]) -> None:
    wanted = {sealed_block(seed, size=BODY_BYTES).header.block_id: body_of(seed, BODY_BYTES) for seed in seeds}
    answer = store.read(list(wanted))
    assert answer.faults == []
    assert {name: bytes(body) for name, body in answer.sound.items()} == wanted
