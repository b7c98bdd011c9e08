"""The simulation in a test run: twenty worlds, those that once failed, and whether the simulator can be trusted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from replicator.testing.determinism import run_in_virtual_time
from tests.simulation.__main__ import _numbers, _ranges, main
from tests.simulation.controls import CONTROLS, broken, seeds_until_found
from tests.simulation.markers import _READERS, FROM_LOG, SOMETIMES
from tests.simulation.plan import Faults, Plan, make_plan
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, run_plan

TOP = Path(__file__).resolve().parents[2]
OLD = [
    line.split(" ", 2) for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines() if line[:1].isdigit()
]


SEEDS = range(1001, 1021)
SEEN: list[Outcome] = []


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_holds_in_the_world_of_a_seed(seed: int) -> None:
    outcome = run_plan(make_plan(seed))
    SEEN.append(outcome)
    assert not outcome.problem, f"scripts/sim --seed {seed}\n{outcome.problem}"


def test_rare_paths_are_walked_by_these_few_worlds_already() -> None:
    if len(SEEN) < len(SEEDS):
        pytest.skip("only some of the worlds were run")
    never = [name for name in SOMETIMES if not any(outcome.markers.reached[name] for outcome in SEEN)]
    assert len(never) <= 12, f"`scripts/sim --seeds 300 --markers` demands all of them: {never}"


@pytest.mark.parametrize(
    "name",
    [
        "a commit that does not flush",
        "a mark that misses the newest snapshot",
        "a sentence that is not lifted",
        "a collection that waits for no writer",
        "an order that looks at no tenant",
    ],
)
def test_a_guard_that_is_taken_away_is_missed(name: str) -> None:
    """A few of the controls, and few worlds; `scripts/sim --controls` does them all."""
    assert seeds_until_found(name)[1] is not None


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_still_finds_the_guard_that_it_takes_away(name: str) -> None:
    """Not whether it is missed, but whether it is there: a guard that has moved would be taken away from nowhere."""
    with broken(name):
        pass


def test_a_broken_product_is_shrunk_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rule that counts nothing breaks its promise without any step, and the line that is printed shows it."""
    seed = "10"
    with broken("a bandwidth rule that counts nothing"):
        monkeypatch.setattr(sys, "argv", ["scripts/sim", "--seed", seed, "--shrink"])
        assert main() == 1
        said = capsys.readouterr().out
        replay, *steps = said.splitlines()
        assert replay == f"scripts/sim --seed {seed} --without 0-{len(make_plan(int(seed)).steps) - 1}"
        assert not any(line.startswith("  ") for line in steps) and "more than its rule allows" in said
        monkeypatch.setattr(sys, "argv", replay.split())
        assert main() == 1
    monkeypatch.setattr(sys, "argv", replay.split())
    assert main() == 0 and "every promise held" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "without", "found"), OLD, ids=[line[0] for line in OLD])
def test_what_a_seed_once_found_stays_mended(seed: str, without: str, found: str) -> None:
    plan = make_plan(int(seed)).without(_numbers(without.strip("-")))
    outcome = run_plan(plan)
    assert not outcome.problem, f"scripts/sim --seed {seed} --without {without} ({found})\n{outcome.problem}"


def test_a_world_without_faults_is_an_uneventful_place() -> None:
    outcome = run_plan(make_plan(3, faults=Faults()))
    assert not outcome.problem
    for name in ("sync failed", "rot found", "link broke", "crash at a checkpoint"):
        assert not outcome.markers.reached[name], name
    assert outcome.markers.reached["received from a base"]


def trace_of(seed: int, *, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=TOP, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("trace ")[-1].strip()


def test_one_seed_gives_one_trace_byte_for_byte_in_any_process() -> None:
    first = trace_of(5, hash_seed="1")
    assert len(first) == 32
    assert trace_of(5, hash_seed="2") == first
    assert trace_of(6, hash_seed="1") != first, "a trace that never differs proves nothing"


def order_of(seed: int) -> list[int]:
    """In which order tasks that are all ready come to run."""

    async def main() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        return order

    return run_in_virtual_time(main, seed=seed)


def test_the_scheduler_follows_the_seed_and_nothing_else() -> None:
    assert order_of(7) == order_of(7), "Trio's private switch has moved: see replicator/testing/determinism.py"
    assert len({tuple(order_of(seed)) for seed in range(20)}) > 10, "the order does not come from the seed"


def test_after_a_simulation_the_switch_is_as_it_was() -> None:
    before = trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING, trio._core._run._r
    order_of(1)
    assert (trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING, trio._core._run._r) == before


def test_shrinking_leaves_the_steps_that_are_to_blame() -> None:
    plan = make_plan(5)
    guilty = {plan.steps[3].number, plan.steps[-2].number}

    def fails(tried: Plan) -> bool:
        return guilty <= {step.number for step in tried.steps}

    left_out = shrink(plan, fails=fails)
    assert {step.number for step in plan.without(left_out).steps} == guilty


def test_a_plan_that_fails_not_cannot_be_shrunk() -> None:
    with pytest.raises(ValueError, match="breaks no promise"):
        shrink(make_plan(5), fails=lambda plan: False)


def test_leaving_out_steps_changes_nothing_about_the_others() -> None:
    plan = make_plan(9)
    assert plan.without(frozenset({0, 5})).steps == tuple(step for step in plan.steps if step.number not in (0, 5))


def test_steps_are_named_in_ranges() -> None:
    assert _ranges(frozenset({1, 2, 3, 7, 9, 10})) == "1-3,7,9-10"
    assert _numbers("1-3,7,9-10") == {1, 2, 3, 7, 9, 10}


def test_what_must_happen_sometimes_is_told_of_by_its_name() -> None:
    named = {*FROM_LOG.values(), *(name for readers in _READERS.values() for _, name in readers)}
    assert named <= SOMETIMES.keys() and len(SOMETIMES) >= 50
