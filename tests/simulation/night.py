"""What a night has found so far, in a file: a run that was stopped goes on where it was.

The first line says of which source the worlds were made, each other line is one world. A seed
is a world only together with the source that makes it, so a file is never continued by another.
A line that was cut short when the power went is a world that has not been run.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.markers import SOMETIMES, Markers
from tests.simulation.world import Outcome

_TOP = Path(__file__).resolve().parents[2]


class OtherSource(Exception):
    """The file is of worlds that this source does not make."""


def source_digest(top: Path = _TOP) -> str:
    """All that decides how a world goes, as one hash."""
    found = hashlib.blake2b(digest_size=12)
    for folder in ("protocol", "replicator", "tests/simulation"):
        for path in sorted((top / folder).rglob("*.py")):
            found.update(f"{path.relative_to(top)}\n".encode() + path.read_bytes())
    return found.hexdigest()


@dataclass(slots=True)
class Tally:
    """The sum over worlds."""

    worlds: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)
    markers: Markers = field(default_factory=Markers)

    def add(self, outcome: Outcome) -> None:
        self.worlds += 1
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.markers.reached.update(outcome.markers.reached)
        if outcome.problem:
            self.failed[outcome.seed] = outcome.problem

    def missed(self) -> list[str]:
        return [name for name in SOMETIMES if not self.markers.reached[name]]

    def lines(self, *, with_counts: bool) -> Iterator[str]:
        """The report, for people."""
        for seed, problem in sorted(self.failed.items()):
            yield f"FAILED scripts/sim --seed {seed}"
            yield f"    {problem.splitlines()[0]}"
        each_s = self.cpu_s / max(1, self.worlds)
        yield (
            f"{self.worlds} worlds, {self.virtual_s / 3600:.1f} h of theirs in {self.cpu_s:.0f} s of one core "
            f"({each_s:.2f} s each), {len(self.failed)} failed"
        )
        missed = self.missed()
        yield f"{len(SOMETIMES) - len(missed)} of {len(SOMETIMES)} things that must happen sometimes did"
        if with_counts:
            for name in SOMETIMES:
                yield f"  {self.markers.reached[name]:>9} {name}"
        for name in missed:
            yield f"  never: {name} ({SOMETIMES[name]})"


class Night:
    """The file."""

    def __init__(self, path: Path, *, source: str) -> None:
        """Raises `OtherSource`."""
        self._path = path
        self.tally = Tally()
        self._done: set[int] = set()
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if not lines:
            lines = [json.dumps({"source": source}) + "\n"]
        if json.loads(lines[0]).get("source") != source:
            raise OtherSource(f"{path} was begun with another source. Name another file, or delete it.")
        whole = [line for line in lines if line.endswith("\n")]
        path.write_text("".join(whole))
        for line in whole[1:]:
            self._take(_read(json.loads(line)))

    def _take(self, outcome: Outcome) -> None:
        self._done.add(outcome.seed)
        self.tally.add(outcome)

    def remaining(self, seeds: Iterable[int]) -> list[int]:
        return [seed for seed in seeds if seed not in self._done]

    def add(self, outcome: Outcome) -> None:
        self._take(outcome)
        with self._path.open("a") as file:
            file.write(json.dumps(_written(outcome)) + "\n")


def _written(outcome: Outcome) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "problem": outcome.problem,
        "digest": outcome.digest,
        "virtual_s": round(outcome.virtual_s, 3),
        "cpu_s": round(outcome.cpu_s, 3),
        "lines": outcome.lines,
        "markers": dict(outcome.markers.reached),
    }


def _read(row: dict[str, Any]) -> Outcome:
    markers = Markers()
    markers.reached.update(row.pop("markers"))
    return Outcome(**row, markers=markers)
