"""Run worlds: `scripts/sim` calls this. See `--help`."""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.simulation.controls import CONTROLS, seeds_until_found
from tests.simulation.night import Night, OtherSource, Tally, source_digest
from tests.simulation.plan import make_plan
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, run_plan, run_seed


def main() -> int:
    words = argparse.ArgumentParser(
        prog="scripts/sim",
        description="Simulate whole meshes. One seed, one world; a failing one prints how to replay it.",
    )
    words.add_argument("--seeds", type=int, default=20, help="how many worlds (a night: 10000)")
    words.add_argument("--first", type=int, default=1, help="the first seed")
    words.add_argument("--seed", type=int, help="just this one, and say how it went")
    words.add_argument("--without", default="", help="leave out these steps of the plan: 3,7-9")
    words.add_argument("--show", action="store_true", help="print the trace of --seed")
    words.add_argument("--shrink", action="store_true", help="look for the steps of --seed that are to blame")
    words.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    words.add_argument("--log", type=Path, help="keep what was found in this file, and go on where it ends")
    words.add_argument("--hours", type=float, default=0.0, help="begin no world after so many hours")
    words.add_argument("--markers", action="store_true", help="count what must happen sometimes; fail if it never did")
    words.add_argument("--controls", action="store_true", help="break the product on purpose, and see each found")
    args = words.parse_args()
    if args.controls:
        return _run_controls()
    if args.seed is not None:
        return _run_one(args)
    return _run_many(args)


def _numbers(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def _ranges(numbers: frozenset[int]) -> str:
    parts: list[str] = []
    for number in sorted(numbers):
        if parts and int(parts[-1].rpartition("-")[2]) == number - 1:
            parts[-1] = f"{parts[-1].partition('-')[0]}-{number}"
        else:
            parts.append(str(number))
    return ",".join(parts)


def _run_one(args: argparse.Namespace) -> int:
    plan = make_plan(args.seed)
    left_out = _numbers(args.without)
    if args.shrink:
        left_out = shrink(plan, left_out)
        print(f"scripts/sim --seed {args.seed} --without {_ranges(left_out)}")
        for step in plan.without(left_out).steps:
            print(
                f"  {step.round}/{step.at_s:5.1f} s  {step.verb} site-{step.site} site-{step.other} {step.amount:.2f}"
            )
    began = time.monotonic()
    outcome = run_plan(plan.without(left_out), show=print if args.show else None)
    print(
        f"seed {outcome.seed}: {outcome.problem or 'every promise held'}\n"
        f"{plan.sites} sites, {outcome.virtual_s:.0f} s of theirs in {time.monotonic() - began:.1f} s of ours, "
        f"{outcome.lines} lines, trace {outcome.digest}"
    )
    return 1 if outcome.problem else 0


def _outcomes(args: argparse.Namespace, seeds: Sequence[int]) -> Iterator[Outcome]:
    deadline = time.monotonic() + args.hours * 3600 if args.hours else float("inf")
    # Each process lives for some worlds only: what one leaves behind must not help, or hurt, a thousand others.
    # What they have imported is taken out of the garbage collector's sight: it looks before each world.
    with multiprocessing.get_context("spawn").Pool(args.jobs, gc.freeze, maxtasksperchild=50) as pool:
        for outcome in pool.imap_unordered(run_seed, seeds):
            yield outcome
            if time.monotonic() > deadline:
                return


def _run_many(args: argparse.Namespace) -> int:
    began = time.monotonic()
    seeds: Sequence[int] = range(args.first, args.first + args.seeds)
    tally = Tally()
    keep = tally.add
    if args.log:
        try:
            night = Night(args.log, source=source_digest())
        except OtherSource as error:
            print(error, file=sys.stderr)
            return 2
        tally, keep, seeds = night.tally, night.add, night.remaining(seeds)
    for outcome in _outcomes(args, seeds) if seeds else ():
        keep(outcome)
        if outcome.problem:
            print(f"FAILED scripts/sim --seed {outcome.seed}\n    {outcome.problem.splitlines()[0]}", flush=True)
        if tally.worlds % 500 == 0:
            took = time.monotonic() - began
            print(f"{tally.worlds} worlds, {len(tally.failed)} failed, {took:.0f} s", file=sys.stderr, flush=True)
    for line in tally.lines(with_counts=args.markers):
        print(line)
    return 1 if tally.failed or (args.markers and tally.missed()) else 0


def _run_controls() -> int:
    missed = 0
    for name in CONTROLS:
        count, outcome = seeds_until_found(name)
        missed += outcome is None
        shown = outcome.problem.splitlines()[-1][:110] if outcome is not None else "NOT FOUND"
        print(f"{name}: {count} worlds: {shown}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
