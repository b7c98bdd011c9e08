"""One node on its own: taking in, reading again, giving back, letting go."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.floors import measure_floor
from bench.harness import FLOOR, OURS, Row, Setting, scratch
from bench.meter import gauged
from bench.nodes import Node
from bench.peers import ResticLocal
from bench.peers.base import BenchError
from bench.warm import warm
from replicator.store.local import LocalStore

_READS: Final = 20_000


def measured(work: str, node: Node, action: Callable[[], object], size: int) -> Row:
    figures: dict[str, float] = {}
    with gauged(figures, servers=[node.pid]):
        action()
    figures["mb_per_s"] = size / figures["wall_s"] / 1e6
    return Row(work, OURS, figures)


def floor(work: str, size: int, name: str, *paths: Path) -> Row:
    found = measure_floor(name, *paths)
    return Row(work, FLOOR, {**found, "mb_per_s": size / found["wall_s"] / 1e6})


def ingest(setting: Setting) -> Iterator[Row]:
    """A first snapshot of warm data, beside restic's backup into a folder."""
    for data in setting.data:
        source, size = setting.make(data)
        work = f"{data}, ingest"
        for _ in range(setting.runs):
            with Node("home", setting.work / "home") as home:
                home.protect(source)
                warm(source)
                yield measured(work, home, home.snapshot, size)
            if setting.with_floor:
                warm(source)
                with scratch(setting.work) as out:
                    yield floor(work, size, "ingest_tree" if source.is_dir() else "ingest", source, out)
            if setting.peers and not ResticLocal.missing():
                with ResticLocal(setting.work / "restic-local", source) as restic:
                    figures: dict[str, float] = {}
                    warm(source)
                    with gauged(figures):
                        restic.copy()
                    yield Row(work, restic.name, {**figures, "mb_per_s": size / figures["wall_s"] / 1e6})


def scrub(setting: Setting) -> Iterator[Row]:
    """Everything that a store holds is read and proven, beside hashing the same bytes. MB are sealed ones."""
    for data in setting.data:
        source, _ = setting.make(data)
        with Node("home", setting.work / "home") as home:
            home.protect(source)
            home.snapshot()
            size = sum(path.stat().st_size for path in home.segments.iterdir())
            warm(home.segments)
            for _ in range(setting.runs):
                yield measured(f"{data}, scrub", home, lambda: home.run("scrub", {"from_start": True}), size)
                if setting.with_floor:
                    yield floor(f"{data}, scrub", size, "scrub", home.segments)
                    found = measure_floor("hash", home.segments)
                    yield Row(f"{data}, scrub", "hashing alone", {**found, "mb_per_s": size / found["wall_s"] / 1e6})


def random_reads(setting: Setting) -> Iterator[Row]:
    """Single blocks of 64 KiB out of a warm store, one after the other, each proven; microseconds each."""
    source, _ = setting.make("A")
    with Node("home", setting.work / "home") as home:
        home.protect(source)
        home.snapshot()
        home.stop()
        warm(home.segments)
        store = LocalStore.open(home.state.store)
        try:
            ids = [block for run in store.ids() for block in (run[at : at + 32] for at in range(0, len(run), 32))]
            for _ in range(setting.runs):
                yield Row("A, random reads", OURS, _read_at_random(store, ids, seed=setting.seed))
        finally:
            store.close()
        home.start()


def _read_at_random(store: LocalStore, ids: list[bytes], *, seed: int) -> dict[str, float]:
    chance = random.Random(seed)
    took: list[int] = []
    for block in chance.choices(ids, k=_READS):
        began = time.perf_counter_ns()
        answer = store.read([block])  # type: ignore[list-item]
        took.append(time.perf_counter_ns() - began)
        if answer.faults:
            raise BenchError("a block that was just stored cannot be read")
    took.sort()
    return {f"p{share}_us": took[int(len(took) * share / 100)] / 1000 for share in (50, 90, 99)}


def restore(setting: Setting) -> Iterator[Row]:
    """The data comes back out of the store, and is on the disk."""
    for data in setting.data:
        source, size = setting.make(data)
        with Node("home", setting.work / "home") as home:
            home.protect(source)
            snapshot = home.snapshot()
            for _ in range(setting.runs):
                with scratch(setting.work) as out:
                    yield restored(f"{data}, restore", home, snapshot, out, size)
                    check_equal(source, out)
                if setting.with_floor and data == "A":
                    with scratch(setting.work) as out:
                        yield floor("A, restore", size, "restore", home.segments, source, out)


def restored(work: str, node: Node, snapshot: str, out: Path, size: int) -> Row:
    return measured(work, node, lambda: node.run("restore", {"snapshot": snapshot, "target": str(out)}), size)


def check_equal(one: Path, other: Path) -> None:
    """A figure for a wrong result is worth nothing."""
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file()] if one.is_dir() else [Path()]
    step = 8 * 1024 * 1024
    for name in names:
        with (one / name).open("rb") as a, (other / name).open("rb") as b:
            while (piece := a.read(step)) or b.peek(1):
                if piece != b.read(step):
                    raise BenchError(f"{other / name} is not what {one / name} is")


def collection(setting: Setting) -> Iterator[Row]:
    """Half of what a store holds is let go: mark, sweep, and segments given back. MB are those freed."""
    source, _ = setting.make("A")
    for _ in range(setting.runs):
        with Node("home", setting.work / "home") as home:
            home.protect(source)
            snapshot = home.snapshot()
            before = sum(path.stat().st_size for path in home.segments.iterdir())
            home.client.delete(f"/v1/snapshots/{snapshot}")
            row = measured("A, collection", home, lambda: home.run("gc", {"grace_s": 0}), before)
            row.figures["freed_bytes"] = before - sum(path.stat().st_size for path in home.segments.iterdir())
            yield row
