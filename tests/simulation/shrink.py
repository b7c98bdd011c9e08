"""Leaving out steps of a failing plan until each that is left is needed.

All steps at once are tried first, as a world may break without any; then whole sorts of step, then halves,
quarters and so on down to single ones (ddmin). A plan that fails in another way counts as failing: what matters
is that some promise is broken.
"""

from collections.abc import Callable

from tests.simulation.plan import Plan
from tests.simulation.world import run_plan


def shrink(
    plan: Plan,
    left_out: frozenset[int] = frozenset(),
    *,
    fails: Callable[[Plan], bool] = lambda plan: bool(run_plan(plan).problem),
    runs_max: int = 400,
) -> frozenset[int]:
    """The numbers of the steps that can be left out. Raises `ValueError` if the plan does not fail to begin with."""
    runs = 0

    def still_fails(without: frozenset[int]) -> bool:
        nonlocal runs
        runs += 1
        return runs <= runs_max and fails(plan.without(without))

    if not still_fails(left_out):
        raise ValueError("this plan breaks no promise")
    everything = frozenset(step.number for step in plan.steps)
    if everything != left_out and still_fails(everything):
        return everything
    for verb in sorted({step.verb for step in plan.steps}):
        coarse = left_out | {step.number for step in plan.steps if step.verb == verb}
        if coarse != left_out and still_fails(coarse):
            left_out = coarse
    size = max(1, len(plan.without(left_out).steps) // 2)
    while True:
        rest = [step.number for step in plan.without(left_out).steps]
        shrunk = False
        for at in range(0, len(rest), size):
            tried = left_out | frozenset(rest[at : at + size])
            if tried != left_out and still_fails(tried):
                left_out, shrunk = tried, True
        if size == 1 and not shrunk:
            return left_out
        size = max(1, size // 2)
