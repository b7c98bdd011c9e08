"""Points in the life of two real nodes: a receive, a repair from a peer, and a start without the ledger.

`home` stays well. `cabin` is watched from an exact moment on, and dies or meets an error there. Then it is started
again, by nobody but a service manager, and must be ready in time; what home has a receipt for must restore at cabin
byte for byte; and what was under way must be finished without help.
"""

import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from replicator.api.client import NodeClient
from replicator.app.config import StateFolder
from replicator.core.errors import NodeDown
from tests.faults.points import ERRORS, KILL_CALLS, Judged, Point, scratch
from tests.faults.stage import Actor, Hung, Stage
from tests.faults.tracer import CHANGING, Tracer, calls_of, counted, was_injected
from tests.faults.work import drop_ledger, scribble, tree_digest
from tests.support.nodes import free_port, write_state
from tests.support.store import damage, open_store

PHASES = ("receive", "repair from a peer", "rebuild at a start")
READY_S_MAX = 5.0
FINISHED_S_MAX = 45.0
_PART_S_MAX = 20.0


def patience() -> float:
    """What a second of a machine of one's own is here and now: others may be at work beside."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Site:
    """A node under the stage: a process that can be watched, killed, and started again."""

    def __init__(self, stage: Stage, folder: Path, name: str) -> None:
        self.state = folder / name
        self._stage, self._folder, self.name = stage, folder, name
        write_state(self.state, name, listen=f"127.0.0.1:{free_port()}", http="127.0.0.1:0")
        self.client = NodeClient(StateFolder(self.state).socket)
        self.actor: Actor | None = None
        self._starts = 0

    def start(self, *, stop: bool = False) -> float:
        said = self._folder / f"{self.name}-{self._starts}.said"
        self._starts += 1
        self.actor = self._stage.program("up", "--json", "--state", str(self.state), said=said, stop=stop)
        return 0.0 if stop else self.wait_ready()

    def wait_ready(self, *, seconds: float = READY_S_MAX) -> float:
        assert self.actor is not None
        began, deadline = time.monotonic(), time.monotonic() + seconds * patience()
        while not any(line.startswith("{") for line in self.actor.lines()):
            assert not self._stage.has_ended(self.actor), f"it ended instead: {self.actor.errors()[-800:]}"
            assert time.monotonic() < deadline, f"not ready within {seconds:.0f} s: {self.actor.errors()[-800:]}"
            time.sleep(0.02)
        return time.monotonic() - began

    def is_dead(self) -> bool:
        return self.actor is None or self._stage.has_ended(self.actor)

    def kill(self) -> None:
        if self.actor is not None:
            if not self._stage.has_ended(self.actor):
                self.actor.kill()
            self._stage.wait_ended(self.actor)
            self.actor = None

    def stop(self) -> None:
        if self.actor is not None and not self.is_dead():
            os.kill(self.actor.pid, 15)
            self._stage.wait_ended(self.actor)
        self.actor = None

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/v1/snapshots")
        return found

    def job(self, kind: str, **args: Any) -> dict[str, Any]:
        return self.client.run_job(kind, args, job_id=os.urandom(8).hex(), on_progress=lambda _: None)

    def restore(self, name: str) -> str:
        with tempfile.TemporaryDirectory(dir=self._folder) as target:
            self.job("restore", snapshot=name, target=f"{target}/t")
            return tree_digest(Path(target) / "t")


def until(answer: Callable[[], object], what: str, *, seconds: float = FINISHED_S_MAX) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answer():
                return
        except NodeDown:
            pass
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


class Pair:
    """Two sites that have shared one snapshot, and play points one after the other: state is carried on."""

    def __init__(self, stage: Stage, folder: Path, *, seed: int) -> None:
        self._stage, self._folder = stage, folder
        self._chance = random.Random(seed)
        self.home, self.cabin = Site(stage, folder, "home"), Site(stage, folder, "cabin")
        self._source = folder / "source"
        self._digests: dict[str, str] = {}
        self._number = 0
        scribble(self._source, self._chance, files=30)
        for site in (self.home, self.cabin):
            site.start()
        self.cabin.client.post("/v1/pair/join", {"code": self.home.client.post("/v1/pair/invite", {})["code"]})
        self.home.client.post("/v1/protect", {"path": str(self._source), "to": ["cabin"]})
        self._snapshot()
        until(self._all_arrived, "the first sync")

    def close(self) -> None:
        for site in (self.home, self.cabin):
            site.kill()
            site.client.close()

    def _snapshot(self) -> str:
        scribble(self._source, self._chance, files=30)
        name = str(self.home.job("snapshot", names=[])["snapshots"][0]["snapshot"])
        self._digests[name] = tree_digest(self._source)
        return name

    def _all_arrived(self) -> bool:
        status: dict[str, Any] = self.home.client.get("/v1/status")
        return all(sync["pending_snapshots"] == 0 for sync in status["syncs"])

    def _receipts(self) -> list[str]:
        return [one["snapshot"] for one in self.home.snapshots() if one["held_by"]]

    def play(self, phase: str, inject: str | None, calls: list[str]) -> tuple[bool, dict[str, int], float]:
        """Run a phase under a watch. Returns whether the fault was met, what was called, and how long a start took."""
        self._number += 1
        trace = self._folder / f"trace-{self._number}"
        is_start = phase == "rebuild at a start"
        if is_start:
            self.cabin.stop()
            drop_ledger(self.cabin.state / "store")
            self.cabin.start(stop=True)
            assert self.cabin.actor is not None
            self._stage.wait_stopped(self.cabin.actor)
        elif phase == "repair from a peer":
            self._ruin_some()
        assert self.cabin.actor is not None
        watched = sorted({*calls, "openat"}) if inject and "sync:error" in inject else calls
        tracer = Tracer(self.cabin.actor.pid, trace, calls=watched, inject=[inject] if inject else [])
        if is_start:
            self.cabin.actor.go_on()
        self._let_it_work(phase)
        if self.cabin.is_dead():
            tracer.wait(seconds=10)
        else:
            tracer.detach()
            time.sleep(0.3)  # It may have met its end while we let go of it.
        died = self.cabin.is_dead()
        errors = self.cabin.actor.errors()
        reached = died if inject and "KILL" in inject else was_injected(trace)
        if died and inject and "KILL" not in inject and not is_start:
            raise AssertionError(f"an error ended the node: {errors[-1500:]}")
        is_flush = inject is not None and "sync:error=EIO" in inject
        if reached and not died and is_flush and not _was_of_a_folder_of_sqlite(trace):
            self._assert_alert()
        count = counted(trace)
        # After an error that is told the operator does what the alert says.
        return reached, count, self._judge(restart=died or inject is not None)

    def _assert_alert(self) -> None:
        """A flush that failed is an alert within a second; it may have been one of the three tables or a segment."""

        def kinds() -> set[str]:
            return {alert["kind"] for alert in self.cabin.client.get("/v1/status")["alerts"]}

        told = {"store_read_only", "catalog_read_only", "jobs_read_only"}
        until(lambda: kinds() & told, "an alert about the flush that failed", seconds=patience())

    def _let_it_work(self, phase: str) -> None:
        deadline = time.monotonic() + _PART_S_MAX
        if phase == "receive":
            self._snapshot()
            failed = self._failures()
            while not self.cabin.is_dead() and not self._all_arrived() and self._failures() == failed:
                assert time.monotonic() < deadline, "the receive hangs"
                time.sleep(0.05)
        elif phase == "repair from a peer":
            try:
                self.cabin.job("scrub")
            except Exception as error:
                if "Hung" in type(error).__name__:
                    raise
        else:
            while not self.cabin.is_dead() and not self._is_up():
                assert time.monotonic() < deadline, "the start hangs"
                time.sleep(0.02)

    def _is_up(self) -> bool:
        """Whether the node has said so. One that says why it is not is about to end, and that takes a moment."""
        said = self._said()
        return any(line.startswith("{") for line in said) and not any('"exit_code"' in line for line in said)

    def _said(self) -> list[str]:
        assert self.cabin.actor is not None
        return self.cabin.actor.lines()

    def _failures(self) -> str:
        return str([sync["last_error"] for sync in self.home.client.get("/v1/status")["syncs"]])

    def _ruin_some(self) -> None:
        """Flip bits in some blocks at rest, with the node down: nobody must see it happen."""
        self.cabin.stop()
        with closing(open_store(self.cabin.state / "store")) as store:
            packed = b"".join(store.ids())
            names = [packed[at : at + 32] for at in range(0, len(packed), 32)]
            for name in self._chance.sample(names, 12):
                damage(store, name)  # type: ignore[arg-type]
        self.cabin.start()
        until(lambda: self.cabin.client.get("/v1/status")["peers"][0]["linked"], "the link")

    def _judge(self, *, restart: bool) -> float:
        promised = self._receipts()
        took = 0.0
        if restart:
            self.cabin.kill()
            took = self.cabin.start()
        until(lambda: self.cabin.client.get("/v1/status")["peers"][0]["linked"], "the link after it")
        self.cabin.job("scrub")
        held = {one["snapshot"] for one in self.cabin.snapshots()}
        assert held >= set(promised), f"{set(promised) - held} was acknowledged to home and is not listed"
        for name in promised[-3:]:
            assert self.cabin.restore(name) == self._digests[name], f"{name} restores as something else"
        until(self._all_arrived, "the sync after it")
        newest = self.home.snapshots()[-1]["snapshot"]
        assert self.cabin.restore(newest) == self._digests[newest]
        until(lambda: self.cabin.client.get("/v1/status")["store"]["broken_blocks"] == 0, "mending what was ruined")
        return took


def _was_of_a_folder_of_sqlite(trace: Path) -> bool:
    """SQLite flushes a folder with `fdatasync` and looks at no answer; the product does it again, with `fsync`."""
    opened: dict[str, str] = {}
    for line in calls_of(trace):
        if call := re.search(r'openat\(AT_FDCWD, "(.*?)", (\S+?)[,)].* = (\d+)$', line):
            opened[call[3]] = call[1]
        elif "(INJECTED" in line and (call := re.search(r"fdatasync\((\d+)\)", line)):
            return os.path.isdir(opened.get(call[1], ""))
    return False


@contextmanager
def paired(stage: Stage, *, seed: int) -> Iterator[Pair]:
    folder = scratch()
    pair: Pair | None = None
    try:
        pair = Pair(stage, folder, seed=seed)
        yield pair
    finally:
        if pair is not None:
            pair.close()
        shutil.rmtree(folder, ignore_errors=True)


def play_mesh(stage: Stage, *, rounds: int, seed: int, kind: str, on_judged: Callable[[Judged], None]) -> None:
    """So many points on pairs of nodes; a new pair after a problem, and once in a while."""
    chance = random.Random(seed)
    calls = KILL_CALLS if kind == "kill" else tuple(ERRORS)
    done = 0
    while done < rounds:
        pair_seed = chance.getrandbits(30)
        with paired(stage, seed=pair_seed) as pair:
            counts = {phase: pair.play(phase, None, sorted({*CHANGING, *ERRORS}))[1] for phase in PHASES}
            for number in range(min(rounds - done, 24)):
                phase = PHASES[number % len(PHASES)]
                call = chance.choice([call for call in calls if counts[phase].get(call)])
                fault = "signal=KILL" if kind == "kill" else chance.choice(ERRORS[call])
                point = Point(phase, call, chance.randint(1, counts[phase][call]), fault, pair_seed)
                began = time.monotonic()
                problem, reached, opened = "", False, 0.0
                try:
                    reached, _, opened = pair.play(phase, point.inject, [call])
                except (AssertionError, Hung, OSError, Exception) as error:  # noqa: BLE001  (whatever it is, it is a finding)
                    line = error.__traceback__.tb_next if error.__traceback__ else None
                    while line is not None and line.tb_next is not None:
                        line = line.tb_next
                    problem = f"{type(error).__name__}: {error} (line {line.tb_lineno if line else 0})"
                done += 1
                on_judged(Judged(point, reached, problem, opened, time.monotonic() - began, ""))
                if problem:
                    break


def play_each_flush_of_a_start(stage: Stage, *, seed: int) -> Iterator[Judged]:
    """Every flush of a start that rebuilds the ledger fails once: so few that none is left to chance."""
    phase = "rebuild at a start"
    with paired(stage, seed=seed) as pair:
        counts = pair.play(phase, None, ["fdatasync", "fsync"])[1]
        for call, count in counts.items():
            for number in range(1, count + 1):
                point = Point(phase, call, number, "error=EIO", seed)
                began, problem, reached, opened = time.monotonic(), "", False, 0.0
                try:
                    reached, _, opened = pair.play(phase, point.inject, [call])
                except (AssertionError, Hung) as error:
                    problem = str(error)
                yield Judged(point, reached, problem, opened, time.monotonic() - began, "")
                if problem:
                    return
