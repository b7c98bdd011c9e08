"""Waiting for a moment of virtual time, at the price of one entry in a heap.

Trio waits by cancelling: a scope is opened, an exception is thrown into the task when its deadline has come,
and caught again. A simulated minute waits some ten thousand times, and most of it for nothing but a moment: for
the end of a pause, for bytes that are on their way. Where the clock is ours, it can as well wake the task itself.

On any other clock the same is done with what Trio has.
"""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import trio


class Timers:
    """What happens at which moment. Whoever moves the clock asks for the next one, and lets it happen."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Timer]] = []
        self._numbers = count()

    def at(self, due: float, action: Callable[[], None]) -> "_Timer":
        timer = _Timer(action)
        heappush(self._heap, (due, next(self._numbers), timer))
        return timer

    def next_due(self) -> float:
        heap = self._heap
        while heap and heap[0][2].action is None:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def fire(self, now: float) -> None:
        """Do what is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            if (action := heappop(heap)[2].action) is not None:
                action()


class _Timer:
    """One entry; without an action it is waited for by nobody."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action


TIMERS: trio.lowlevel.RunVar[Timers | None] = trio.lowlevel.RunVar("timers", default=None)
"""Those of this run, if its clock is one that knows of them."""


class Bell:
    """One task waits until it is rung, or until a moment has come. It does not say which: look what has changed."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def wait(self, until: float = math.inf, *, is_patient: bool = False) -> None:
        """Who is patient cannot be cancelled meanwhile."""
        timers = TIMERS.get()
        if timers is None and until < math.inf:
            with trio.CancelScope(deadline=until, shield=is_patient):
                await self._wait(None, is_patient=False)
            return
        if until <= trio.current_time():
            await (trio.lowlevel.cancel_shielded_checkpoint if is_patient else trio.lowlevel.checkpoint)()
            return
        timer = timers.at(until, self.ring) if timers is not None and until < math.inf else None
        await self._wait(timer, is_patient=is_patient)
        if timer is not None:
            timer.action = None

    async def _wait(self, timer: _Timer | None, *, is_patient: bool) -> None:
        assert self._task is None, "one waits already"
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            if is_patient:
                return trio.lowlevel.Abort.FAILED
            self._task = None
            if timer is not None:
                timer.action = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


async def sleep(seconds: float) -> None:
    """As `trio.sleep` does it."""
    if not seconds >= 0:
        raise ValueError("`seconds` must be non-negative")
    await Bell().wait(trio.current_time() + seconds)


async def sleep_through(seconds: float) -> None:
    """A sleep that cannot be cancelled."""
    if seconds:
        await Bell().wait(trio.current_time() + seconds, is_patient=True)
