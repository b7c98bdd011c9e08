"""What a node does when nobody asks: scrub a little all the time, collect once in a while, compare once a week."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from protocol.ids import SiteId, VolumeId
from protocol.wire.hashing import Kind
from replicator.catalog.catalog import Catalog
from replicator.core.ballast import Ballast, NoBallast
from replicator.core.brake import ClockBrake
from replicator.core.ports import Offload, WallClock
from replicator.core.workers import Busy, Idle, Outcome, Throttled
from replicator.jobs.runner import JobRunner
from replicator.net.link import Link
from replicator.repair.ask import Healer, disk_order, in_disk_order
from replicator.repair.pace import Pace, ScrubPromise, due_ns, plan_pace
from replicator.repair.scrub import PART_BYTES, Scrubber, standing_of
from replicator.store.ports import BlockStore, Fault
from replicator.sync.standing import Standing

_FIRST_S: Final = 120.0
"""A node that has just started has better things to do than to scrub."""
_LOOK_AGAIN_S: Final = 3600.0
"""Sleeping through the end of a pause costs as much of the next pass: clocks are set, machines sleep."""
_COLLECT_EVERY_S: Final = 6 * 3600.0
_MEND_EVERY_S: Final = 10.0
_MEND_MOST_S: Final = 6 * 3600.0
_MEND_BATCH: Final = 1024
"""Some 60 MB: as much as shares a flush."""
_COMPARE_LOOK_S: Final = 600.0
_COMPARE_EVERY_S: Final = 7 * 86_400.0
_MEND_BATCHES_MAX: Final = 16
"""A round asks for 16384 blocks: some gigabytes, and some megabytes of audit."""
_BALLAST_EVERY_S: Final = 5.0
"""A look at two numbers of the file system."""
_CLOCK_EVERY_S: Final = 60.0


class Scrubbing:
    """The worker that keeps the promise "everything is read again within `every_s`". `repair/pace.py` says how."""

    name = "scrub"

    def __init__(
        self, scrubber: Scrubber, *, promise: ScrubPromise, clock: WallClock, is_busy: Callable[[], bool]
    ) -> None:
        self._scrubber = scrubber
        self._promise = promise
        self._clock = clock
        self._is_busy = is_busy
        self._waited = False

    async def step(self) -> Outcome:
        """One part and a pause, or a pause only: between two passes, and while others have better use for the disk."""
        if not self._waited:
            self._waited = True
            return Idle(_FIRST_S)
        now_ns, scrubber = self._clock.now_ns(), self._scrubber
        if scrubber.is_between_passes:
            began = scrubber.pass_now.started_ns
            wait_s = (due_ns(self._promise, began) - now_ns) / 1e9
            if began and 0 < wait_s <= self._promise.every_s:  # A clock that was set back proves nothing.
                return Idle(min(wait_s, _LOOK_AGAIN_S))
        pace = self._pace(now_ns)
        if not pace.reads:
            return Throttled(pace.pause_s)
        done = await scrubber.step()
        if not done.read_bytes:
            return Busy() if not done.is_complete else Idle(0.0)
        return Throttled(max(0.0, self._pace(self._clock.now_ns()).pause_s - done.took_s))

    def _pace(self, now_ns: int) -> Pace:
        standing = standing_of(self._scrubber, now_ns=now_ns)
        return plan_pace(self._promise, standing, now_ns=now_ns, part_bytes=PART_BYTES, is_busy=self._is_busy())


class _Round:
    """Going through what is broken, a batch at a time, so that nothing waits behind what nobody can mend.

    Each ask leaves a line in the audit, so a round is bounded; the next one goes on where it ended.
    """

    def __init__(self) -> None:
        self._todo: list[Fault] = []
        self._after: tuple[int, int, bytes] = (0, 0, b"")
        self._is_whole = True
        self.healed = 0

    @property
    def is_over(self) -> bool:
        return not self._todo

    def begin(self, broken: Sequence[Fault]) -> bool:
        """Answers whether there is anything to do. Listed once a round: the list may be long."""
        ordered = in_disk_order(broken)
        ahead = [fault for fault in ordered if disk_order(fault) > self._after] or ordered
        self._todo = ahead[: _MEND_BATCH * _MEND_BATCHES_MAX]
        self._is_whole = len(self._todo) == len(ahead)
        self.healed = 0
        return bool(ahead)

    def next_batch(self) -> list[Fault]:
        batch, self._todo = self._todo[:_MEND_BATCH], self._todo[_MEND_BATCH:]
        at_the_end = self.is_over and self._is_whole
        self._after = (0, 0, b"") if at_the_end else disk_order(batch[-1])
        return batch

    def note(self, healed: int) -> None:
        self.healed += healed


class Mending:
    """The worker that asks the peers again for what is broken: a peer that was away may be back.

    A record that is healed may be all that was left of a snapshot after the catalogue was lost: `enter` sees that it is
    in there again.
    """

    name = "mend"

    def __init__(
        self,
        healer: Healer,
        store: BlockStore,
        links: Callable[[], Sequence[Link]],
        *,
        enter: Callable[[], Awaitable[None]],
    ) -> None:
        self._healer = healer
        self._enter = enter
        self._store = store
        self._links = links
        self._asked: frozenset[SiteId] = frozenset()
        self._pause_s = _MEND_EVERY_S
        self._next_at = 0.0
        self._round = _Round()

    async def step(self) -> Outcome:
        """Ask soon when a peer has come back, and ever more rarely while nobody can help; and let readers go first."""
        await self._healer.finish_rest()
        peers = frozenset(link.peer for link in self._links())
        is_due = bool(peers - self._asked) or trio.current_time() >= self._next_at
        if peers and is_due:
            await self._enter()  # What cannot be read is broken from now on, if it was not known to be.
        if not peers or not is_due or self._healer.is_awaited:
            return Idle(_MEND_EVERY_S)
        if self._round.is_over and not self._round.begin(self._store.broken()):
            return Idle(_MEND_EVERY_S)
        answer = await self._healer.heal(self._round.next_batch())
        self._round.note(len(answer.healed))
        if any(fault.kind == Kind.RECORD for fault in answer.healed):
            await self._enter()
        if not self._round.is_over:
            return Busy()
        self._asked = peers
        self._pause_s = _MEND_EVERY_S if self._round.healed else min(self._pause_s * 2, _MEND_MOST_S)
        self._next_at = trio.current_time() + self._pause_s
        return Idle(_MEND_EVERY_S)


class Ballasting:
    """The worker that sets room aside for a full disk, and again once there is room after one."""

    name = "ballast"

    def __init__(self, ballast: Ballast | NoBallast, offload: Offload, *, keep_free: Callable[[], int]) -> None:
        self._ballast = ballast
        self._offload = offload
        self._keep_free = keep_free

    async def step(self) -> Outcome:
        await self._offload.run(lambda: self._ballast.lay(keep_free=self._keep_free()))
        return Idle(_BALLAST_EVERY_S)


class WatchingClock:
    """The worker that looks whether the wall clock leaps, so that a leap is seen when it happens."""

    name = "clock"

    def __init__(self, brake: ClockBrake) -> None:
        self._brake = brake

    async def step(self) -> Outcome:
        self._brake.why()
        return Idle(_CLOCK_EVERY_S)


class Collecting:
    """The worker that starts a collection a few times a day, unless deletion is switched off."""

    name = "collect"

    def __init__(
        self, jobs: JobRunner, *, clock: WallClock, why_off: Callable[[], str], every_s: float = _COLLECT_EVERY_S
    ) -> None:
        self._jobs = jobs
        self._clock = clock
        self._why_off = why_off
        self._every_s = every_s
        self._waited = False

    async def step(self) -> Outcome:
        if not self._waited:
            self._waited = True
            return Idle(self._every_s)
        if not self._why_off() and not self._jobs.is_active("gc", "gc"):
            self._jobs.submit("gc", {"grace_s": None}, job_id=f"gc-{self._clock.now_ns()}")
        return Idle(self._every_s)


class Comparing:
    """The worker that has the newest snapshot of each volume compared with other sites, once a week, under a fresh key.

    Sites whose standing roots are equal are one class: one of them speaks for all. Of two sites the
    one with the lower id asks, as it does for the roots.
    """

    name = "compare"

    def __init__(
        self, standing: Standing, *, site_id: SiteId, catalog: Catalog, jobs: JobRunner, clock: WallClock
    ) -> None:
        self._standing = standing
        self._site_id = site_id
        self._catalog = catalog
        self._jobs = jobs
        self._clock = clock

    async def step(self) -> Outcome:
        """At most one comparison: they read the whole ledger."""
        receipts = self._catalog.receipts()
        for volume in self._catalog.volumes():
            for peer in self._representatives(volume.volume_id):
                held = [one for one in self._catalog.snapshots(volume.volume_id) if (one.snapshot_id, peer) in receipts]
                fact = f"compared:{volume.volume_id.hex()}:{peer.hex()}"
                if held and self._is_due(self._catalog.fact(fact)):
                    now = self._clock.now_ns()
                    self._catalog.set_fact(fact, str(now))
                    named = {"snapshot": held[-1].snapshot_id.hex(), "peer": peer.hex(), "fresh": True}
                    self._jobs.submit("audit", named, job_id=f"compare-{volume.volume_id.hex()[:8]}-{now}")
                    return Idle(_COMPARE_LOOK_S)
        return Idle(_COMPARE_LOOK_S)

    def _representatives(self, volume: VolumeId) -> list[SiteId]:
        """One site of each class that is ours to ask."""
        found: list[SiteId] = []
        for one in self._standing.classes_of(volume):
            found += sorted(site for site in one if self._site_id < site)[:1]
        return found

    def _is_due(self, last: str | None) -> bool:
        """Also if the clock was set back since."""
        now = self._clock.now_ns()
        return last is None or not now - int(_COMPARE_EVERY_S * 1e9) < int(last) <= now
