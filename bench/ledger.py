"""What the ledger costs: insertion, look-up, bytes on the disk and in memory, and opening it again.

    python -m bench.ledger                  twenty million blocks; about three minutes
    python -m bench.ledger 1e6 --work DIR
    python -m bench.ledger 2e7 --work DIR --step fill     only that, and what it made stays
    python -m bench.ledger 2e7 --work DIR --step look     look-ups alone, in what was made

The ids come from a seed, in batches as a node enters them: each batch is durable before the next. Memory is
what the process takes above what it took before the first insertion.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from protocol.ids import BlockId, split_ids
from protocol.wire.envelope import Header
from replicator.core.memory import keep_freed_memory
from replicator.store.config import StoreConfig
from replicator.store.ledger import Ledger
from replicator.store.ports import Place

_BATCH: Final = 10_000
"""Blocks that one durable batch enters: 640 MiB of image."""
_SEALED: Final = 40_000
_SEGMENT: Final = 64 * 1024 * 1024
_LOOKED_UP: Final = 1_000


def ids_of_batch(number: int) -> list[BlockId]:
    return split_ids(np.random.default_rng(number).bytes(_BATCH * 32))


def rows_of_batch(number: int) -> list[tuple[Header, Place]]:
    rows: list[tuple[Header, Place]] = []
    a_segment = _SEGMENT // _SEALED
    for at, block in enumerate(ids_of_batch(number), number * _BATCH):
        place = Place(1 + at // a_segment, 64 + at % a_segment * _SEALED, _SEALED)
        rows.append((Header(0, 1, 65536, _SEALED - 56, block, 0), place))
    return rows


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(folder: Path, batches: int) -> dict[str, float]:
    before = resident_bytes()
    ledger = Ledger(folder, StoreConfig())
    spent = slowest = peak = 0.0
    for number in range(batches):
        rows = rows_of_batch(number)
        began = time.perf_counter()
        ledger.insert(rows)
        took = time.perf_counter() - began
        spent, slowest = spent + took, max(slowest, took)
        peak = max(peak, resident_bytes() - before)
    began = time.perf_counter()
    ledger.wait_merged()
    blocks = batches * _BATCH
    result = {
        "blocks": blocks,
        "inserted_per_s": blocks / spent,
        "slowest_batch_s": slowest,
        "merging_at_the_end_s": time.perf_counter() - began,
        "disk_bytes_a_block": sum(path.stat().st_blocks * 512 for path in folder.rglob("*")) / blocks,
        "memory_bytes_a_block": (resident_bytes() - before) / blocks,
        "memory_peak_bytes": peak,
    }
    result |= look_up(ledger, batches)
    ledger.close()
    return result


def look_up(ledger: Ledger, batches: int) -> dict[str, float]:
    """Random ids that are here, and random ones that are not, a thousand at a time. The first round warms up."""
    chance = np.random.default_rng((1, 2))
    known = [ids_of_batch(int(number)) for number in chance.integers(batches, size=64)]
    times: dict[str, list[float]] = {"hit": [], "hit_cpu": [], "miss": [], "miss_cpu": []}
    for _ in range(40):
        mixed = [known[int(a)][int(b)] for a, b in chance.integers((64, _BATCH), size=(_LOOKED_UP, 2))]
        for which, ids in (("hit", mixed), ("miss", split_ids(chance.bytes(_LOOKED_UP * 32)))):
            began, worked = time.perf_counter(), time.thread_time()
            found = ledger.places(ids)
            times[f"{which}_cpu"].append((time.thread_time() - worked) / _LOOKED_UP * 1e6)
            times[which].append((time.perf_counter() - began) / _LOOKED_UP * 1e6)
            assert len(found) == (len(set(ids)) if which == "hit" else 0)
    return {f"{which}_us_a_key": float(np.median(taken[5:])) for which, taken in times.items()}


def look_again(folder: Path, batches: int) -> dict[str, float]:
    """Look-ups in a ledger that is there, of which everything is in the page cache; the best of three rounds."""
    for path in folder.iterdir():
        path.read_bytes()
    ledger = Ledger(folder, StoreConfig())
    rounds = [look_up(ledger, batches) for _ in range(3)]
    ledger.close()
    return {"load": os.getloadavg()[0]} | min(rounds, key=lambda one: one["hit_us_a_key"])


def reopen(folder: Path) -> dict[str, float]:
    """In a process of its own, so that nothing is warm but the page cache."""
    before = resident_bytes()
    began = time.perf_counter()
    ledger = Ledger(folder, StoreConfig())
    opened = time.perf_counter() - began
    memory = resident_bytes() - before
    began = time.perf_counter()
    count = sum(len(packed) for packed in ledger.packed_ids()) // 32
    scanned = time.perf_counter() - began
    assert count == ledger.totals()[0]
    began = time.perf_counter()
    ledger.in_segment(1, from_offset=0, limit=256)
    window = time.perf_counter() - began
    ledger.close()
    return {
        "open_s": opened,
        "open_memory_bytes": memory,
        "ids_per_s": count / scanned,
        "segments_window_s": window,
    }


def _apart(step: str, folder: Path, batches: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.ledger", "--step", step, "--work", str(folder), str(batches * _BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the ledger.")
    parser.add_argument("blocks", nargs="?", type=float, default=2e7)
    parser.add_argument("--work", type=Path, default=None, help="where to work; by default a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=("fill", "reopen", "crash", "look"), help="only a part of it")
    chosen = parser.parse_args(arguments)
    batches = max(1, int(chosen.blocks) // _BATCH)
    keep_freed_memory()  # As a node does.
    match chosen.step:
        case "fill":
            print(json.dumps(fill(chosen.work, batches)))
            return
        case "look":
            print(json.dumps(look_again(chosen.work, batches)))
            return
        case "reopen":
            print(json.dumps(reopen(chosen.work)))
            return
        case "crash":
            # As many rows as a log can hold before it becomes a run, and then no closing.
            ledger = Ledger(chosen.work, StoreConfig())
            for number in range(batches, batches + 12):
                ledger.insert(rows_of_batch(number))
            print("{}", flush=True)
            os._exit(0)
    work = chosen.work or Path(tempfile.mkdtemp(prefix="ledger-"))
    folder = work / "ledger"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        result = _apart("fill", folder, batches)
        result |= _apart("reopen", folder, batches)
        _apart("crash", folder, batches)
        after = _apart("reopen", folder, batches)
        result |= {"open_after_crash_s": after["open_s"]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if chosen.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:>24} {value:>16,.2f}")


if __name__ == "__main__":
    main()
