"""One seed, one order of events: Trio's scheduler made repeatable.

Trio shuffles the tasks that are ready, so that nobody relies on an order. For a simulation the
shuffle has to come from the seed, and Trio has a switch for that, made for its Hypothesis plug-in.
It is private, so it is touched here and nowhere else, and a test compares two runs: if a new
Trio moves it, that test says so. The dependency is pinned to one minor version for the same reason.

The garbage collector is held back meanwhile: an async generator that it finds is finalised by a
task, and when it looks depends on everything that the process has ever allocated.

The clock is Trio's `MockClock`, with its arithmetic left out: here time stands still between two
jumps, and a simulated minute asks for it a hundred thousand times. It knows of moments that are waited for
without Trio's scopes too (`timers.py`), and `trio.sleep` is such a wait meanwhile. And the kernel is asked only now and
then whether a socket is ready: there is none, but for the one by which Trio wakes itself, for what is
in its queue of entries, or for a signal.
"""

import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from unittest.mock import patch

import trio
import trio.testing

from replicator.testing.timers import TIMERS, Timers, sleep

_T = TypeVar("_T")
_POLLS_SKIPPED: Final = 500
"""Rounds of the scheduler between two looks at the kernel: a hundredth of a second of ours."""


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


def _jumping_clock(timers: Timers) -> trio.testing.MockClock:
    """A clock that stands still while anybody can run, and then is at the next moment that somebody waits for."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    now = 0.0

    def jump() -> None:
        nonlocal now
        deadlines = trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines
        due = min(deadlines.next_deadline(), timers.next_due())
        if now < due < float("inf"):
            now = due
        # Both sorts at once, so that the seed decides who of them comes first.
        deadlines.expire(now)
        timers.fire(now)

    # Trio insists on a clock of this very class, and calls these two through the instance.
    clock.current_time = lambda: now  # type: ignore[method-assign]
    clock._autojump = jump  # type: ignore[method-assign]
    return clock


class _RarePoll:
    """Trio's window to the kernel, through which hardly anybody looks. Everything else of it is as it was."""

    def __init__(self, runner: Any) -> None:
        self._inner = runner.io_manager
        self._entries = runner.entry_queue
        self._skipped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_events(self, timeout: float) -> Any:
        # A wait that is not over at once is one in which nothing can run: that is for the kernel.
        if timeout or self._entries.queue or self._entries.idempotent_queue or self._skipped >= _POLLS_SKIPPED:
            self._skipped = 0
            return self._inner.get_events(timeout)
        self._skipped += 1
        return ()

    def process_events(self, events: Any) -> None:
        if events:
            self._inner.process_events(events)


def run_in_virtual_time(main: Callable[[], Awaitable[_T]], *, seed: int) -> _T:
    """Run `main` on Trio with a clock that jumps to whatever is next, and a scheduler that follows `seed`."""

    timers = Timers()

    async def run() -> _T:
        TIMERS.set(timers)
        # Parts of Trio that it promises nobody: where they look otherwise one day, the kernel is asked as ever.
        with suppress(AttributeError):
            runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
            if {"queue", "idempotent_queue"} <= set(dir(runner.entry_queue)):
                runner.io_manager = _RarePoll(runner)  # type: ignore[assignment]
        return await main()

    with deterministic_scheduler(seed), patch("trio.sleep", sleep):
        return trio.run(run, clock=_jumping_clock(timers))
