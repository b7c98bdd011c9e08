"""Whose data is what, and who is to have which of it: kept outside of the product, from what people have asked for.

A request whose answer was cut off may hold or not, so both are possible from then on until somebody asks again. A
snapshot carries the label that its volume had in the moment in which it was begun; and it may be at another
site only if some order that held at that moment, or later, was for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from replicator.catalog.model import Snapshot
from replicator.catalog.terms import TENANT
from replicator.testing.site import MemorySite
from tests.simulation.model import Violation
from tests.simulation.plan import ACTIVE_S, Onward
from tests.simulation.whole import is_rightly_lost

if TYPE_CHECKING:
    from tests.simulation.world import World

Place = tuple[str, str]
"""The name of a site, and a path there."""
_ROUNDING_S = 1e-3


@dataclass(slots=True)
class Label:
    """A label that a volume may have had."""

    tenant: str
    since: float
    until: float = math.inf


@dataclass(slots=True)
class Order:
    """Something that somebody has asked to be carried."""

    source: str
    target: str
    path: str
    """Empty for every volume."""
    is_push: bool
    tenants: tuple[str, ...]
    since: float
    until: float = math.inf
    is_sure: bool = True

    def is_for(self, place: Place | None, tenant: str) -> bool:
        """Whether a snapshot of a volume that belongs there, and that carries this label, is to be carried by it."""
        return (not self.tenants or tenant in self.tenants) and (
            not self.path or place is None or place == (self.source, self.path)
        )


@dataclass(slots=True)
class Tenancy:
    """The labels and orders of a world."""

    labels: dict[Place, list[Label]] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    asked_for: set[tuple[str, bytes]] = field(default_factory=set)
    """Single snapshots that somebody has had fetched, and where."""
    whose: dict[bytes, Place] = field(default_factory=dict)
    """Where each volume that was ever seen belongs."""
    first_seen: dict[bytes, float] = field(default_factory=dict)
    away: dict[Place, frozenset[str]] = field(default_factory=dict)
    """What is not protected just now, and the jobs that there were when it ceased to be."""

    # -- labels ---------------------------------------------------------------------------

    def label(self, place: Place) -> str:
        """The one that was asked for last."""
        found = self.labels.get(place)
        return found[-1].tenant if found else ""

    def may_be_labelled(self, place: Place, tenant: str) -> Label:
        """Somebody is asking for it."""
        fresh = Label(tenant, trio.current_time())
        self.labels.setdefault(place, [Label("", 0.0)]).append(fresh)
        return fresh

    def is_labelled(self, place: Place, fresh: Label) -> None:
        """It was answered."""
        for one in self.labels[place]:
            if one is not fresh:
                one.until = min(one.until, trio.current_time())

    # -- orders ---------------------------------------------------------------------------

    def order(self, source: str, target: str, path: str, *, is_push: bool, tenants: tuple[str, ...]) -> Order:
        """Somebody is asking for it."""
        now = trio.current_time()
        fresh = Order(source, target, path, is_push, tenants, now, is_sure=False)
        self.orders.append(fresh)
        return fresh

    def is_ordered(self, fresh: Order) -> None:
        """It was answered: what was ordered before between the two, for the same, holds no more."""
        fresh.is_sure = True
        same = (fresh.source, fresh.target, fresh.path, fresh.is_push)
        for one in self.orders:
            if one is not fresh and (one.source, one.target, one.path, one.is_push) == same:
                one.until = min(one.until, trio.current_time())

    def tenants_of(self, order: Onward) -> tuple[str, ...]:
        """Whose data a standing order is for by now."""
        names = (f"site-{order.source}", f"site-{order.target}")
        found = [
            one
            for one in self.orders
            if (one.source, one.target) == names and not one.path and one.is_push == order.is_push
        ]
        return found[-1].tenants if found else order.tenants

    def leave(self, place: Place, jobs: frozenset[str]) -> None:
        """A volume is protected no more: its own syncs end as well."""
        self.away[place] = jobs
        for one in self.orders:
            if (one.source, one.path) == place:
                one.until = min(one.until, trio.current_time())


def tenant_in(snapshot: Snapshot) -> str:
    """The label that a snapshot carries."""
    return next((tag.removeprefix(TENANT) for tag in snapshot.record.tags if tag.startswith(TENANT)), "")


def _taken_between(world: World, snapshot: Snapshot) -> tuple[float, float]:
    """When a snapshot was begun: exactly, by a clock that was never wrong; somewhere before it was seen, otherwise."""
    place = world.tenancy.whose.get(snapshot.record.volume_id)
    seen = world.tenancy.first_seen[snapshot.snapshot_id]
    if world.plan.faults.clock_jumps or place is None or place[0] in world.burnt:
        return seen - 2 * ACTIVE_S, seen
    clock = world.mesh.sites[place[0]].machine.clock
    taken = trio.current_time() - (clock.now_ns() - snapshot.record.taken_ns) / 1e9
    return taken - _ROUNDING_S, taken + _ROUNDING_S


def note_snapshot(world: World, site: MemorySite, snapshot: Snapshot, *, is_own: bool) -> None:
    """A snapshot is seen in a catalogue. Raises `Violation` if no order was for it there, or if its label is wrong."""
    tenancy = world.tenancy
    tenancy.first_seen.setdefault(snapshot.snapshot_id, trio.current_time())
    place = tenancy.whose.get(snapshot.record.volume_id)
    earliest, latest = _taken_between(world, snapshot)
    if is_own:
        labels = [] if place is None else tenancy.labels.get(place, [])
        possible = {one.tenant for one in labels if one.since <= latest and one.until >= earliest} or {""}
        if tenant_in(snapshot) not in possible:
            told = tenant_in(snapshot) or "nobody"
            raise Violation(f"{site.name} has {_name(snapshot)} for {told}, and it was {sorted(possible)}'s")
        return
    may = [
        one
        for one in tenancy.orders
        if one.target == site.name and one.until >= earliest and one.is_for(place, tenant_in(snapshot))
    ]
    if not may and (site.name, snapshot.snapshot_id) not in tenancy.asked_for:
        raise Violation(
            f"{site.name} was given {_name(snapshot)} of {tenant_in(snapshot) or 'nobody'}, and no order was for that"
        )
    if may and all(one.tenants for one in may):
        world.sometimes("carried for a tenant")
        if all(not one.is_push for one in may):
            world.sometimes("fetched for a tenant")


def check_carried(world: World) -> None:
    """When it is quiet: what a push is for is there, and an ended schedule takes nothing more. Raises `Violation`."""
    for order in world.tenancy.orders:
        if order.until == math.inf and order.is_sure and order.is_push:
            _check_order(world, order)
    for (name, path), before in world.tenancy.away.items():
        _check_away(world, world.mesh.sites[name], path, before)


def _check_order(world: World, order: Order) -> None:
    source, target = world.mesh.sites[order.source], world.mesh.sites[order.target]
    known = world.model(target)
    for snapshot in source.catalog.snapshots():
        place = world.tenancy.whose.get(snapshot.record.volume_id)
        if place is None or place[0] == target.name or (order.path and not _is_at(source, snapshot, order.path)):
            continue
        is_there = snapshot.snapshot_id in known.seen or snapshot.snapshot_id in known.deleted
        if not order.is_for(place, tenant_in(snapshot)):
            if not is_there:
                world.sometimes("kept from another tenant's site")
        elif not (is_there or known.lost_catalogs or is_rightly_lost(world, source, snapshot)):
            raise Violation(f"{target.name} was to be given {_name(snapshot)} by {source.name}, and never was")


def _is_at(site: MemorySite, snapshot: Snapshot, path: str) -> bool:
    """Whether a snapshot is of the volume that is protected there now: a lost catalogue makes the next one another."""
    return site.catalog.volume(snapshot.record.volume_id).path == path.encode()


def _check_away(world: World, site: MemorySite, path: str, before: frozenset[str]) -> None:
    ids = {volume.hex() for volume, place in world.tenancy.whose.items() if place == (site.name, path)}
    for job_id, volumes in scheduled(site):
        if job_id not in before and ids.intersection(volumes):
            raise Violation(f"{site.name} protects {path} no more, and its schedule has begun {job_id}")


def scheduled(site: MemorySite) -> list[tuple[str, list[str]]]:
    """The snapshot jobs that a schedule, or an order that runs continuously, has begun here, and of which volumes."""
    return [
        (view.row.job_id, view.row.args["volumes"])
        for view in site.node.jobs.views(limit=1000)
        if view.row.kind == "snapshot" and view.row.job_id.startswith(("scheduled-", "continuous-"))
    ]


def _name(snapshot: Snapshot) -> str:
    record = snapshot.record
    return f"{record.volume_name}#{record.sequence} ({record.snapshot_id.hex()[:8]})"
