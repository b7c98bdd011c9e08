"""What a node does when nobody asks: scrub a little all the time, collect once in a while."""

from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocol.ids import SiteId
from replicator.core.ballast import Ballast
from replicator.core.ports import Offload, WallClock
from replicator.core.workers import Busy, Done, Idle, Outcome, Throttled
from replicator.jobs.parts import Parts
from replicator.jobs.recovery import recover_snapshots
from replicator.jobs.runner import JobRunner
from replicator.net.link import Link
from replicator.repair.ask import Healer
from replicator.repair.scrub import Scrubber
from replicator.store.ports import BlockStore

_FIRST_S: Final = 120.0
"""A node that has just started has better things to do than to scrub."""
_COLLECT_EVERY_S: Final = 6 * 3600.0
_MEND_EVERY_S: Final = 10.0
_MEND_MOST_S: Final = 6 * 3600.0
_MEND_BATCH: Final = 256
_BALLAST_EVERY_S: Final = 5.0
"""A look at two numbers of the file system."""


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


class Mending:
    """The worker that asks the peers again for what is broken: a peer that was away may be back."""

    name = "mend"

    def __init__(self, healer: Healer, store: BlockStore, links: Callable[[], Sequence[Link]]) -> None:
        self._healer = healer
        self._store = store
        self._links = links
        self._asked: frozenset[SiteId] = frozenset()
        self._pause_s = _MEND_EVERY_S
        self._next_at = 0.0

    async def step(self) -> Outcome:
        """Ask soon when a peer has come back, and ever more rarely while nobody can help."""
        broken = self._store.broken()
        peers = frozenset(link.peer for link in self._links())
        is_due = bool(peers - self._asked) or trio.current_time() >= self._next_at
        if not broken or not peers or not is_due:
            return Idle(_MEND_EVERY_S)
        answer = await self._healer.heal(broken[:_MEND_BATCH])
        self._asked = peers
        self._pause_s = _MEND_EVERY_S if answer.healed else min(self._pause_s * 2, _MEND_MOST_S)
        self._next_at = trio.current_time() + self._pause_s
        return Busy() if answer.healed and len(broken) > _MEND_BATCH else Idle(_MEND_EVERY_S)


class Recovering:
    """The worker that looks, once after a start, whether the store holds snapshots that the catalogue has forgotten.

    Beside the node's work and not before it: it goes through every row of the ledger.
    """

    name = "recover"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def step(self) -> Outcome:
        parts = self._parts
        recover_snapshots(parts.store, parts.catalog, await parts.offload.run(parts.collector.records))
        return Done()


class Ballasting:
    """The worker that sets room aside for a full disk, and again once there is room after one."""

    name = "ballast"

    def __init__(self, ballast: Ballast, offload: Offload, *, keep_free: Callable[[], int]) -> None:
        self._ballast = ballast
        self._offload = offload
        self._keep_free = keep_free

    async def step(self) -> Outcome:
        await self._offload.run(lambda: self._ballast.lay(keep_free=self._keep_free()))
        return Idle(_BALLAST_EVERY_S)


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
