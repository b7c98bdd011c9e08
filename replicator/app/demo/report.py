"""What was promised, what was measured, and the verdict."""

import sys
from dataclasses import dataclass, field
from typing import Any

from replicator.app.cli.output import table
from replicator.core.errors import ReplicatorError


@dataclass(frozen=True, slots=True)
class Line:
    promise: str
    measured: str
    holds: bool


@dataclass(slots=True)
class Report:
    """The table at the end."""

    lines: list[Line] = field(default_factory=list)

    def add(self, promise: str, measured: str, *, holds: bool) -> None:
        self.lines.append(Line(promise, measured, holds))

    @property
    def holds(self) -> bool:
        return bool(self.lines) and all(line.holds for line in self.lines)

    def show(self, problem: ReplicatorError | None) -> None:
        rows = [(line.promise, line.measured, "PASS" if line.holds else "FAIL") for line in self.lines]
        if rows:
            table(rows, ("PROMISED", "MEASURED", ""))
        if problem is not None:
            print(f"Error: {problem}", file=sys.stderr)

    def as_json(self, problem: ReplicatorError | None) -> dict[str, Any]:
        return {
            "holds": self.holds and problem is None,
            "error": None if problem is None else {"code": problem.code, "message": str(problem)},
            "lines": [{"promise": x.promise, "measured": x.measured, "holds": x.holds} for x in self.lines],
        }
