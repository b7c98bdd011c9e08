"""One world: real nodes on memory, a plan of what happens to them, and a look at all of it when it is quiet.

A round is lively first: users do things, faults happen, both at the moments that the plan says. Then the
faults stop, what is down is started, operators put right what only they can, and when nothing moves any more
every promise is checked (`checks`). Nothing in a node knows that it is being simulated.
"""

import random
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar
from unittest.mock import patch

import structlog
import trio

from protocol.messages.versions import OLDEST
from replicator.catalog.model import Snapshot
from replicator.catalog.records import verify_signature
from replicator.core.errors import ReplicatorError
from replicator.ingest.config import IngestConfig
from replicator.testing.determinism import run_in_virtual_time
from replicator.testing.mesh import MemoryMesh
from replicator.testing.power import PowerCut
from replicator.testing.site import MemorySite
from tests.simulation.checks import check_always, check_quiet
from tests.simulation.deeds import DEEDS
from tests.simulation.markers import Markers
from tests.simulation.mishaps import MISHAPS
from tests.simulation.model import SiteModel, Sources, Violation
from tests.simulation.pace import PaceWatch
from tests.simulation.people import PEOPLE
from tests.simulation.plan import ACTIVE_S, Plan, Step, Volume, make_plan
from tests.simulation.quiet import become_quiet
from tests.simulation.standing import set_standing
from tests.simulation.takeover import TAKEOVERS
from tests.simulation.tenancy import Place, Tenancy, note_snapshot
from tests.simulation.tenants import TENANT_DEEDS
from tests.simulation.trace import Trace
from tests.simulation.watch import watch
from tests.simulation.whole import Needs, check_whole

T = TypeVar("T")
_VERBS: Final = {**DEEDS, **MISHAPS, **PEOPLE, **TENANT_DEEDS, **TAKEOVERS}
_BUGS = frozenset(("job.bug", "worker.bug", "link.bug", "api.bug"))
"""What the product itself calls a mistake of ours."""
_VERIFY_ONCE: Final = lru_cache(maxsize=4096)(verify_signature)
"""A signature is good or is not: asked a thousand times in a world, worked out once. It was a tenth of the time."""
_WRITES_MAX, _WRITES_MAX_S = 10_000, 50
"""At once, and in each second that has passed: three times what the busiest worlds write. Who sends the same for ever
would otherwise do so for hours of ours."""
SMALL = IngestConfig(
    image_block_bytes=4096,
    piece_bytes_min=1024,
    piece_bytes_beyond_min=2048,
    piece_bytes_max=8192,
    batch_bytes=16 * 1024,
    commit_bytes=48 * 1024,
)
"""Everything in small, so that each border is crossed often."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world went."""

    seed: int
    problem: str
    """Empty if every promise held."""
    digest: str
    virtual_s: float
    cpu_s: float
    """Of ours; not part of the trace, as it is never the same twice."""
    lines: int
    markers: Markers


