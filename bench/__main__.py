"""Measure the product on this machine.

    python -m bench --list
    python -m bench first_sync                     4 GiB, some twenty seconds and a quarter of that for the floor
    python -m bench scrub --gib 1 --runs 5 --json

Nothing is written outside --work, unless --save names a file.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import describe_machine
from bench.nodes import BenchError
from bench.scenarios import SCENARIOS, Row, Setting


def medians(rows: Sequence[Row]) -> Row:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def readable(name: str, value: float) -> str:
    if name.endswith("_bytes") or "_bytes_" in name:
        return f"{value / 1e6:,.2f} MB"
    if name.endswith("_s") and not name.endswith("_per_s"):
        return f"{value:.2f} s"
    return f"{value:,.2f}" if name.endswith("_ratio") else f"{value:,.0f}"


def show(title: str, rows: Sequence[Row]) -> None:
    middle = medians(rows)
    print(f"{title}: median of {len(rows)}")
    for name, value in middle.items():
        each = "" if len(rows) == 1 else "   " + " ".join(readable(name, row[name]) for row in rows)
        print(f"  {name:20} {readable(name, value):>14}{each}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the product on this machine.")
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS], metavar="SCENARIO")
    parser.add_argument("--list", action="store_true", help="say what can be measured")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the image (default 4)")
    parser.add_argument("--runs", type=int, default=1, help="how often; medians are shown (default 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where to work; the image made there is kept for the next time")
    parser.add_argument("--no-floor", action="store_true", help="leave out the comparison")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the JSON there")
    chosen = parser.parse_args(arguments)
    if chosen.list or chosen.scenario is None:
        for name, scenario in SCENARIOS.items():
            print(f"{name:12} {(scenario.__doc__ or '').splitlines()[0]}")
        return 0 if chosen.list else 64
    with tempfile.TemporaryDirectory(prefix="replicator-bench-") as temporary:
        work = chosen.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        setting = Setting(work.absolute(), chosen.gib, max(1, chosen.runs), chosen.seed, not chosen.no_floor)
        try:
            rows = list(SCENARIOS[chosen.scenario](setting))
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 70
    answer: dict[str, Any] = {
        "scenario": chosen.scenario,
        "gib": chosen.gib,
        "seed": chosen.seed,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "median": medians(rows),
        "runs": rows,
    }
    if chosen.json:
        print(json.dumps(answer, indent=1))
    else:
        show(f"{chosen.scenario}, {chosen.gib:g} GiB on {answer['machine']['processor']}", rows)
    if chosen.save:
        chosen.save.write_text(json.dumps(answer, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
