"""One seed, one order of events: Trio's scheduler made repeatable.

Trio shuffles the tasks that are ready, so that nobody relies on an order. For a simulation the
shuffle has to come from the seed, and Trio has a switch for that, made for its Hypothesis plug-in.
It is private, so it is touched here and nowhere else, and a test compares two runs: if a new
Trio moves it, that test says so. The dependency is pinned to one minor version for the same reason.

The garbage collector is held back meanwhile: an async generator that it finds is finalised by a
task, and when it looks depends on everything that the process has ever allocated.
"""

import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio
import trio.testing

_T = TypeVar("_T")


@contextmanager
def deterministic_scheduler(seed: int) -> Iterator[None]:
    """Inside the block `trio.run` schedules by `seed`."""
    inner = trio._core._run
    before = inner._ALLOW_DETERMINISTIC_SCHEDULING, inner._r
    collecting = gc.isenabled()
    inner._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    inner._r = random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        inner._ALLOW_DETERMINISTIC_SCHEDULING, inner._r = before  # type: ignore[misc]
        if collecting:
            gc.enable()


def run_in_virtual_time(main: Callable[[], Awaitable[_T]], *, seed: int) -> _T:
    """Run `main` on Trio with a clock that jumps to whatever is next, and a scheduler that follows `seed`."""
    with deterministic_scheduler(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
