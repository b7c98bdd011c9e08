"""What a node does when nobody asks: scrub a little all the time, collect once in a while."""

from typing import Final

from replicator.core.ports import WallClock
from replicator.core.workers import Idle, Outcome, Throttled
from replicator.jobs.runner import JobRunner
from replicator.repair.scrub import Scrubber
from replicator.store.ports import BlockStore

_FIRST_S: Final = 120.0
"""A node that has just started has better things to do than to scrub."""
_COLLECT_EVERY_S: Final = 6 * 3600.0


class Scrubbing:
    """The worker that keeps the promise "everything is read again within `every_s`"."""

    name = "scrub"

    def __init__(self, scrubber: Scrubber, store: BlockStore, *, every_s: float) -> None:
        self._scrubber = scrubber
        self._store = store
        self._every_s = every_s
        self._waited = False

    async def step(self) -> Outcome:
        """One part, then a pause so long that the whole store takes half of the promised span."""
        if not self._waited:
            self._waited = True
            return Idle(_FIRST_S)
        read_bytes, is_complete = await self._scrubber.step()
        total = max(1, self._store.statistics().disk_bytes)
        share = max(read_bytes, 1 << 20) / total
        if is_complete:
            return Idle(self._every_s / 2)
        return Throttled(min(3600.0, share * self._every_s / 2))


class Collecting:
    """The worker that starts a collection a few times a day."""

    name = "collect"

    def __init__(self, jobs: JobRunner, *, clock: WallClock, every_s: float = _COLLECT_EVERY_S) -> None:
        self._jobs = jobs
        self._clock = clock
        self._every_s = every_s
        self._waited = False

    async def step(self) -> Outcome:
        if not self._waited:
            self._waited = True
            return Idle(self._every_s)
        if not self._jobs.is_active("gc", "gc"):
            self._jobs.submit("gc", {"grace_s": None}, job_id=f"gc-{self._clock.now_ns()}")
        return Idle(self._every_s)
