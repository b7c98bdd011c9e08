"""`scripts/torture`'s other modes: as many rounds as there is time for, a table at the end, and the same as JSON."""

import argparse
import itertools
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.clocks import NoCompiler, leap_clocks
from tests.faults.cuts import cut_routes
from tests.faults.flips import flip_bits
from tests.faults.flushes import first_flushes
from tests.faults.full_disk import cycle_full_disk
from tests.faults.mesh import play_each_flush_of_a_start, play_mesh
from tests.faults.order import run_and_judge
from tests.faults.points import PHASES, Judged, census, draw, play, scratch
from tests.faults.power import CutJudged, can_cut, cut_and_judge
from tests.faults.same_store import live
from tests.faults.stage import Stage
from tests.support.namespaces import why_no_hosts

MESH_SHARE = 4
"""One point in so many is played by two real nodes; it takes five times as long as one of a store."""


@dataclass(slots=True)
class Report:
    """What a mode did, and what was wrong."""

    mode: str
    seed: int
    rounds: int = 0
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0

    def note(self, problem: str) -> None:
        self.rounds += 1
        if problem:
            self.problems.append(problem)
            print(f"FAIL {problem}", flush=True)


def kill_points(stage: Stage, report: Report, rounds: int) -> None:
    _points(stage, report, rounds, "kill")


def errors(stage: Stage, report: Report, rounds: int) -> None:
    _points(stage, report, rounds, "errors")
    failed = Report("flushes", report.seed)
    for judged in first_flushes(stage, count=min(200, rounds), seed=report.seed % 3 + 1):
        failed.note(f"{judged.point}: {judged.problem}" if judged.problem else "")
    for judged in play_each_flush_of_a_start(stage, seed=report.seed):
        failed.note(f"{judged.point}: {judged.problem}" if judged.problem else "")
    report.facts["failed flushes"] = failed.rounds
    report.problems += failed.problems


def _points(stage: Stage, report: Report, rounds: int, kind: str) -> None:
    reached: Counter[str] = Counter()
    played: Counter[str] = Counter()
    slowest = [0.0]

    def take(judged: Judged) -> None:
        played[judged.point.phase] += 1
        reached[judged.point.phase] += judged.reached
        slowest[0] = max(slowest[0], judged.opened_s)
        report.note(f"{judged.point}: {judged.problem}" if judged.problem else "")

    counts = {phase: census(stage, phase, 1) for phase in PHASES}
    of_nodes = rounds // MESH_SHARE
    for point in itertools.islice(draw(counts, random.Random(report.seed), kind=kind), rounds - of_nodes):
        take(play(stage, point))
    play_mesh(stage, rounds=of_nodes, seed=report.seed, kind=kind, on_judged=take)
    report.facts |= {f"{phase}: reached": f"{reached[phase]} of {played[phase]}" for phase in played}
    report.facts["slowest start, s"] = round(slowest[0], 2)


