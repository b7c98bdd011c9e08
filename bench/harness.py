"""What every measurement has in common: where it works, what it works on, and how its figures are put together.

A *scenario* is a function that yields rows. A row says who did which work (`subject`, `work`), and
has figures. Several subjects that do the same work do it in the same run, one after the other,
so that whatever the machine is busy with meets all of them; what counts are the ratios.
"""

import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.image import make_image
from bench.tree import make_tree

OURS: Final = "replicator"
FLOOR: Final = "floor"


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command line chose."""

    work: Path
    gib: float
    files: int
    runs: int
    seed: int
    with_floor: bool
    peers: tuple[str, ...]
    data: tuple[str, ...]
    most_blocks: float = 1e6

    @property
    def image(self) -> Path:
        return self.work / f"image-{self.gib:g}-{self.seed}.img"

    @property
    def tree(self) -> Path:
        return self.work / f"tree-{self.files}-{self.seed}"

    def make(self, data: str) -> tuple[Path, int]:
        """The data called A or B: where it lies, and how many bytes it has."""
        if data == "A":
            return self.image, make_image(self.image, gib=self.gib, seed=self.seed)
        return self.tree, make_tree(self.tree, files=self.files, seed=self.seed)


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one subject at one piece of work. The ends of the names say the units: `_s`, `_bytes`, `_us`."""

    work: str
    subject: str
    figures: dict[str, float]


Scenario = Callable[[Setting], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class Result:
    """The runs of one subject at one piece of work, and the middle of each figure."""

    work: str
    subject: str
    runs: list[dict[str, float]]

    @property
    def median(self) -> dict[str, float]:
        return {name: statistics.median(run[name] for run in self.runs) for name in self.runs[0]}


def collect(rows: Sequence[Row]) -> list[Result]:
    """Rows of equal subject and work belong together, in the order in which they first came."""
    found: dict[tuple[str, str], Result] = {}
    for row in rows:
        found.setdefault((row.work, row.subject), Result(row.work, row.subject, [])).runs.append(row.figures)
    return list(found.values())


def ratios(results: Sequence[Result], *, of: str = "wall_s", to: str = OURS) -> dict[tuple[str, str], float]:
    """How many times as much as `to` each other subject needed for the same work."""
    base = {result.work: result.median[of] for result in results if result.subject == to and of in result.median}
    return {
        (result.work, result.subject): result.median[of] / base[result.work]
        for result in results
        if result.subject != to and base.get(result.work) and of in result.median
    }


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A name for a file or a folder, and nothing there before and afterwards."""
    path = work / "scratch"
    _remove(path)
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
