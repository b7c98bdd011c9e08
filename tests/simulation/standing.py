"""What people have set up to go on by itself: schedules, labels and standing orders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replicator.api.schema import PolicyRequest, SyncRequest
from replicator.catalog.model import EVERY_VOLUME, SiteSync
from replicator.catalog.terms import PUSH
from replicator.testing.site import MemorySite
from tests.simulation.plan import Onward, Volume

if TYPE_CHECKING:
    from tests.simulation.world import World


def set_standing(world: World, site: MemorySite, *, lively: bool) -> None:
    """The schedules and syncs of a site, as the plan has them. Quiet means a schedule that is not due for long."""
    for volume in world.volumes_of(site):
        place = (site.name, volume.path)
        if place not in world.tenancy.away:
            protect(world, site, volume, tenant=world.tenancy.label(place), lively=lively)
    known = {peer.name for peer in site.catalog.peers.all()}
    for order in world.plan.onward:
        here, there = (order.source, order.target) if order.is_push else (order.target, order.source)
        if f"site-{here}" == site.name and f"site-{there}" in known:
            _order(world, site, f"site-{there}", order, lively=lively)
        elif f"site-{there}" == site.name and f"site-{here}" in known and order.tenants and not order.is_push:
            # Who may read all that is here says itself what it fetches.
            site.view.mesh.set_rights(f"site-{here}", PolicyRequest(allow=["read-all"]))


def protect(world: World, site: MemorySite, volume: Volume, *, tenant: str, lively: bool) -> bool:
    """As the command does it, and written down here. Quiet means a schedule that is not due for long."""
    known = {peer.name for peer in site.catalog.peers.all()}
    to = [f"site-{number}" for number in volume.to if f"site-{number}" in known]
    every_s = volume.every_s if lively or not volume.every_s else 10_000_000.0
    label = world.tenancy.may_be_labelled((site.name, volume.path), tenant)
    orders = [world.tenancy.order(site.name, there, volume.path, is_push=True, tenants=()) for there in to]
    keep = str(volume.keep) if volume.keep and every_s else ""
    site.protect(volume.path, every_s=every_s, keep=keep, to=to, tenant=tenant)
    world.note_volumes(site)  # Its tenant may leave before anybody looks.
    world.tenancy.is_labelled((site.name, volume.path), label)
    for order in orders:
        world.tenancy.is_ordered(order)
    return True


def _order(world: World, site: MemorySite, there: str, order: Onward, *, lively: bool) -> None:
    tenants = world.tenancy.tenants_of(order)
    asked = world.tenancy.order(
        f"site-{order.source}", f"site-{order.target}", "", is_push=order.is_push, tenants=tenants
    )
    request = SyncRequest(
        to=there if order.is_push else "",
        source="" if order.is_push else there,
        tenants=list(tenants),
        cron=order.cron if lively else "",
        rpo_s=order.rpo_s if lively else 0.0,
        windows=order.windows if lively else "",
        do_not_expire=order.do_not_expire,
    )
    site.view.syncs.add(request)
    world.tenancy.is_ordered(asked)


def standing(site: MemorySite, order: Onward) -> SiteSync | None:
    """The order as the site knows it, if it does."""
    there = f"site-{order.target if order.is_push else order.source}"
    for sync in site.catalog.syncs():
        is_same = sync.volume_id == EVERY_VOLUME and (sync.terms.direction == PUSH) == order.is_push
        if is_same and site.catalog.peers.name_of(sync.peer) == there:
            return sync
    return None
