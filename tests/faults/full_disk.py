"""A disk that another program fills to the last byte, under a node that receives from another one.

A cycle: a new snapshot comes in, the disk is filled, every snapshot restores through the command line, a sync is
refused in words, the oldest snapshot is deleted and collected, at least 90 % of what that can free is free, and then
the sync that was refused goes through by itself. Every second time, from the first on, the node is killed and started
again while no byte is free.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.points import scratch
from tests.faults.work import tree_digest
from tests.support.nodes import Node, become_peers, eventually, started

DISK_MIB = 256
BALLAST_BYTES = 8 << 20
"""A thirty-second part of that."""
SNAPSHOT_BYTES = 24 << 20
FREED_MIN = 0.9
RESUME_S_MAX = 60.0


@dataclass(slots=True)
class Cycles:
    """How it went."""

    cycles: int = 0
    restores_at_zero: int = 0
    freed: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    problem: str = ""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], check=True, timeout=20)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=20)


class Filler:
    """The other program."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "filler"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"\1" * size)
                except OSError:
                    continue
        room = os.statvfs(self._path.parent)
        assert room.f_bavail == 0, f"{room.f_bavail} blocks are still free"

    def go_away(self) -> None:
        self._path.unlink(missing_ok=True)


def cycle_full_disk(cycles: int, *, seed: int) -> Cycles:
    folder, found = scratch(), Cycles()
    with small_disk(folder / "home"), small_disk(folder / "cabin"):
        home = Node(folder / "home" / "n", "home", ballast="16MiB", reserve="8MiB")
        cabin = Node(folder / "cabin" / "n", "cabin", ballast="16MiB", reserve="8MiB")
        try:
            with started(home, cabin):
                _Play(folder, home, cabin, random.Random(seed), found).run(cycles)
        except AssertionError as error:
            found.problem = f"cycle {found.cycles}: {error} {home.log()[-600:]} {cabin.log()[-6000:]}"
    shutil.rmtree(folder, ignore_errors=True)
    return found


class _Play:
    def __init__(self, folder: Path, home: Node, cabin: Node, chance: random.Random, found: Cycles) -> None:
        self._home, self._cabin, self._chance, self._found = home, cabin, chance, found
        self._source = folder / "source"
        self._filler = Filler(folder / "cabin")
        self._digests: dict[str, str] = {}

    def run(self, cycles: int) -> None:
        become_peers(self._home, self._cabin)
        self._scribble()
        self._home.protect(self._source, to=["cabin"])
        self._snapshot()
        self._arrives(RESUME_S_MAX)
        self._ballast_is_there()
        for number in range(cycles):
            self._cycle(restart=number % 2 == 0)
            self._found.cycles += 1

    def _cycle(self, *, restart: bool) -> None:
        self._scribble()
        self._snapshot()
        self._arrives(RESUME_S_MAX)
        self._filler.fill()
        if restart:
            self._cabin.kill()
            began = time.monotonic()
            self._cabin.start()
            assert time.monotonic() - began < 10, "a start on a full disk took too long"
            self._filler.fill()
        self._restore_all()
        self._scribble()
        newest = self._snapshot()
        eventually(lambda: "reserve" in self._sync()["last_error"] or "full" in self._sync()["last_error"], seconds=60)
        self._make_room()
        self._filler.go_away()
        began = time.monotonic()
        self._arrives(RESUME_S_MAX)
        self._found.resumed_s.append(round(time.monotonic() - began, 1))
        assert newest in self._held()
        self._ballast_is_there()
        while len(self._held()) > 2:
            self._delete_oldest()
            assert self._cabin.cli("gc", "--yes", "--grace", "0").code == 0

    def _make_room(self) -> None:
        """Delete and collect with no byte free; the other program takes whatever it can get until then."""
        before = self._cabin.status()["store"]["disk_bytes"]
        self._delete_oldest()
        said = self._cabin.cli("gc", "--yes", "--grace", "0", "--json")
        assert said.code == 0, said.text
        freed = before - self._cabin.status()["store"]["disk_bytes"]
        share = freed / SNAPSHOT_BYTES
        self._found.freed.append(round(share, 3))
        assert share >= FREED_MIN, f"only {share:.0%} of what could be freed was freed: {said.text}"
        assert "ballast.given_up" in self._cabin.log()
        # It is laid again as soon as there is room, which on a slow machine is before we look.
        page = self._cabin.status()
        kinds = {alert["kind"] for alert in page["alerts"]}
        assert page["store"]["ballast_bytes"] == BALLAST_BYTES or "ballast_gone" in kinds, kinds

    def _delete_oldest(self) -> None:
        oldest = self._cabin.client.get("/v1/snapshots")[0]["snapshot"]
        said = self._cabin.cli("snapshot", "delete", oldest)
        assert said.code == 0, said.text

    def _restore_all(self) -> None:
        assert os.statvfs(self._cabin.root).f_bavail == 0
        for name in self._held():
            with tempfile.TemporaryDirectory(dir=self._source.parent) as target:
                said = self._cabin.cli("restore", name, f"{target}/t")
                assert said.code == 0, said.text
                assert tree_digest(Path(target) / "t") == self._digests[name], f"{name} restores as something else"
            self._found.restores_at_zero += 1

    def _scribble(self) -> None:
        shutil.rmtree(self._source, ignore_errors=True)
        self._source.mkdir()
        for number in range(24):
            (self._source / f"f{number}").write_bytes(self._chance.randbytes(SNAPSHOT_BYTES // 24))

    def _snapshot(self) -> str:
        said = self._home.cli("snapshot", "create", "--json")
        assert said.code == 0, said.text
        name = str(said.json["snapshots"][0]["snapshot"])
        self._digests[name] = tree_digest(self._source)
        for old in self._home.client.get("/v1/snapshots")[:-2]:
            assert self._home.cli("snapshot", "delete", old["snapshot"]).code == 0
        assert self._home.cli("gc", "--yes", "--grace", "0").code == 0
        return name

    def _held(self) -> list[str]:
        return [one["snapshot"] for one in self._cabin.client.get("/v1/snapshots")]

    def _sync(self) -> dict[str, Any]:
        sync: dict[str, Any] = self._home.status()["syncs"][0]
        return sync

    def _arrives(self, seconds: float) -> None:
        eventually(lambda: self._sync()["pending_snapshots"] == 0, seconds=seconds)

    def _ballast_is_there(self) -> None:
        eventually(lambda: self._cabin.status()["store"]["ballast_bytes"] == BALLAST_BYTES, seconds=45)
