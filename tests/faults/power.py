"""Power cuts: what a disk may hold that lost its power at any moment, on a real ext4.

After a cut at record k everything before the last flush is there. Of what was written since, any subset may be, and
the last of those may be torn at a sector. The worker's words carry the time, so it is known which had been said when
record k was written.
"""

import errno
import gc
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.disk import Record, read_log
from tests.faults.judge import Promised, judge_node, judge_store
from tests.faults.points import scratch
from tests.faults.stage import TOP, Stage

DISK_BYTES = 48 << 20
SECTOR = 512
OPTIONS = ("", "data=writeback", "data=journal", "nodelalloc")
"""How ext4 is mounted while the work runs; each loses other things."""


def can_cut() -> str:
    """Empty if this machine can run it, else why not."""
    if os.geteuid() != 0:
        return "needs root, for loop devices and mounts"
    for path in ("/dev/fuse", "/dev/loop-control"):
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            return f"needs {path}: {errno.errorcode.get(error.errno or 0, error)}"
    for program in ("losetup", "mkfs.ext4", "e2fsck"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin") is None:
            return f"needs {program}"
    return ""


def run(*words: str) -> str:
    path = f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin"
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path})
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


@contextmanager
def looped(image: Path, mountpoint: Path, *, options: str = "") -> Iterator[None]:
    """An ext4 in a file, mounted."""
    mountpoint.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", str(image))
    try:
        run("mount", "-t", "ext4", *(("-o", options) if options else ()), device, str(mountpoint))
        try:
            yield
        finally:
            _unmount(mountpoint)
    finally:
        run("losetup", "--detach", device)


def _unmount(mountpoint: Path, *, seconds: float = 10.0) -> None:
    """What reads there is closed when nobody refers to it any more, and a thread may still be on its way out."""
    deadline = time.monotonic() + seconds
    while True:
        gc.collect()
        try:
            run("umount", str(mountpoint))
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def heal_file_system(image: Path) -> None:
    """What a machine does when it boots: replays the journal, and repairs what a torn superblock needs."""
    path = f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin"
    done = subprocess.run(
        ["e2fsck", "-y", str(image)], capture_output=True, timeout=60, env={**os.environ, "PATH": path}
    )
    assert done.returncode <= 2, done.stdout.decode(errors="replace")[-500:]


@contextmanager
def recording(image: Path, folder: Path) -> Iterator[Path]:
    """The disk of that image, recording to `folder/log`. Yields the file to put a loop device on."""
    served = folder / "served"
    served.mkdir()
    words = [sys.executable, "-m", "tests.faults.disk", str(image), str(folder / "log"), str(served)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=TOP, env={**os.environ, "PYTHONPATH": str(TOP)})
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"mounted\n"
        yield served / "disk"
    finally:
        subprocess.run(["umount", str(served)], timeout=30, check=False)
        try:
            server.wait(10)
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


@dataclass(frozen=True, slots=True)
class Cut:
    """Which records were applied, and how the last one was torn."""

    at: int
    kept: tuple[int, ...]
    torn_bytes: int

    def __str__(self) -> str:
        return f"cut after record {self.at}, {len(self.kept)} kept since the flush, torn to {self.torn_bytes} bytes"


