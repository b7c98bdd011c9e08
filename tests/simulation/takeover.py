"""A site is gone, or is set aside, and another one goes on with its volumes: what there is of failover.

The other site restores the newest copy that it has, protects what it restored, and from then on it is a volume of its
own. When the first site is back, somebody fetches what was done meanwhile, puts it in place there, and ends the
other's turn. That is all that the product has: nothing keeps both from going on at once, and the
volume that went on is another one, with a name of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from replicator.api.schema import PolicyRequest
from replicator.catalog.model import Snapshot
from replicator.core.errors import JobError, ReplicatorError
from replicator.testing.site import MemorySite
from tests.simulation.mishaps import note_crash, start_again
from tests.simulation.model import SiteModel, Violation
from tests.simulation.plan import Step, Volume
from tests.simulation.standing import protect
from tests.simulation.tenancy import Place
from tests.simulation.tenants import unprotect
from tests.simulation.whole import is_rightly_lost

if TYPE_CHECKING:
    from tests.simulation.mishaps import Mishap
    from tests.simulation.world import World


async def _burn(world: World, step: Step) -> None:
    """All that was at a site is gone, its key too. Somebody goes on with what it had; a new machine takes its place."""
    site = world.site(step.site)
    if not site.is_up or site.name in world.restarting:
        return
    world.restarting.add(site.name)
    try:
        world.look()
        note_crash(world, site)
        await site.crash()
        if not site.down.is_set():
            return  # Somebody has switched it on again in this very moment.
        site.machine.burn()
        world.sometimes("site burnt")
        world.burnt.add(site.name)
        world.models[site.name] = SiteModel()
        world.forget_rates(site)
        await trio.sleep(1 + step.amount * 10)
        await _go_on_elsewhere(world, site, step)
        await trio.sleep(step.amount * 20)
        await start_again(world, site)
    finally:
        world.restarting.discard(site.name)


async def _take_over(world: World, step: Step) -> None:
    """Somebody wants another site to go on: the first one is stopped for it, or goes on too."""
    site = world.site(step.site)
    if not site.is_up or site.name in world.restarting:
        return
    if step.amount < 0.4:
        await _go_on_elsewhere(world, site, step)
        return
    world.restarting.add(site.name)
    try:
        world.look()
        await world.attempt(site, "stop", site.stop)
        await site.down.wait()
        await _go_on_elsewhere(world, site, step)
        await trio.sleep(step.amount * 20)
        await start_again(world, site)
    finally:
        world.restarting.discard(site.name)


def _copies(world: World, site: MemorySite, place: Place) -> list[Snapshot]:
    """What a site has of a volume that belongs there, the newest last."""
    whose = world.tenancy.whose
    found = [one for one in site.catalog.snapshots() if whose.get(one.record.volume_id) == place]
    return sorted(found, key=lambda one: (one.record.taken_ns, one.record.sequence))


async def _go_on_elsewhere(world: World, home: MemorySite, step: Step) -> None:
    for volume in world.volumes_of(home):
        place = (home.name, volume.path)
        holders = [one for one in world.sites if one is not home and one.is_up and _copies(world, one, place)]
        if holders and place not in world.taken_over and volume.path.startswith("/srv/"):
            await _go_on(world, holders[step.pick % len(holders)], place, volume)


async def _go_on(world: World, site: MemorySite, place: Place, volume: Volume) -> None:
    newest = _copies(world, site, place)[-1]
    content = await world.attempt(site, "take over", lambda: site.restore(newest.snapshot_id.hex()))
    if content is None or not site.is_up:
        return
    world.contents.check(content, f"{site.name} takes over {place[1]}")
    number = world.sites.index(site)
    neighbours = sorted({a + b - number for a, b in world.plan.pairs if number in (a, b)})
    path = f"/taken-over/{place[0]}{place[1]}"
    turn = Volume(
        site=number,
        path=path,
        kind=volume.kind,
        every_s=volume.every_s or 20.0,
        keep=volume.keep,
        to=tuple(neighbours),
        tenant=world.tenancy.label(place),
    )
    # A version of its own: a second turn of the same site may begin with an older copy than its first one ended with.
    site.sources[path] = world.contents.change(content, world.chance)  # type: ignore[arg-type]
    world.volumes = [one for one in world.volumes if (one.site, one.path) != (number, path)] + [turn]
    world.tenancy.away.pop((site.name, path), None)
    world.taken_over[place] = turn
    if await world.attempt_now(site, "go on", lambda: protect(world, site, turn, tenant=turn.tenant, lively=True)):
        world.sometimes("another site went on")


async def come_home(world: World) -> None:
    """When it is quiet, and all are paired: what was done elsewhere comes back. Raises `Violation`."""
    for place, turn in list(world.taken_over.items()):
        await _come_home(world, place, world.site(turn.site), (f"site-{turn.site}", turn.path))
        await unprotect(world, turn)
        del world.taken_over[place]
    for name in sorted(world.burnt):
        for volume in world.volumes_of(world.mesh.sites[name]):
            is_over = (name, volume.path) in world.tenancy.away and volume not in world.plan.volumes
            if volume.path not in world.mesh.sites[name].sources and not is_over:
                await _come_home(world, (name, volume.path), None, (name, volume.path))


async def _come_home(world: World, place: Place, holder: MemorySite | None, whose: Place) -> None:
    """Fetch the newest that anybody has and put it in its place; begin with something new if nobody has anything."""
    home = world.mesh.sites[place[0]]
    holders = [one for one in ([holder] if holder is not None else world.sites) if one is not home]
    holders = [one for one in holders if (one.name, home.name) in world.known_pairs()]
    found = [(_copies(world, one, whose)[-1], one) for one in holders if _copies(world, one, whose)]
    kind = next(one.kind for one in world.volumes if (f"site-{one.site}", one.path) == place)
    content = home.sources.get(place[1]) or world.contents.make(kind, world.chance)
    if found:
        newest, there = max(found, key=lambda one: (one[0].record.taken_ns, one[0].record.sequence))
        try:
            content = await _fetch(world, home, there, newest)
        except ReplicatorError as error:
            if not is_rightly_lost(world, there, newest):
                raise Violation(f"{home.name} does not get {place[1]} back from {there.name}: {error}") from error
    # Life goes on there, with a version that is newer than all.
    home.sources[place[1]] = world.contents.change(content, world.chance)  # type: ignore[arg-type]


async def _fetch(world: World, home: MemorySite, there: MemorySite, newest: Snapshot) -> dict[str, bytes] | bytes:
    name = newest.snapshot_id.hex()
    if not home.catalog.has_snapshot(newest.snapshot_id):
        world.tenancy.asked_for.add((home.name, newest.snapshot_id))
        there.view.mesh.set_rights(home.name, PolicyRequest(allow=["read-all"]))
        try:
            done = await home.job("sync", fetch="", peer=there.name, snapshot=name)
            if done["sent"]:
                world.sometimes("fetched home")
        except JobError:
            if not home.catalog.has_snapshot(newest.snapshot_id):
                raise
            # It was pushed here in this very moment: then there is nothing left to fetch.
        there.view.mesh.set_rights(home.name, PolicyRequest(deny=["read-all"]))
    content = await home.restore(name)
    world.contents.check(content, f"{home.name} takes back {newest.record.volume_name}")
    world.sometimes("came home")
    return content


TAKEOVERS: dict[str, Mishap] = {"burn": _burn, "take_over": _take_over}

__all__ = ["TAKEOVERS", "come_home"]
