"""Run worlds: `scripts/sim` calls this. See `--help`."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from tests.simulation.controls import CONTROLS, seeds_until_found
from tests.simulation.markers import SOMETIMES, Markers
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
    words.add_argument("--hours", type=float, default=0.0, help="begin no world after so many hours")
    words.add_argument("--markers", action="store_true", help="fail if something that must happen sometimes never did")
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


def _outcomes(args: argparse.Namespace) -> Iterator[Outcome]:
    deadline = time.monotonic() + args.hours * 3600 if args.hours else float("inf")
    seeds = range(args.first, args.first + args.seeds)
    # Each process lives for some worlds only: what one leaves behind must not help, or hurt, a thousand others.
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=50) as pool:
        for outcome in pool.imap_unordered(run_seed, seeds):
            yield outcome
            if time.monotonic() > deadline:
                return


def _run_many(args: argparse.Namespace) -> int:
    began = time.monotonic()
    markers, failed, worlds, virtual_s = Markers(), 0, 0, 0.0
    for outcome in _outcomes(args):
        worlds += 1
        virtual_s += outcome.virtual_s
        markers.reached.update(outcome.markers.reached)
        if outcome.problem:
            failed += 1
            print(f"FAILED scripts/sim --seed {outcome.seed}\n    {outcome.problem.splitlines()[0]}", flush=True)
        if worlds % 500 == 0:
            print(f"{worlds} worlds, {failed} failed, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    took = time.monotonic() - began
    print(f"{worlds} worlds, {virtual_s / 3600:.1f} h of theirs in {took:.0f} s of ours, {failed} failed")
    missed = [name for name in SOMETIMES if not markers.reached[name]]
    print(f"{len(SOMETIMES) - len(missed)} of {len(SOMETIMES)} things that must happen sometimes did")
    for name in missed:
        print(f"  never: {name} ({SOMETIMES[name]})")
    return 1 if failed or (args.markers and missed) else 0


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
