"""Tenants come and go; volumes change hands, and orders are for other tenants, also while work is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from replicator.api.schema import ProtectRequest, SyncChange
from replicator.testing.site import MemorySite
from tests.simulation.plan import TENANTS, Step, Volume
from tests.simulation.standing import protect, standing
from tests.simulation.tenancy import scheduled

if TYPE_CHECKING:
    from tests.simulation.mishaps import Mishap
    from tests.simulation.world import World

_PATIENCE_S = 15.0
_LOOK_S = 0.05


async def _when(is_so: Callable[[], bool]) -> bool:
    """Wait for a moment that is worth waiting for; False if it does not come."""
    with trio.move_on_after(_PATIENCE_S):
        while not is_so():  # noqa: ASYNC110  (what is under way in a node has no event)
            await trio.sleep(_LOOK_S)
        return True
    return False


def _takes(site: MemorySite) -> bool:
    store = site.machine.store
    return site.is_up and store is not None and any(one.startswith("snapshot") for one in store.leases.holders())


async def _label(world: World, step: Step) -> None:
    """A volume is another tenant's from now on; half the time just while it is being taken."""
    here = [one for one in world.volumes if (f"site-{one.site}", one.path) not in world.tenancy.away]
    if not here:
        return
    volume = here[step.pick % len(here)]
    site, place = world.site(volume.site), (f"site-{volume.site}", volume.path)
    others = [one for one in (*TENANTS, "") if one != world.tenancy.label(place)]
    is_under_way = bool(step.pick & 64) and await _when(lambda: _takes(site))
    if place in world.tenancy.away or volume.path not in site.sources:
        return
    request = ProtectRequest(path=volume.path, tenant=others[(step.pick >> 8) % len(others)])
    fresh = world.tenancy.may_be_labelled(place, str(request.tenant))
    if await world.attempt_now(site, "label", lambda: site.view.protect(request)) is not None:
        world.tenancy.is_labelled(place, fresh)
        world.sometimes("label changed while a snapshot was taken" if is_under_way else "label changed")


async def _refilter(world: World, step: Step) -> None:
    """A standing order is for other tenants from now on; half the time just while it is being carried out."""
    if not world.plan.onward:
        return
    order = world.plan.onward[step.pick % len(world.plan.onward)]
    site = world.site(order.source if order.is_push else order.target)
    sync = standing(site, order) if site.is_up else None
    if sync is None:
        return
    tenants = ((TENANTS[0],), (TENANTS[1],), (TENANTS[1],), TENANTS)[(step.pick >> 8) % 4]

    def carries() -> bool:
        return site.is_up and any(view.row.args.get("sync") == sync.sync_id for view in site.node.jobs.running())

    is_under_way = bool(step.pick & 64) and await _when(carries)
    fresh = world.tenancy.order(
        f"site-{order.source}", f"site-{order.target}", "", is_push=order.is_push, tenants=tenants
    )
    change = SyncChange(tenants=list(tenants))
    if await world.attempt_now(site, "refilter", lambda: site.view.syncs.change(sync.sync_id, change)) is not None:
        world.tenancy.is_ordered(fresh)
        world.sometimes("filter changed while it was carried out" if is_under_way else "filter changed")


async def _leave(world: World, step: Step) -> None:
    """A tenant goes: nothing of it is protected any more, and half the time its snapshots at home are deleted as well.

    What other sites hold of it stays there: a delete never follows.
    """
    tenant = TENANTS[step.pick % len(TENANTS)]
    for volume in list(world.volumes):
        place = (f"site-{volume.site}", volume.path)
        if world.tenancy.label(place) == tenant and place not in world.tenancy.away:
            await unprotect(world, volume)
            if step.amount < 0.5:
                await _delete_all(world, volume)


async def unprotect(world: World, volume: Volume) -> None:
    """End a schedule. Whoever does not hear that it has ended says it again when it is quiet."""
    site, place = world.site(volume.site), (f"site-{volume.site}", volume.path)
    if not site.is_up:
        return

    def deed() -> frozenset[str]:
        site.view.unprotect(volume.path)
        return frozenset(job_id for job_id, _ in scheduled(site))

    if (jobs := await world.attempt_now(site, "unprotect", deed)) is not None:
        world.tenancy.leave(place, jobs)
        world.sometimes("tenant left")


async def _delete_all(world: World, volume: Volume) -> None:
    site, model = world.site(volume.site), world.model(world.site(volume.site))
    place = (site.name, volume.path)

    def deed() -> bool:
        world.look()  # A prune may just have let an older one go for the sake of one that goes here.
        for snapshot in site.catalog.snapshots():
            if world.tenancy.whose.get(snapshot.record.volume_id) == place and snapshot.snapshot_id not in model.held:
                model.deleted.add(snapshot.snapshot_id)
                site.view.delete_snapshot(snapshot.snapshot_id.hex())
        return True

    if await world.attempt_now(site, "delete all of a tenant", deed):
        world.sometimes("a tenant's snapshots deleted")
        await world.attempt(site, "collect", lambda: site.job("gc", grace_s=0, confirmed=True))


async def _come(world: World, step: Step) -> None:
    """A tenant comes, or comes back: with a volume that is its own from the first snapshot on."""
    waiting = [one for one in world.plan.volumes if (f"site-{one.site}", one.path) in world.tenancy.away]
    if not waiting:
        return
    volume = waiting[step.pick % len(waiting)]
    site, place = world.site(volume.site), (f"site-{volume.site}", volume.path)
    tenant = TENANTS[(step.pick >> 8) % len(TENANTS)]
    if not site.is_up or volume.path not in site.sources:
        return
    # From here on it may be protected; if the answer is cut off, it is asked for again when it is quiet.
    world.tenancy.away.pop(place, None)
    if await world.attempt_now(site, "come", lambda: protect(world, site, volume, tenant=tenant, lively=True)):
        world.sometimes("tenant came")


TENANT_DEEDS: dict[str, Mishap] = {
    "label": _label,
    "refilter": _refilter,
    "leave": _leave,
    "come": _come,
}

__all__ = ["TENANT_DEEDS", "unprotect"]
