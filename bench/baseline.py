"""What was reached before, as ratios to the floor of the same run: times of two machines do not compare, ratios do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.harness import FLOOR, OURS, Result

_FIGURES: Final = ("wall_s", "cpu_s")
_WORSE: Final = 1.25
"""Two runs of one program on a shared machine differ by less than this in processor time, most days."""


@dataclass(frozen=True, slots=True)
class Change:
    """One ratio, then and now."""

    work: str
    figure: str
    before: float
    now: float

    @property
    def is_worse(self) -> bool:
        # Wall time on a busy machine says too little to fail anybody.
        return self.figure == "cpu_s" and self.now > self.before * _WORSE

    def __str__(self) -> str:
        verdict = "WORSE" if self.is_worse else "fine"
        return f"{self.work}: {self.figure} {self.before:.2f} -> {self.now:.2f} x floor, {verdict}"


def floor_ratios(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """For each piece of work that has a floor: ours divided by it."""
    ours = {result.work: result.median for result in results if result.subject == OURS}
    floors = {result.work: result.median for result in results if result.subject == FLOOR}
    return {
        work: {name: round(ours[work][name] / floor[name], 3) for name in _FIGURES if name in ours[work]}
        for work, floor in floors.items()
        if work in ours
    }


def save_baseline(path: Path, report: dict[str, Any]) -> None:
    """Keep of a report what others are compared with, and what it was measured on."""
    kept = {name: report[name] for name in ("at", "commit", "machine", "setting", "floor_ratios")}
    path.write_text(json.dumps(kept, indent=1) + "\n")


def read_baseline(path: Path) -> dict[str, dict[str, float]]:
    ratios: dict[str, dict[str, float]] = json.loads(path.read_text())["floor_ratios"]
    return ratios


def compare(results: Sequence[Result], baseline: dict[str, dict[str, float]]) -> list[Change]:
    now = floor_ratios(results)
    return [
        Change(work, figure, before, now[work][figure])
        for work, figures in baseline.items()
        for figure, before in figures.items()
        if figure in now.get(work, {})
    ]


def worse(changes: Sequence[Change]) -> bool:
    return any(change.is_worse for change in changes)