class World:
    """A mesh with its model. The steps and checks are functions over this."""

    def __init__(self, plan: Plan, *, show: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.chance = random.Random(f"world {plan.seed}")
        self.trace = Trace(show)
        self.markers = Markers()
        self.contents = Sources(plan.seed)
        self.mesh = MemoryMesh(plan.seed, ingest=SMALL, pause_s=self._pause_s)
        self.needs = Needs()
        self.volumes = list(plan.volumes)
        """What is protected, by whom: those of the plan, and those that a site goes on with for another."""
        self.tenancy = Tenancy()
        self.taken_over: dict[Place, Volume] = {}
        """Where a volume belongs, and whose turn it is instead."""
        self.models: dict[str, SiteModel] = {}
        self.paces: dict[str, PaceWatch] = {}
        self.paces_in: dict[str, PaceWatch] = {}
        self.problems: list[str] = []
        self._writes, self._began = 0, 0.0
        self.waits_for_hours = any(one.windows for one in plan.onward)
        self.is_lively = self.is_looked_at = False
        self.held_back: set[str] = set()
        """Sites that run the release before."""
        self.restarting: set[str] = set()
        self.ever_crashed: set[str] = set()
        self.ever_full: set[str] = set()
        self.burnt: set[str] = set()

    # -- names ----------------------------------------------------------------------------

    def site(self, number: int) -> MemorySite:
        return self.mesh.sites[f"site-{number}"]

    @property
    def sites(self) -> list[MemorySite]:
        return list(self.mesh.sites.values())

    def model(self, site: MemorySite) -> SiteModel:
        return self.models[site.name]

    def known_pairs(self) -> set[tuple[str, str]]:
        """Who may be asked by whom: the plan's pairs, both ways about."""
        return {(f"site-{x}", f"site-{y}") for a, b in self.plan.pairs for x, y in ((a, b), (b, a))}

    def volumes_of(self, site: MemorySite) -> list[Volume]:
        return [one for one in self.volumes if self.site(one.site) is site]

    def sometimes(self, name: str) -> None:
        self.markers.sometimes(name)

    # -- being careful --------------------------------------------------------------------

    async def attempt(self, site: MemorySite, what: str, deed: Callable[[], Awaitable[T]]) -> T | None:
        """Do something at a site; None if it says no, or goes down meanwhile."""
        if not site.is_up:
            return None
        answer: list[T] = []
        down = site.down
        try:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await down.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                answer.append(await deed())
                nursery.cancel_scope.cancel()
        except* PowerCut:
            self.trace.note(f"{site.name} {what}: off")
        except* (ReplicatorError, trio.TooSlowError) as group:
            self.trace.note(f"{site.name} {what}: {_first(group)!r}")
        return answer[0] if answer else None

    async def attempt_now(self, site: MemorySite, what: str, deed: Callable[[], T]) -> T | None:
        """The same for what takes no time."""

        async def later() -> T:
            return deed()

        return await self.attempt(site, what, later)

    def note_problem(self, problem: str) -> None:
        self.trace.note(f"PROBLEM {problem}")
        self.problems.append(problem)

    # -- seeing ---------------------------------------------------------------------------

    def look(self) -> None:
        """Write down every snapshot that is acknowledged now."""
        for site in self.sites:
            if site.is_up:
                model, state = self.model(site), (site.catalog.db, site.catalog.db.changes_count)
                if model.looked_at == state:
                    continue
                model.looked_at = state
                self.note_volumes(site)
                for snapshot in site.catalog.snapshots():
                    if snapshot.snapshot_id not in model.seen:
                        model.seen[snapshot.snapshot_id] = snapshot
                        self._note_taken(site, snapshot)

    def note_volumes(self, site: MemorySite) -> None:
        """Whose each volume is that is protected there: one that is protected no more does not say so itself."""
        for volume in site.catalog.volumes():
            if volume.path is not None:
                self.model(site).paths[volume.volume_id] = volume.path.decode()
                self.tenancy.whose[volume.volume_id] = (site.name, volume.path.decode())

    def _note_taken(self, site: MemorySite, snapshot: Snapshot) -> None:
        record = snapshot.record
        is_own = site.catalog.current_key(record.origin) == site.catalog.current_key(site.machine.identity.site_id)
        note_snapshot(self, site, snapshot, is_own=is_own)
        if is_own:
            self.sometimes(f"snapshot of {'a tree' if record.kind == 'tree' else 'an image'}")
            if record.system_id:
                self.sometimes("snapshot of several volumes")

    def _read_log(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        name = str(event.pop("event"))
        shown = {key: value for key, value in event.items() if key not in ("exc_info", "took_s")}
        self.trace.note(f"{name} {shown}")
        self.markers.read(name, event)
        if name in _BUGS:
            self.note_problem(f"{name}: {''.join(traceback.format_exception(sys.exception()))}")
        raise structlog.DropEvent

    def _read_wire(self, source: str, target: str, data: bytes) -> None:
        self.trace.note_bytes(source, target, data)
        self._writes += 1
        if self._writes > _WRITES_MAX + _WRITES_MAX_S * (trio.current_time() - self._began):
            self._writes = 0  # Said once; the next moment of rest ends this world.
            self.note_problem(f"{source} still sends to {target} after all the others: nothing comes to an end")
        excess = self.paces[source].note(data, trio.current_time())
        if excess > 0:
            self.note_problem(f"{source} sends {excess:.0f} bytes more than its rule allows")
        excess = self.paces_in[target].note(data, trio.current_time()) if self._can_be_told(source, target) else 0.0
        if excess > 0:
            self.note_problem(f"{target} is sent {excess:.0f} bytes more than its rule allows, at last by {source}")

    def _can_be_told(self, source: str, target: str) -> bool:
        """Whether both know how one tells the other how fast it wants to be sent to: the release before does not, and
        what comes from or to it is held back by credit alone."""
        return not {source, target} & self.held_back

    # -- life -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Raises `Violation`."""
        structlog.configure(processors=[self._read_log], cache_logger_on_first_use=False)
        self._began = trio.current_time()
        self.mesh.network.on_write = self._read_wire
        self.mesh.network.fragment = self.plan.faults.fragments
        try:
            async with self.mesh:
                await self._found()
                for number in range(self.plan.rounds):
                    await self._live(number)
                    await become_quiet(self)
                    self.is_looked_at = True
                    await check_quiet(self)
                    self.is_looked_at = False
        finally:
            structlog.reset_defaults()

    async def _found(self) -> None:
        """Make the sites, pair them, and give them their standing work."""
        for number in range(self.plan.sites):
            name, rate = f"site-{number}", self.plan.rates[number]
            self.models[name] = SiteModel()
            self.paces[name] = PaceWatch(rate)
            rate_in = self.plan.rates_in[number]
            self.paces_in[name] = PaceWatch(rate_in, senders=self.plan.sites)
            settings = {
                "rate_out": f"{rate}B/s" if rate else "none",
                "rate_in": f"{rate_in}B/s" if rate_in else "none",
                "gc_grace": "30s",
                # Half of them send blocks ahead of snapshots as small as those of a world.
                "ahead_from": "6KiB" if number % 2 else "4MiB",
            }
            if number in self.plan.old:
                self.held_back.add(name)
                settings["protocol"] = str(OLDEST)
            await self.mesh.add(name, **settings)
        for a, b in self.plan.pairs:
            for source, target in ((a, b), (b, a)):
                path = self.mesh.network.path(f"site-{source}", f"site-{target}")
                path.delay_s, path.jitter_s = self.plan.faults.delay_s, self.plan.faults.jitter_s
            await self.mesh.pair(self.site(a), self.site(b))
        for volume in self.plan.volumes:
            self.site(volume.site).sources[volume.path] = self.contents.make(volume.kind, self.chance)
            if volume.comes_later:
                self.tenancy.away[f"site-{volume.site}", volume.path] = frozenset()
            else:
                place = (f"site-{volume.site}", volume.path)
                self.tenancy.is_labelled(place, self.tenancy.may_be_labelled(place, volume.tenant))

    def _pause_s(self) -> float:
        """How long a worker thread takes: so that what was begun first may end last. Not while everything is at rest
        and only looked at: then nothing else is under way that it could be in the order of."""
        return 0.0 if self.is_looked_at else self.chance.choice((0.0, 0.0005, 0.004, 0.03))

    def forget_rates(self, site: MemorySite) -> None:
        """The rules that people had set are gone; what the file says holds again."""
        for paces, rates in ((self.paces, self.plan.rates), (self.paces_in, self.plan.rates_in)):
            paces[site.name].set_rate(rates[self.sites.index(site)])

    async def _live(self, number: int) -> None:
        self.is_lively = True
        for site in self.sites:
            set_standing(self, site, lively=True)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_looking)
            for step in self.plan.steps:
                if step.round == number:
                    await trio.sleep_until(began + step.at_s)
                    nursery.start_soon(self._do, step)
            await trio.sleep_until(began + ACTIVE_S)
            self.is_lively = False
            nursery.cancel_scope.cancel()

    async def _keep_looking(self) -> None:
        while True:
            self.look()
            watch(self)
            check_always(self)
            for site in self.sites:
                if site.is_up:
                    check_whole(self, site)
            await trio.sleep(1.0)

    async def _do(self, step: Step) -> None:
        self.trace.note(f"step {step.number} {step.verb} {step.site} {step.other} {step.amount:.3f}")
        verb = _VERBS[step.verb]
        await verb(self, step)
        self.look()


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


def run_plan(plan: Plan, *, show: Callable[[str], None] | None = None) -> Outcome:
    """Run one world to its end, in virtual time."""
    world = World(plan, show=show)
    virtual: list[float] = []
    cpu_began = time.process_time()

    async def main() -> None:
        began = trio.current_time()
        try:
            await world.run()
        finally:
            virtual.append(trio.current_time() - began)

    problem = ""
    try:
        with (
            patch("replicator.catalog.records.verify_signature", _VERIFY_ONCE),
            patch("replicator.sync.receipts.verify_signature", _VERIFY_ONCE),
        ):
            run_in_virtual_time(main, seed=plan.seed)
    except* Violation as group:
        problem = str(_first(group))
    except* Exception as group:  # noqa: BLE001  (a world that breaks down is a finding like any other)
        problem = "".join(traceback.format_exception(_first(group)))
    if world.problems:
        problem = "\n".join([*world.problems, problem])
    return Outcome(
        seed=plan.seed,
        problem=problem,
        digest=world.trace.digest(),
        virtual_s=sum(virtual),
        cpu_s=time.process_time() - cpu_began,
        lines=world.trace.lines_count,
        markers=world.markers,
    )


def run_seed(seed: int) -> Outcome:
    """The world of a seed."""
    return run_plan(make_plan(seed))


__all__ = ["Outcome", "World", "run_plan", "run_seed"]
