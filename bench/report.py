"""What was measured, for people and for programs: a table on the terminal, HTML with charts, Markdown, JSON."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

from bench.baseline import floor_ratios
from bench.charts import bars
from bench.harness import OURS, Result, Setting, ratios
from bench.machine import describe_machine

_CHARTED: Final = ("wall_s", "cpu_s", "wire_bytes", "peak_bytes")


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the bench."""

    at: str
    commit: str
    machine: dict[str, str | int | float]
    setting: dict[str, Any]
    results: list[Result]
    has_own_network: bool
    failures: list[str]

    @classmethod
    def of(cls, setting: Setting, results: list[Result], *, has_own_network: bool, failures: list[str]) -> "Report":
        kept = {name: value for name, value in asdict(setting).items() if name != "work"}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(at, _commit(), describe_machine(), kept, results, has_own_network, failures)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def readable(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.2f} MB"
    if name.endswith("_us"):
        return f"{value:,.1f} us"
    if name.endswith("_s") and not name.endswith("_per_s"):
        return f"{value:,.2f} s"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def show(results: Sequence[Result]) -> None:
    """On the terminal: medians, and beside them each run."""
    times = ratios(results)
    for result in results:
        ratio = times.get((result.work, result.subject))
        beside = f"   {ratio:.2f} x ours" if ratio else ""
        print(f"{result.work}: {result.subject}, median of {len(result.runs)}{beside}")
        for name, value in result.median.items():
            each = "" if len(result.runs) == 1 else "   " + " ".join(readable(name, run[name]) for run in result.runs)
            print(f"  {name:18} {readable(name, value):>14}{each}")


def write_report(folder: Path, report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(as_json(report), indent=1) + "\n")
    (folder / "report.md").write_text(as_markdown(report))
    (folder / "report.html").write_text(as_html(report))


def as_json(report: Report) -> dict[str, Any]:
    results = [{"work": r.work, "subject": r.subject, "median": r.median, "runs": r.runs} for r in report.results]
    return {**asdict(report), "results": results, "floor_ratios": floor_ratios(report.results)}


def as_markdown(report: Report) -> str:
    lines = [f"# Measured at {report.at}, commit {report.commit}", ""]
    lines += [f"{', '.join(f'{name}: {value}' for name, value in report.machine.items())}.", ""]
    for work, results in _by_work(report.results).items():
        names = list(dict.fromkeys(name for result in results for name in result.median))
        lines += [f"## {work}", "", f"| | {' | '.join(names)} | wall, x ours |", "|---" * (len(names) + 2) + "|"]
        times = ratios(results)
        for result in results:
            cells = [readable(name, result.median[name]) if name in result.median else "" for name in names]
            ratio = times.get((work, result.subject))
            name = f"**{result.subject}**" if result.subject == OURS else result.subject
            lines.append(f"| {name} | {' | '.join(cells)} | {'' if ratio is None else f'{ratio:.2f}'} |")
        lines.append("")
    return "\n".join([*lines, *(f"**Broken off:** {failure}" for failure in report.failures), ""])


def as_html(report: Report) -> str:
    machine = ", ".join(f"{name}: {value}" for name, value in report.machine.items())
    parts = [
        "<!doctype html><meta charset=utf-8><title>replicator: measured</title>",
        "<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}svg{display:block;margin:.6em 0}</style>",
        f"<h1>Measured at {escape(report.at)}</h1><p>Commit {escape(report.commit)}. {escape(machine)}.</p>",
        "<p>Medians. Shorter bars are better. Everything in one picture was measured in one run.</p>",
    ]
    if not report.has_own_network:
        parts.append("<p>The bytes on the wire are those of the machine's loopback: others may be among them.</p>")
    for work, results in _by_work(report.results).items():
        parts.append(f"<h2>{escape(work)}</h2>")
        for name in _CHARTED:
            values = [
                (result.subject, _scaled(name, result.median[name])) for result in results if name in result.median
            ]
            if len(values) > 1:
                parts.append(
                    bars(name.rpartition("_")[0], values, unit="s" if name.endswith("_s") else "MB", ours=OURS)
                )
        parts += [f"<p>{escape(result.subject)}: {escape(_all_of(result))}</p>" for result in results]
    parts += [f"<p><b>Broken off:</b> {escape(failure)}</p>" for failure in report.failures]
    return "\n".join(parts)


def _scaled(name: str, value: float) -> float:
    return value / 1e6 if name.endswith("_bytes") else value


def _all_of(result: Result) -> str:
    return ", ".join(f"{name} {readable(name, value)}" for name, value in result.median.items())


def _by_work(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.work, []).append(result)
    return found