def order(stage: Stage, report: Report, rounds: int) -> None:
    """`rounds` acknowledgements by one writer, and as many by sixteen."""
    for writers in (1, 16):
        folder = scratch()
        verdict = run_and_judge(stage, folder, writers=writers, count=rounds // writers, seed=report.seed)
        report.rounds += verdict.acks
        report.problems += verdict.violations[:20]
        flushes = verdict.data_flushes + verdict.index_flushes
        report.facts[f"{writers} writers"] = f"{verdict.acks} acks, {flushes} flushes, {len(verdict.violations)} wrong"
        shutil.rmtree(folder, ignore_errors=True)


def power(stage: Stage, report: Report, rounds: int) -> None:
    if why := can_cut():
        raise SystemExit(f"This machine cannot do it: it {why}.")

    def take(judged: CutJudged) -> None:
        report.note(f"{judged.work} seed={judged.seed} {judged.cut}: {judged.problem}" if judged.problem else "")

    seeds = itertools.count(report.seed)
    while report.rounds < rounds:
        seed = next(seeds)
        for work in PHASES:
            cut_and_judge(stage, work, seed, min(25, max(1, rounds - report.rounds)), on_judged=take)
    report.facts["recorded runs"] = (next(seeds) - report.seed) * len(PHASES)


def same_store(stage: Stage, report: Report, rounds: int) -> None:
    lives = live(stage, rounds=rounds, seed=report.seed)
    report.rounds = lives.rounds
    report.problems += [lives.problem] if lives.problem else []
    report.facts |= {
        "blocks at the end": lives.blocks, "slowest start, s": round(lives.slowest_open_s, 2),
        "orphan bytes": f"{lives.orphan_share:.2%}", "disk over live": round(lives.disk_share, 3),
    }  # fmt: skip


def full_disk(_: Stage, report: Report, rounds: int) -> None:
    cycles = cycle_full_disk(rounds, seed=report.seed)
    report.rounds = cycles.cycles
    report.problems += [cycles.problem] if cycles.problem else []
    report.facts |= {
        "restores with no byte free": cycles.restores_at_zero, "least share freed": min(cycles.freed, default=None),
        "slowest resume, s": max(cycles.resumed_s, default=None),
    }  # fmt: skip


def flips(_: Stage, report: Report, rounds: int) -> None:
    flipped = flip_bits(flips=rounds, seed=report.seed)
    report.rounds = flipped.flips
    report.problems += flipped.problems[:20]
    report.facts["found by sums, and block by block"] = f"{flipped.by_sums}, {flipped.flips - flipped.by_sums}"


def clocks(_: Stage, report: Report, rounds: int) -> None:
    try:
        leapt = leap_clocks(rounds, seed=report.seed)
    except NoCompiler as error:
        raise SystemExit(f"This machine cannot do it: it {error}.") from None
    report.rounds = leapt.rounds
    report.problems += [leapt.problem] if leapt.problem else []
    report.facts |= {
        "killed and back by a wrong clock": leapt.kills, "collections refused": leapt.refused,
        "restores by a wrong clock": leapt.restored,
    }  # fmt: skip


def cuts(_: Stage, report: Report, rounds: int) -> None:
    if why := why_no_hosts():
        raise SystemExit(f"This machine cannot do it: {why}.")
    done = cut_routes(rounds, seed=report.seed)
    report.rounds = done.rounds
    report.problems += [done.problem] if done.problem else []
    report.facts |= {
        "one way, around a whole host": f"{done.one_way}, {done.islands}", "nodes killed behind a cut": done.kills,
        "slowest from healed to everywhere, s": done.slowest_s,
    }  # fmt: skip


MODES: dict[str, tuple[Callable[[Stage, Report, int], None], int]] = {
    "kill-points": (kill_points, 1500), "errors": (errors, 1000), "order": (order, 10_000), "power": (power, 1000),
    "same-store": (same_store, 500), "full-disk": (full_disk, 20), "flips": (flips, 10_000), "clocks": (clocks, 60),
    "cuts": (cuts, 40),
}  # fmt: skip
"""Each with the rounds of a night."""


def run(modes: list[str], *, rounds: int | None, seed: int) -> Iterator[Report]:
    for mode in modes:
        work, usual = MODES[mode]
        stage, report, began = Stage(), Report(mode, seed), time.monotonic()
        try:
            work(stage, report, rounds or usual)
        finally:
            stage.close()
        report.took_s = round(time.monotonic() - began, 1)
        yield report


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/torture", description="; ".join(MODES))
    parser.add_argument("mode", choices=[*MODES, "all"])
    parser.add_argument("--rounds", type=int, help="default: a night's worth")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write the report here too, as JSON")
    args = parser.parse_args()
    reports = []
    for report in run(list(MODES) if args.mode == "all" else [args.mode], rounds=args.rounds, seed=args.seed):
        reports.append(report)
        print(
            f"{report.mode:12} {report.rounds:6} rounds {len(report.problems):4} wrong {report.took_s:8.1f} s",
            flush=True,
        )
        for name, value in report.facts.items():
            print(f"    {name:32} {value}")
        if report.problems:
            rounds = args.rounds or MODES[report.mode][1]
            print(f"    again: scripts/torture {report.mode} --rounds {rounds} --seed {args.seed}")
    if args.report:
        args.report.write_text(
            json.dumps(
                [
                    {"mode": r.mode, "seed": r.seed, "rounds": r.rounds, "problems": r.problems, "facts": r.facts,
                     "took_s": r.took_s}
                    for r in reports
                ],
                indent=2,
            )
        )  # fmt: skip
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    raise SystemExit(main())
