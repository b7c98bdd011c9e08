"""Measure the product on this machine, beside other programs and beside the least that the work can cost.

    python -m bench                          everything: hours on a slow machine; writes a report
    python -m bench --quick                  everything, small: some minutes
    python -m bench copies ingest --data A   only these
    python -m bench --list

Nothing is written outside --work and --report.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.baseline import compare, read_baseline, save_baseline, worse
from bench.harness import Row, Setting, collect
from bench.network import enter_own_network
from bench.peers import PEERS
from bench.peers.base import BenchError
from bench.report import Report, as_json, show, write_report
from bench.scenarios import SCENARIOS
from replicator.core.errors import ReplicatorError

_BASELINES = Path(__file__).with_name("baselines")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the product on this machine.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="which; all if none is named")
    parser.add_argument("--list", action="store_true", help="say what can be measured, and beside whom")
    parser.add_argument("--quick", action="store_true", help="256 MiB and 4,000 files instead of 4 GiB and 50,000")
    parser.add_argument("--gib", type=float, help="size of image A (default 4)")
    parser.add_argument("--files", type=int, help="how many files B has (default 50000)")
    parser.add_argument("--data", default="AB", choices=["A", "B", "AB"], help="which data, where there is a choice")
    parser.add_argument("--runs", type=int, default=3, help="how often; medians are shown (default 3)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", default="all", help=f"all, none, or names with commas: {', '.join(PEERS)}")
    parser.add_argument("--most-blocks", type=float, default=1e6, help="the largest store of `store_size`")
    parser.add_argument("--work", type=Path, help="where to work; data made there is kept for the next time")
    parser.add_argument("--no-floor", action="store_true", help="leave out the floors")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write report.html, report.md and report.json there"
    )
    parser.add_argument("--baseline", metavar="NAME", help="compare with baselines/NAME.json; exit with 1 if worse")
    parser.add_argument("--save-baseline", metavar="NAME", help="keep the ratios to the floor as baselines/NAME.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _arguments()
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]!r}; --list shows them")
    if chosen.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:18} {(scenario.__doc__ or '').splitlines()[0]}")
        for name, peer in PEERS.items():
            print(f"beside {name:11} {'needs ' + peer.missing() if peer.missing() else 'is here'}")
        return 0
    peers = tuple(PEERS) if chosen.peers == "all" else tuple(filter(None, chosen.peers.split(",")))
    peers = () if chosen.peers == "none" else peers
    is_alone = enter_own_network()
    with tempfile.TemporaryDirectory(prefix="replicator-bench-") as temporary:
        work = (chosen.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            work=work,
            gib=chosen.gib or (0.25 if chosen.quick else 4.0),
            files=chosen.files or (4_000 if chosen.quick else 50_000),
            runs=max(1, chosen.runs),
            seed=chosen.seed,
            with_floor=not chosen.no_floor,
            peers=peers,
            data=tuple(chosen.data),
            most_blocks=min(chosen.most_blocks, 1e5) if chosen.quick else chosen.most_blocks,
        )
        rows: list[Row] = []
        failures: list[str] = []
        for name in chosen.scenarios or SCENARIOS:
            rows += _measured(name, setting, failures)
    report = Report.of(setting, collect(rows), has_own_network=is_alone, failures=failures)
    if chosen.report:
        write_report(chosen.report, report)
        print(f"The report is in {chosen.report}.")
    if chosen.save_baseline:
        save_baseline(_BASELINES / f"{chosen.save_baseline}.json", as_json(report))
    if chosen.baseline:
        changes = compare(report.results, read_baseline(_BASELINES / f"{chosen.baseline}.json"))
        for change in changes:
            print(change)
        if worse(changes):
            return 1
    return 70 if failures else 0


def _measured(name: str, setting: Setting, failures: list[str]) -> list[Row]:
    """One scenario. If it breaks off, what it had measured counts, and the next one is begun."""
    rows: list[Row] = []
    try:
        for row in SCENARIOS[name](setting):
            rows.append(row)
            print(f"  {row.work}: {row.subject} {_first(row)}", file=sys.stderr)
    except (BenchError, ReplicatorError) as error:
        failures.append(f"{name}: {error}")
        print(f"bench: {name}: {error}", file=sys.stderr)
    show(collect(rows))
    return rows


def _first(row: Row) -> str:
    name, value = next(iter(row.figures.items()))
    return f"{value:.2f} {name.rpartition('_')[2]}"


if __name__ == "__main__":
    sys.exit(main())
