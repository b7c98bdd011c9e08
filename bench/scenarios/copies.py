"""Bringing data to another site: for the first time, when one part in a hundred has changed, when nothing has."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Final

from bench.floors import measure_floor
from bench.harness import FLOOR, OURS, Row, Setting, scratch
from bench.image import changed_blocks
from bench.meter import gauged
from bench.nodes import Node
from bench.peers import Subject, open_peers
from bench.tree import changed_files
from bench.warm import warm

_SHARE: Final = 0.01
_AFTER_CHANGE_S: Final = 2.5
"""What was touched within two seconds is looked at again by whoever is careful (`ingest/still.py`; git and restic have
such a rule too): it would spoil "unchanged" for a reason that is not what it measures."""


class Ours(Subject):
    """Two nodes: a snapshot into the store here, and on the other site, with its signed receipt."""

    name = OURS
    needs = ()

    def start(self) -> None:
        self._home, self._cabin = Node("home", self.work / "home"), Node("cabin", self.work / "cabin")
        self._home.pair_with(self._cabin)
        self._home.start_sync(self._cabin)
        self._home.protect(self.source)

    def _stop(self) -> None:
        self._home.__exit__(None, None, None)
        self._cabin.__exit__(None, None, None)
        super()._stop()

    @property
    def servers(self) -> list[int]:
        return [self._home.pid, self._cabin.pid]

    @property
    def segments(self) -> Path:
        """Where the blocks lie that were taken here."""
        return self._home.segments

    def copy(self) -> None:
        self._home.snapshot()
        self._home.wait_sync()


def copies(setting: Setting) -> Iterator[Row]:
    """A and B to another site: first copy, 1 % changed, unchanged; beside every peer that this machine has."""
    for data in setting.data:
        source, size = setting.make(data)
        for run in range(setting.runs):
            with ExitStack() as stack:
                ours = Ours(setting.work / OURS, source)
                subjects = [ours, *open_peers(setting.peers, setting.work, source)]
                for subject in subjects:
                    stack.enter_context(subject)
                yield from _one_round(f"{data}, first copy", subjects, source, size)
                with _changed(source, seed=setting.seed + run + 1):
                    time.sleep(_AFTER_CHANGE_S)
                    yield from _one_round(f"{data}, 1 % changed", subjects, source, size)
                    yield from _one_round(f"{data}, unchanged", subjects, source, size)
                if setting.with_floor:
                    yield _floor_of_first_copy(setting, f"{data}, first copy", source, ours.segments)


def _one_round(work: str, subjects: Sequence[Subject], source: Path, size: int) -> Iterator[Row]:
    for subject in subjects:
        figures: dict[str, float] = {}
        warm(source)
        with gauged(figures, servers=subject.servers):
            subject.copy()
        figures["mb_per_s"] = size / figures["wall_s"] / 1e6
        yield Row(work, subject.name, figures)


def _changed(source: Path, *, seed: int) -> AbstractContextManager[object]:
    if source.is_dir():
        return changed_files(source, share=_SHARE, seed=seed)
    return changed_blocks(source, share=_SHARE, seed=seed) if source.stat().st_size else nullcontext()


def _floor_of_first_copy(setting: Setting, work: str, source: Path, segments: Path) -> Row:
    """The floors of both halves, one after the other: each uses both cores, so overlapping them would gain little."""
    warm(source)
    with scratch(setting.work) as out:
        first = measure_floor("ingest_tree" if source.is_dir() else "ingest", source, out)
    with scratch(setting.work) as out:
        second = measure_floor("sync", segments, out)
    both = {name: first[name] + second[name] for name in ("wall_s", "cpu_s")}
    return Row(work, FLOOR, both)


def store_to_store(setting: Setting) -> Iterator[Row]:
    """A snapshot that is already here to a site that has nothing, until its signed receipt is back."""
    for data in setting.data:
        source, size = setting.make(data)
        with Node("home", setting.work / "home") as home:
            home.protect(source)
            home.snapshot()
            for _ in range(setting.runs):
                yield from _sync_once(home, setting, f"{data}, store to store", size)


def _sync_once(home: Node, setting: Setting, work: str, size: int) -> Iterator[Row]:
    figures: dict[str, float] = {}
    with Node("cabin", setting.work / "cabin") as cabin:
        home.pair_with(cabin)
        with gauged(figures, servers=[home.pid, cabin.pid]):
            home.start_sync(cabin)
            sent = home.wait_sync()[0]
        home.client.delete("/v1/peers/cabin")
    figures |= {"mb_per_s": size / figures["wall_s"] / 1e6, "blocks": sent["blocks"], "twice": sent["blocks_twice"]}
    yield Row(work, OURS, figures)
    if setting.with_floor:
        with scratch(setting.work) as out:
            found = measure_floor("sync", home.segments, out)
            yield Row(work, FLOOR, {**found, "mb_per_s": size / found["wall_s"] / 1e6})
