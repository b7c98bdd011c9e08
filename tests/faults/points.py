"""One point: a phase, a system call, which one of them, and what happens to it. Then the judge.

(collection, unlink, 3, "signal=KILL")    killed as it enters its third unlink of a collection
(commit, fdatasync, 7, "error=EIO")       the seventh flush fails
"""

import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicator.core.errors import ReplicatorError
from tests.faults.judge import Promised, judge_node, judge_store
from tests.faults.stage import Actor, Hung, Stage
from tests.faults.tracer import CHANGING, Tracer, calls_of, counted, was_injected

PHASES = ("ingest", "commit", "collection", "repair", "rebuild")
"""Those of one process. `receive`, and repair from a peer, need two: see `mesh`."""
KILL_CALLS = (
    "rename", "renameat2", "fsync", "fdatasync", "pwrite64", "pwritev", "pwritev2", "write", "unlink", "truncate",
    "ftruncate", "fallocate",
)  # fmt: skip
ERRORS: dict[str, tuple[str, ...]] = {
    "fsync": ("error=EIO", "error=ENOSPC", "error=EINTR"),
    "fdatasync": ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR"),
    "pwrite64": ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR", "retval=0"),
    "pwritev2": ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR", "retval=0"),
    "write": ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR"),
    "openat": ("error=EMFILE", "error=ENFILE", "error=EIO", "error=ENOSPC", "error=EINTR"),
    "preadv": ("error=EIO", "error=EINTR", "retval=0"),
    "pread64": ("error=EIO", "error=EINTR", "retval=0", "retval=1"),
    "read": ("error=EIO", "error=EINTR"),
    "rename": ("error=EIO", "error=ENOSPC"),
    "unlink": ("error=EIO", "error=EROFS"),
    "ftruncate": ("error=EIO", "error=ENOSPC", "error=EINTR"),
    "fallocate": ("error=ENOSPC", "error=EIO"),
}
"""`retval=0` of a write is a short write at its shortest; of a read it is a file that seems to end here; `retval=1`
is a read that gives one byte, and a wrong one."""
RUN_S_MAX = 30.0
_LASTING = ("ENOSPC", "EDQUOT", "EMFILE", "EIO")
"""Errors that come once, or, every second time, from there on."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is done to whom."""

    phase: str
    call: str
    number: int
    fault: str
    seed: int
    lasting: bool = False

    @property
    def inject(self) -> str:
        return f"{self.call}:{self.fault}:when={self.number}{'+' if self.lasting else ''}"

    def __str__(self) -> str:
        return f"{self.phase} {self.inject} seed={self.seed}"


@dataclass(frozen=True, slots=True)
class Judged:
    """How a point went."""

    point: Point
    reached: bool
    problem: str
    opened_s: float
    took_s: float
    said: str


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="replicator-faults-"))


def census(stage: Stage, phase: str, seed: int, *, more: dict[str, Any] | None = None) -> dict[str, int]:
    """How often the phase makes each call, so that points can be drawn from all of it."""
    folder = scratch()
    try:
        actor = stage.work(phase, {"folder": str(folder / "s"), "seed": seed, **(more or {})}, said=folder / "said")
        stage.wait_stopped(actor)
        tracer = Tracer(actor.pid, folder / "trace", calls=sorted({*CHANGING, *ERRORS}))
        actor.go_on()
        code = stage.wait_ended(actor)
        tracer.wait(seconds=10)
        assert code == 0 and "done" in actor.lines(), (code, actor.errors())
        return counted(folder / "trace")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def draw(counts: dict[str, dict[str, int]], chance: random.Random, *, kind: str) -> Iterator[Point]:
    """Points without end: phases in turn, the call and its number at random among those that the phase makes."""
    calls = KILL_CALLS if kind == "kill" else tuple(ERRORS)
    while True:
        for phase, count in counts.items():
            call = chance.choice([call for call in calls if count.get(call)])
            number = chance.randint(1, count[call])
            fault = "signal=KILL" if kind == "kill" else chance.choice(ERRORS[call])
            if phase == "ingest" and call in ("pread64", "read") and "retval" in fault:
                fault = "error=EIO"  # A source that gives other bytes than it holds is beyond anybody's judgement.
            lasting = kind != "kill" and any(name in fault for name in _LASTING) and chance.random() < 0.5
            yield Point(phase, call, number, fault, chance.randint(1, 3), lasting)


def play(stage: Stage, point: Point) -> Judged:
    """Run a point and judge what it leaves. A problem is a sentence; none is the empty string."""
    folder = scratch()
    began = time.monotonic()
    opened_s, problem, reached = 0.0, "", False
    actor: Actor | None = None
    try:
        actor = stage.work(point.phase, {"folder": str(folder / "s"), "seed": point.seed}, said=folder / "said")
        stage.wait_stopped(actor)
        tracer = Tracer(actor.pid, folder / "trace", calls=[point.call, "writev"], inject=[point.inject])
        actor.go_on()
        try:
            code = stage.wait_ended(actor, seconds=RUN_S_MAX)
        finally:
            tracer.wait(seconds=10)
        reached = code == -9 if "KILL" in point.fault else was_injected(folder / "trace")
        opened_s = judge(point, folder / "s", actor, code, words_after_fault(folder / "trace"))
    except Hung as error:
        problem = f"hung: {error}"
    except (AssertionError, ReplicatorError, OSError, sqlite3.Error) as error:
        problem = f"{type(error).__name__}: {error}"
    said = (
        "" if actor is None else " | ".join(line for line in actor.lines() if not line.startswith(("holds", "drops")))
    )
    if not problem:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        problem += f" (left in {folder})"
    return Judged(point, reached, problem, opened_s, time.monotonic() - began, said[-300:])


def words_after_fault(trace: Path) -> list[str]:
    """What the worker said after the first injected error, in the order of the trace."""
    lines = calls_of(trace)
    first = next((number for number, line in enumerate(lines) if "(INJECTED" in line), len(lines))
    return [line.split('iov_base="', 1)[1] for line in lines[first:] if 'iov_base="' in line]


def judge(point: Point, folder: Path, actor: Actor, code: int, after: list[str]) -> float:
    promised = Promised.read(actor.lines())
    if "KILL" not in point.fault:
        # An error may be survived, or refused by name; it must not end in a traceback.
        assert code == 0, f"it ended with {code}: {actor.errors()[-900:]}"
        is_flush = point.call in ("fsync", "fdatasync") and "EINTR" not in point.fault
        # A flush at the very end, when the store is closed, has nobody to tell, and nothing to acknowledge.
        was_working = any(word.startswith("closing") for word in after)
        if was_working and is_flush and point.phase in ("commit", "repair") and "EIO" in point.fault:
            assert not any(word.startswith("holds") for word in after), "acknowledged after a failed flush"
            assert promised.errors, "a flush failed and nobody was told"
            assert promised.read_only and promised.read_only[0], "a flush failed and the store is not closed for writes"
    if point.phase == "ingest":
        return judge_node(folder / "state", promised)
    return judge_store(folder, promised)
