"""What is measured. A scenario sets its scene, does one thing `runs` times, and returns a row for each.

In a row, seconds are wall time unless the name says `cpu`; bytes are bytes; `floor_*` comes from
the same run, and a ratio above one says how much more ours costs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.floors import measure_floor
from bench.image import change_blocks, make_image
from bench.meter import Meter, Watch
from bench.nodes import BenchError, Node

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command line chose."""

    work: Path
    gib: float
    runs: int
    seed: int
    with_floor: bool

    @property
    def image(self) -> Path:
        return self.work / f"image-{self.gib:g}-{self.seed}.img"


def first_sync(setting: Setting) -> Iterator[Row]:
    """Everything of a new volume to a site that has nothing, until its signed receipt is here."""
    size = make_image(setting.image, gib=setting.gib, seed=setting.seed)
    with Node("home", setting.work / "home") as home:
        _snapshot_of(home, setting.image)
        for _ in range(setting.runs):
            with Node("cabin", setting.work / "cabin") as cabin:
                home.pair_with(cabin)
                sender, receiver, watch = Meter(home.pid), Meter(cabin.pid), Watch()
                home.start_sync(cabin)
                sent = home.wait_sync()
                wall = watch.seconds
                here, there = sender.stop(), receiver.stop()
                home.client.delete("/v1/peers/cabin")
            row = {
                "wall_s": wall,
                "image_mb_per_s": size / wall / 1e6,
                "sender_user_s": here.user_s,
                "sender_sys_s": here.system_s,
                "receiver_user_s": there.user_s,
                "receiver_sys_s": there.system_s,
                "cpu_s": here.cpu_s + there.cpu_s,
                "sender_peak_bytes": here.peak_bytes,
                "receiver_peak_bytes": there.peak_bytes,
                "both_peak_bytes": here.peak_bytes + there.peak_bytes,
                "link_bytes_out": sent["link_bytes_out"],
                "link_bytes_in": sent["link_bytes_in"],
                "blocks": sent["blocks"],
                "blocks_twice": sent["blocks_twice"],
                "offer_to_receipt_s": sent["took_s"],
            }
            if setting.with_floor:
                with _scratch(setting.work) as out:
                    floor = measure_floor("sync", home.segments, out)
                floor["cpu_s"] = floor["sender_cpu_s"] + floor["receiver_cpu_s"]
                row |= _beside_floor(row, floor)
                row["floor_sender_cpu_s"] = floor["sender_cpu_s"]
                row["floor_receiver_cpu_s"] = floor["receiver_cpu_s"]
            yield row


def ingest(setting: Setting) -> Iterator[Row]:
    """A first snapshot of a warm image."""
    size = make_image(setting.image, gib=setting.gib, seed=setting.seed)
    for _ in range(setting.runs):
        with Node("home", setting.work / "home") as home:
            home.protect(setting.image)
            row = _measured(home, lambda home=home: home.run("snapshot", {}), size)  # type: ignore[misc]
        if setting.with_floor:
            with _scratch(setting.work) as out:
                row |= _beside_floor(row, measure_floor("ingest", setting.image, out))
        yield row


def scrub(setting: Setting) -> Iterator[Row]:
    """Everything that a store holds is read and proven. MB are sealed ones, as they lie on the disk."""
    make_image(setting.image, gib=setting.gib, seed=setting.seed)
    with Node("home", setting.work / "home") as home:
        _snapshot_of(home, setting.image)
        size = sum(path.stat().st_size for path in home.segments.iterdir())
        for _ in range(setting.runs):
            row = _measured(home, lambda: home.run("scrub", {"from_start": True}), size)
            if setting.with_floor:
                row |= _beside_floor(row, measure_floor("scrub", home.segments))
            yield row


