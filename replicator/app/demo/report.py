"""What was promised, what was measured, and the verdict."""

from dataclasses import dataclass, field
from typing import Any

from replicator.app.cli.output import table


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

    def show(self) -> None:
        rows = [(line.promise, line.measured, "PASS" if line.holds else "FAIL") for line in self.lines]
        table(rows, ("PROMISED", "MEASURED", ""))

    def as_json(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "lines": [{"promise": x.promise, "measured": x.measured, "holds": x.holds} for x in self.lines],
        }