class History:
    """What a disk was told, and what the worker had been promised at each moment."""

    def __init__(self, base: bytes, records: Sequence[Record], lines: list[str]) -> None:
        self._base = base
        self.records = records
        self._lines = lines

    def cuts(self, chance: random.Random, count: int) -> Iterator[tuple[Cut, bytes, list[str]]]:
        """So many moments in ascending order, each with an image of the disk and what had been said."""
        image = bytearray(self._base)
        flushed = 0
        for at in sorted(chance.sample(range(len(self.records)), min(count, len(self.records)))):
            last = max((n for n in range(flushed, at + 1) if self.records[n].data is None), default=-1)
            if last >= 0:
                for record in self.records[flushed:last]:
                    _apply(image, record)
                flushed = last
            cut = self._draw(chance, flushed, at)
            yield cut, self._cut(image, cut), self._said_until(self.records[at].at_ns)

    def _draw(self, chance: random.Random, flushed: int, at: int) -> Cut:
        """Nothing, everything, or any part of what was written since the flush."""
        pending = [n for n in range(flushed, at + 1) if self.records[n].data is not None]
        share = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        kept = tuple(n for n in pending if chance.random() < share)
        last = self.records[kept[-1]].data if kept else None
        torn = SECTOR * chance.randint(0, len(last) // SECTOR) if last is not None and chance.random() < 0.5 else -1
        return Cut(at, kept, torn)

    def _cut(self, image: bytearray, cut: Cut) -> bytes:
        disk = bytearray(image)
        for number in cut.kept:
            record = self.records[number]
            if number == cut.kept[-1] and cut.torn_bytes >= 0:
                assert record.data is not None
                record = record._replace(data=record.data[: cut.torn_bytes])
            _apply(disk, record)
        return bytes(disk)

    def _said_until(self, at_ns: int) -> list[str]:
        said: list[str] = []
        waiting: list[str] = []
        for line in self._lines:
            if not line.startswith("at "):
                waiting.append(line)
                continue
            if int(line.split()[1]) > at_ns:
                break
            said, waiting = said + waiting, []
        return said


def _apply(image: bytearray, record: Record) -> None:
    if record.data is not None:
        image[record.offset : record.offset + len(record.data)] = record.data


def record_work(stage: Stage, folder: Path, work: str, seed: int, *, options: str, more: dict[str, Any]) -> History:
    """Let a worker work on a fresh recorded disk."""
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal" if options == "nojournal" else "has_journal", str(image))
    base = image.read_bytes()
    mountpoint = folder / "mounted"
    with recording(image, folder) as disk, looped(disk, mountpoint, options=options):
        args = {"folder": str(mountpoint / "s"), "seed": seed, "clock": True, **more}
        actor = stage.work(work, args, said=folder / "said")
        stage.wait_stopped(actor, seconds=60)
        actor.go_on()
        code = stage.wait_ended(actor, seconds=60)
        assert code == 0, actor.errors()
    return History(base, list(read_log(folder / "log")), actor.lines())


@dataclass(frozen=True, slots=True)
class CutJudged:
    """How one cut went."""

    work: str
    seed: int
    cut: str
    promised: int
    problem: str
    took_s: float


def cut_and_judge(
    stage: Stage,
    work: str,
    seed: int,
    cuts: int,
    *,
    on_judged: Callable[[CutJudged], None],
    more: dict[str, Any] | None = None,
) -> None:
    """One recorded run, and many ends of it."""
    folder = (
        scratch() if not os.path.isdir("/dev/shm") else Path(f"/dev/shm/replicator-power-{os.getpid()}-{work}-{seed}")
    )
    folder.mkdir(exist_ok=True)
    chance = random.Random(f"{work}{seed}")
    try:
        history = record_work(stage, folder, work, seed, options=OPTIONS[seed % len(OPTIONS)], more=more or {})
        for cut, image, lines in history.cuts(chance, cuts):
            began = time.monotonic()
            promised = Promised.read(lines)
            (folder / "cut").write_bytes(image)
            problem = ""
            try:
                heal_file_system(folder / "cut")
                with looped(folder / "cut", folder / "mounted"):
                    _judge(work, folder / "mounted" / "s", promised)
            except (AssertionError, Exception) as error:  # noqa: BLE001  (whatever it is, it is a finding)
                problem = f"{type(error).__name__}: {error}"
            many = len(promised.blocks) + len(promised.snapshots)
            on_judged(CutJudged(work, seed, str(cut), many, problem, time.monotonic() - began))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judge(work: str, folder: Path, promised: Promised) -> None:
    if not folder.exists():
        assert not promised.blocks and not promised.snapshots, "the whole store is gone"
        return
    if work == "ingest":
        if promised.snapshots:
            judge_node(folder / "state", promised)
        return
    judge_store(folder, promised)