def restore(setting: Setting) -> Iterator[Row]:
    """The image comes back out of the store into a file, and is on the disk."""
    size = make_image(setting.image, gib=setting.gib, seed=setting.seed)
    with Node("home", setting.work / "home") as home:
        snapshot = _snapshot_of(home, setting.image)
        for _ in range(setting.runs):
            with _scratch(setting.work) as out:
                args = {"snapshot": snapshot, "target": str(out)}
                row = _measured(home, lambda args=args: home.run("restore", args), size)  # type: ignore[misc]
                _check_equal(setting.image, out)
            if setting.with_floor:
                with _scratch(setting.work) as out:
                    row |= _beside_floor(row, measure_floor("restore", home.segments, setting.image, out))
            yield row


def incremental(setting: Setting) -> Iterator[Row]:
    """One block in a hundred has changed: a snapshot, and the difference to a peer. The floor reads and hashes."""
    yield from _again(setting, share=0.01)


def unchanged(setting: Setting) -> Iterator[Row]:
    """Nothing has changed: a snapshot, and the news of it to a peer. The floor reads and hashes."""
    yield from _again(setting, share=0.0)


def _again(setting: Setting, *, share: float) -> Iterator[Row]:
    size = make_image(setting.image, gib=setting.gib, seed=setting.seed)
    with Node("home", setting.work / "home") as home, Node("cabin", setting.work / "cabin") as cabin:
        home.pair_with(cabin)
        home.start_sync(cabin)
        _snapshot_of(home, setting.image)
        home.wait_sync()
        for run in range(setting.runs):
            changed = change_blocks(setting.image, share=share, seed=setting.seed + run + 1) if share else 0
            sender, receiver, watch = Meter(home.pid), Meter(cabin.pid), Watch()
            home.run("snapshot", {})
            snapshot_s = watch.seconds
            sent = home.wait_sync()
            wall = watch.seconds
            here, there = sender.stop(), receiver.stop()
            row = {
                "wall_s": wall,
                "snapshot_s": snapshot_s,
                "sync_s": sent["took_s"],
                "image_mb_per_s": size / wall / 1e6,
                "cpu_s": here.cpu_s + there.cpu_s,
                "both_peak_bytes": here.peak_bytes + there.peak_bytes,
                "blocks_changed": changed,
                "blocks": sent["blocks"],
                "summary_bytes": sent["summary_bytes"],
                "link_bytes_out": sent["link_bytes_out"],
                "link_bytes_in": sent["link_bytes_in"],
            }
            if setting.with_floor:
                row |= _beside_floor(row, measure_floor("incremental", setting.image))
            yield row


def _snapshot_of(node: Node, image: Path) -> str:
    node.protect(image)
    taken: str = node.run("snapshot", {})["snapshots"][0]["snapshot"]
    return taken


def _measured(node: Node, work: Callable[[], object], size: int) -> Row:
    meter, watch = Meter(node.pid), Watch()
    work()
    wall, used = watch.seconds, meter.stop()
    return {
        "wall_s": wall,
        "mb_per_s": size / wall / 1e6,
        "user_s": used.user_s,
        "sys_s": used.system_s,
        "cpu_s": used.cpu_s,
        "peak_bytes": used.peak_bytes,
    }


def _beside_floor(row: Row, floor: Row) -> Row:
    return {
        "floor_wall_s": floor["wall_s"],
        "floor_cpu_s": floor["cpu_s"],
        "wall_ratio": row["wall_s"] / floor["wall_s"],
        "cpu_ratio": row["cpu_s"] / floor["cpu_s"],
    }


def _check_equal(one: Path, other: Path) -> None:
    step = 8 * 1024 * 1024
    with one.open("rb") as a, other.open("rb") as b:
        while (piece := a.read(step)) or b.peek(1):
            if piece != b.read(step):
                raise BenchError(f"{other} is not what {one} is")


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    path = work / "scratch"
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


SCENARIOS: Final[dict[str, Callable[[Setting], Iterator[Row]]]] = {
    scenario.__name__: scenario for scenario in (first_sync, ingest, scrub, restore, incremental, unchanged)
}
