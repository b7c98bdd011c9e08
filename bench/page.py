"""The section of docs/benchmarks.md for one machine, from a report: what was aimed at, what came out, beside whom.

python -m bench copies store_to_store ingest restore_from_peer --report out
python -m bench.page out/report.json [out/report-b.json ...]
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.harness import FLOOR, OURS, Result, ratios
from bench.report import readable


class Aim(NamedTuple):
    """At most `bound` of a figure; or, of `wall_s` beside somebody, at least `bound` times as fast."""

    work: str
    figure: str
    bound: float
    beside: str = ""


AIMS: Final = (
    Aim("A, first copy", "wall_s", 9.0),
    Aim("A, first copy", "wall_s", 2.2, "rsync-ssh"),
    Aim("A, first copy", "wall_s", 2.5, "restic"),
    Aim("A, first copy", "wall_s", 0.7, FLOOR),
    Aim("A, store to store", "wall_s", 4.7),
    Aim("A, store to store", "cpu_s", 8.0),
    Aim("A, store to store", "wire_bytes", 2.3e9),
    Aim("A, 1 % changed", "wall_s", 1.5),
    Aim("A, unchanged", "wall_s", 0.2),
    Aim("B, first copy", "wall_s", 3.0),
    Aim("B, first copy", "wall_s", 1.8, "rsync-ssh"),
    Aim("B, first copy", "wall_s", 2.5, "restic"),
    Aim("B, first copy", "wall_s", 4.0, "borg"),
    Aim("B, first copy", "wire_bytes", 200e6),
    Aim("B, 1 % changed", "wall_s", 0.7),
    Aim("B, 1 % changed", "wire_bytes", 4e6),
    Aim("B, unchanged", "wall_s", 0.45),
    Aim("A, first copy", "peak_bytes", 400 * 2**20),
    Aim("A, restore from a peer", "wall_s", 5.0),
    Aim("A, ingest", "wall_s", 0.7, FLOOR),
    Aim("A, ingest", "wall_s", 3.0, "restic-local"),
)
"""What was promised for a machine of two cores. What was not measured is left out of the table."""
_FULL: Final = (4.0, 50_000)
"""The size of A and B for which the aims were set: of anything smaller they say nothing."""
_SHOWN: Final = ("wall_s", "cpu_s", "wire_bytes", "peak_bytes")


def aims_table(results: Sequence[Result]) -> Iterator[str]:
    ours = {result.work: result.median for result in results if result.subject == OURS}
    times = ratios(results)
    yield "| work | aim | measured | |"
    yield "|---|---|---|---|"
    for aim in AIMS:
        name = aim.figure.rpartition("_")[0]
        if aim.beside and (aim.work, aim.beside) in times:
            value = times[aim.work, aim.beside]
            goal, shown, is_met = (
                f"≥ {aim.bound:g} times as fast as {aim.beside}",
                f"{value:.2f} times",
                value >= aim.bound,
            )
        elif not aim.beside and aim.figure in ours.get(aim.work, {}):
            value = ours[aim.work][aim.figure]
            goal, shown = f"{name} ≤ {readable(aim.figure, aim.bound)}", readable(aim.figure, value)
            is_met = value <= aim.bound
        else:
            continue
        yield f"| {aim.work} | {goal} | {shown} | {'' if is_met else '**missed**'} |"


def works_table(results: Sequence[Result]) -> Iterator[str]:
    times = ratios(results)
    yield "| work | who | wall | processor | wire | memory | wall, times ours | each run, s |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in results:
        cells = [readable(name, result.median[name]) if name in result.median else "" for name in _SHOWN]
        ratio = times.get((result.work, result.subject))
        who = f"**{result.subject}**" if result.subject == OURS else result.subject
        runs = ", ".join(f"{run['wall_s']:.2f}" for run in result.runs if "wall_s" in run)
        cells = [result.work, who, *cells, "" if ratio is None else f"{ratio:.2f}", runs]
        yield f"| {' | '.join(cells)} |"


def section(report: dict[str, Any], results: Sequence[Result]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    head = [f"### {report['machine']['processor']}, {report['machine']['cores']} cores, {report['at'][:10]}", ""]
    told = [f"{machine}; commit `{report['commit']}`, medians of {report['setting']['runs']}.", ""]
    broken = [f"Broken off: {failure}" for failure in report["failures"]]
    setting = report["setting"]
    aims = [*aims_table(results), ""] if (setting["gib"], setting["files"]) == _FULL else []
    return "\n".join([*head, *told, *aims, *works_table(results), *broken])


def main(paths: Sequence[str]) -> None:
    reports = [json.loads(Path(path).read_text()) for path in paths]
    results = [Result(one["work"], one["subject"], one["runs"]) for report in reports for one in report["results"]]
    print(section(reports[0], results))


if __name__ == "__main__":
    main(sys.argv[1:])
