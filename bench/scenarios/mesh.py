"""Several sites: mending, rebuilding, getting back over the wire, far away, many at once, and who lacks what."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from bench.derived import random_heads
from bench.harness import OURS, Row, Setting, scratch
from bench.meter import gauged
from bench.nodes import Node
from bench.reconcile import measure
from bench.scenarios.node import check_equal, floor, measured

_DAMAGE: Final = 100
_DISTANCES_MS: Final = (0, 50, 200)
_FANS: Final = (1, 2, 4)


def restore_from_peer(setting: Setting) -> Iterator[Row]:
    """A site that lost every block restores: all of it comes from a peer, over the wire."""
    for data in setting.data:
        source, size = setting.make(data)
        with Node("home", setting.work / "home") as home, Node("cabin", setting.work / "cabin") as cabin:
            _both_hold(home, cabin, source)
            snapshot = home.client.get("/v1/snapshots")[0]["snapshot"]
            for _ in range(setting.runs):
                _forget_data(home)
                with scratch(setting.work) as out:
                    figures: dict[str, float] = {}
                    with gauged(figures, servers=[home.pid, cabin.pid]):
                        home.run("restore", {"snapshot": snapshot, "target": str(out)})
                    check_equal(source, out)
                figures["mb_per_s"] = size / figures["wall_s"] / 1e6
                yield Row(f"{data}, restore from a peer", OURS, figures)
                if setting.with_floor and data == "A":
                    with scratch(setting.work) as out:
                        yield floor("A, restore from a peer", size, "restore_from_peer", cabin.segments, source, out)


def repair(setting: Setting) -> Iterator[Row]:
    """A hundred blocks in a hundred places are ruined; a scrub finds them and a peer mends them."""
    source, size = setting.make("A")
    with Node("home", setting.work / "home") as home, Node("cabin", setting.work / "cabin") as cabin:
        _both_hold(home, cabin, source)
        for run in range(setting.runs):
            home.stop()
            _ruin(home.segments, seed=run)
            home.start()
            home.wait_linked("cabin")
            yield measured("A, repair", home, lambda: home.run("scrub", {"from_start": True}), size)
            if setting.with_floor:
                yield floor("A, repair", size, "scrub", cabin.segments)  # The same bytes, unharmed.


def rebuild(setting: Setting) -> Iterator[Row]:
    """A site loses every segment and gets all of them from its peer. MB are those of the source."""
    source, size = setting.make("A")
    for _ in range(setting.runs):
        with Node("home", setting.work / "home") as home, Node("cabin", setting.work / "cabin") as cabin:
            _both_hold(home, cabin, source)
            _forget_data(home)
            figures: dict[str, float] = {}
            with gauged(figures, servers=[home.pid, cabin.pid]):
                home.run("repair", {})
            yield Row("A, rebuild", OURS, {**figures, "mb_per_s": size / figures["wall_s"] / 1e6})
            if setting.with_floor:
                with scratch(setting.work) as out:
                    yield floor("A, rebuild", size, "sync", cabin.segments, out)


def many_peers(setting: Setting) -> Iterator[Row]:
    """The same snapshot to one, two and four sites at once."""
    source, size = setting.make("A")
    for _ in range(setting.runs):
        for fan in _FANS:
            with ExitStack() as stack:
                home = stack.enter_context(Node("home", setting.work / "home"))
                home.protect(source)
                home.snapshot()
                others = [stack.enter_context(Node(f"cabin{n}", setting.work / f"cabin{n}")) for n in range(fan)]
                for other in others:
                    home.pair_with(other)
                figures: dict[str, float] = {}
                with gauged(figures, servers=[home.pid, *(other.pid for other in others)]):
                    for other in others:
                        home.start_sync(other)
                    home.wait_sync(count=fan)
                figures["mb_per_s"] = size * fan / figures["wall_s"] / 1e6
                yield Row(f"A, to {fan} peer{'s' * (fan > 1)}", OURS, figures)


def distance(setting: Setting) -> Iterator[Row]:
    """Store to store over 0, 50 and 200 ms of round trip."""
    source, size = setting.make("A")
    for _ in range(setting.runs):
        for far_ms in _DISTANCES_MS:
            with ExitStack() as stack:
                home, cabin = (
                    stack.enter_context(Node(name, setting.work / name, distance_s=far_ms / 1000))
                    for name in ("home", "cabin")
                )
                home.protect(source)
                home.snapshot()
                home.pair_with(cabin)
                figures: dict[str, float] = {}
                with gauged(figures, servers=[home.pid, cabin.pid]):
                    home.start_sync(cabin)
                    sent = home.wait_sync()[0]
                if far_ms:
                    figures["wire_bytes"] /= 2  # Each byte crosses the loopback before and behind the proxy.
                figures |= {"mb_per_s": size / figures["wall_s"] / 1e6, "round_trips": sent["round_trips"]}
                yield Row(f"A, round trip of {far_ms} ms", OURS, figures)


def reconcile(setting: Setting) -> Iterator[Row]:
    """Which blocks two sites do not share: sets of n blocks that differ in d, by Merkle summaries."""
    sizes = [n for n in (100_000, 1_000_000) if n <= setting.most_blocks]
    for size in sizes:
        for differing in (0, 1, 100, 10_000):
            for run in range(setting.runs):
                rng = np.random.default_rng(setting.seed + run)
                done = measure(random_heads(rng, size), differing, rng)
                figures = {
                    "cpu_s": done.initiator_s + done.responder_s,
                    "wire_bytes": float(done.result.wire_bytes),
                    "turns": float(done.result.turns_count),
                }
                yield Row(f"reconcile {size:,} x {differing:,}", OURS, figures)


def _both_hold(home: Node, cabin: Node, source: Path) -> None:
    home.pair_with(cabin)
    home.start_sync(cabin)
    home.protect(source)
    home.snapshot()
    home.wait_sync()


def _forget_data(node: Node) -> None:
    node.stop()
    for path in node.segments.iterdir():
        path.unlink()
    node.start()
    node.wait_linked("cabin")


def _ruin(segments: Path, *, seed: int) -> None:
    chance = random.Random(seed)
    paths = sorted(segments.iterdir())
    for _ in range(_DAMAGE):
        with chance.choice(paths).open("r+b") as file:
            at = chance.randrange(64, max(65, file.seek(0, 2)))
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0x10]) if byte else b"")
