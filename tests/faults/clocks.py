"""Real nodes whose wall clocks are wrong: by ten years or an hour, in both directions, live, and over a kill.

A library that is loaded before the C library adds to the time of day whatever a file says (`clock_shim.c`); the file is
changed while the node runs. Two sites have such clocks, each its own. Every round one of them leaps, in the middle of
ordinary work, and goes on from there:

- a snapshot that is taken meanwhile is at the other site with its receipt, as ever: links do not go by the clock;
- nothing is deleted at the site whose clock has leapt by more than an hour, whatever its grace and its keep rule say
  by that clock; it says so, as an alert; and what is held or was taken a moment ago is there;
- every snapshot restores, byte for byte, from the site with the wrong clock;
- a schedule makes one snapshot for each leap and not one for each period that never was;
- half the time the node is killed there, and comes up by the wrong clock;
- when the clock is right again, deletion goes on by itself.
"""

import random
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from replicator.api.client import RemoteError
from tests.faults.points import scratch
from tests.faults.work import tree_digest
from tests.support.nodes import Node, become_peers, eventually, run_cli, started

SOURCE = Path(__file__).with_name("clock_shim.c")
HOUR, DAY, YEAR = 3600.0, 86_400.0, 365.25 * 86_400.0
LEAPS = (10 * YEAR, -10 * YEAR, DAY, -DAY, 2 * HOUR, -2 * HOUR, HOUR, -HOUR, 1.0, -1.0)
"""The last four (a change to or from summer time, a leap second) are no reason to stop anything."""
_WRONG_S = 1.5 * HOUR
"""Beyond this, nothing may be deleted."""
_GRACE = "1s"


class NoCompiler(Exception):
    """This machine cannot make the library."""


@dataclass(slots=True)
class Clocks:
    """How it went."""

    rounds: int = 0
    kills: int = 0
    refused: int = 0
    restored: int = 0
    problem: str = ""


def build(folder: Path) -> Path:
    """The library. Raises `NoCompiler`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("needs a C compiler")
    library = folder / "clock_shim.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
    done = subprocess.run(words, timeout=60, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCompiler(f"has a C compiler that does not work: {done.stderr[-200:]}")
    return library


class Wrong:
    """A node under a clock of its own."""

    def __init__(self, node: Node, library: Path, folder: Path) -> None:
        self.node = node
        self._skew = folder / f"{node.name}.skew"
        self.set(0.0)
        self._prefix = ("env", f"LD_PRELOAD={library}", f"CLOCK_SKEW_FILE={self._skew}")

    def set(self, seconds: float) -> None:
        with self._skew.open("r+b" if self._skew.exists() else "wb") as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))

    def start(self) -> None:
        self.node.start(prefix=self._prefix)


def leap_clocks(rounds: int, *, seed: int) -> Clocks:
    """Raises `NoCompiler`."""
    done, folder = Clocks(), scratch()
    nodes: list[Node] = []
    try:
        library = build(folder)
        nodes = [Node(folder / name, name, gc_grace=_GRACE) for name in ("home", "cabin")]
        with started():
            sites = [Wrong(node, library, folder) for node in nodes]
            for site in sites:
                site.start()
            _play(done, sites, folder, rounds, random.Random(f"clocks {seed}"))
    except AssertionError as error:
        done.problem = f"round {done.rounds}: {error}"
    finally:
        for node in nodes:
            if node.process is not None:
                node.kill()
            node.client.close()
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _play(done: Clocks, sites: list[Wrong], folder: Path, rounds: int, chance: random.Random) -> None:
    home, cabin = (site.node for site in sites)
    become_peers(home, cabin)
    data = folder / "data"
    data.mkdir()
    (data / "body").write_bytes(chance.randbytes(200_000))
    home.protect(data, every_s=HOUR, to=["cabin"])
    wanted: dict[str, str] = {}
    held = _take(home, cabin, data, wanted, chance)
    for node in (home, cabin):
        node.client.post(f"/v1/snapshots/{held}/hold", {"reason": "by law"})
    leaps_home = 0  # There and back.
    for number in range(rounds):
        site, leap = chance.choice(sites), LEAPS[number % len(LEAPS)]
        _one_round(done, site, leap, home, cabin, data, wanted, held, chance)
        done.rounds += 1
        leaps_home += 2 * (site.node is home)
        jobs = [job for job in home.client.get("/v1/jobs") if job["job_id"].startswith("scheduled-")]
        assert len(jobs) <= 1 + leaps_home, f"{len(jobs)} snapshots by the schedule of an hour, in {leaps_home} leaps"


def _take(home: Node, cabin: Node, data: Path, wanted: dict[str, str], chance: random.Random) -> str:
    """A snapshot, and until the other site has signed for it."""
    (data / f"file-{chance.randrange(20)}").write_bytes(chance.randbytes(chance.randrange(1, 60_000)))
    taken: str = home.job("snapshot", names=["data"])["snapshots"][0]["snapshot"]
    wanted[taken] = tree_digest(data)
    eventually(lambda: "cabin" in home.client.get(f"/v1/snapshots/{taken}")["held_by"], seconds=60)
    return taken


def _one_round(
    done: Clocks, site: Wrong, leap: float, home: Node, cabin: Node, data: Path, wanted: dict[str, str], held: str,
    chance: random.Random,
) -> None:  # fmt: skip
    node = site.node
    gone = _take(home, cabin, data, wanted, chance)
    node.client.delete(f"/v1/snapshots/{gone}")
    _collect(node)  # It is condemned here; by a leap ahead its grace would be over.
    site.set(leap)
    if chance.random() < 0.5:
        done.kills += 1
        node.kill()
        site.start()
    newest = _take(home, cabin, data, wanted, chance)
    if node is home:
        off = home.client.get(f"/v1/snapshots/{newest}")["taken_ns"] / 1e9 - time.time()
        assert abs(off - leap) < 60, f"{node.name} reads {off:.0f} s off and not {leap:.0f}: the shim is not in it"
    before = _blocks(node)
    refused = _collect(node)
    done.refused += bool(refused)
    if abs(leap) > _WRONG_S:
        assert refused, f"{node.name} collects by a clock that leapt by {leap:.0f} s"
        assert _blocks(node) >= before, f"{node.name} has let go of blocks by a clock that leapt by {leap:.0f} s"
        alerts = [alert["kind"] for alert in node.status()["alerts"]]
        assert "clock_untrusted" in alerts, f"{node.name} says nothing of a clock that leapt by {leap:.0f} s: {alerts}"
    for snapshot in (held, newest):
        _restore(node, snapshot, wanted[snapshot], data.parent / "back")
        done.restored += 1
    site.set(0.0)
    eventually(lambda: not _collect(node), seconds=30)
    here = {page["snapshot"] for page in node.client.get("/v1/snapshots")}
    assert {held, newest} <= here and gone not in here, f"{node.name} has {len(here)} snapshots and not the right ones"


def _blocks(node: Node) -> int:
    return int(node.status()["store"]["blocks"])


def _collect(node: Node) -> str:
    """Why nothing was collected; empty if it was."""
    try:
        node.job("gc")
    except RemoteError as error:
        assert "Deletion is switched off" in error.message, error.message
        return error.message
    return ""


def _restore(node: Node, snapshot: str, digest: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    said = run_cli("restore", snapshot, str(target), state=node.root)
    assert said.code == 0, f"{node.name} does not restore {snapshot[:8]}: {said.text[-300:]}"
    found = tree_digest(target)
    assert found == digest, f"{node.name} restores something else for {snapshot[:8]}"
    shutil.rmtree(target)
