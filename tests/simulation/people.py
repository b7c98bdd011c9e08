"""What people do to a mesh that a mesh cannot prevent: they trust less, change keys, and run other releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.messages.versions import OLDEST
from replicator.api.schema import PolicyRequest
from replicator.catalog.rights import PAIRED
from replicator.testing.site import MemorySite
from tests.simulation.mishaps import Mishap, start_again
from tests.simulation.plan import Step

if TYPE_CHECKING:
    from tests.simulation.world import World

_OVERLAP_S = 200.0
"""Longer than a round is lively: whoever could not be told while the network was bad hears of it when it is quiet."""


async def _revoke(world: World, step: Step) -> None:
    site, other = world.site(step.site), world.site(step.other)
    if (site.name, other.name) not in world.known_pairs():
        return
    if await world.attempt_now(site, "revoke", lambda: site.view.revoke(other.name)) is not None:
        world.sometimes("revoked")


async def _other_release(world: World, step: Step) -> None:
    """A site is stopped and comes back with the other release: upgraded, or put back to the one before."""
    site = world.site(step.site)
    if not site.is_up or site.name in world.restarting:
        return
    world.restarting.add(site.name)
    try:
        world.look()
        await world.attempt(site, "stop", site.stop)
        await site.down.wait()
        is_upgrade = site.name in world.held_back
        (world.held_back.discard if is_upgrade else world.held_back.add)(site.name)
        site.machine.configure(protocol="newest" if is_upgrade else str(OLDEST))
        world.sometimes("upgraded in mid-run" if is_upgrade else "put back to the version before")
        await trio.sleep(step.amount * 10)
        await start_again(world, site)
    finally:
        world.restarting.discard(site.name)


async def _rotate(world: World, step: Step) -> None:
    """A new key. Sites of the version before cannot be told of one, so nobody does this in a mixed mesh."""
    site = world.site(step.site)
    if world.plan.old or world.plan.faults.releases:
        return
    overlap_s = _OVERLAP_S + 100 * step.amount
    if await world.attempt_now(site, "rotate", lambda: site.view.mesh.rotate_key(overlap_s)) is not None:
        world.sometimes("key change begun")


async def _narrow(world: World, step: Step) -> None:
    """A peer may do less for a while."""
    site, other = world.site(step.site), world.site(step.other)
    if (site.name, other.name) not in world.known_pairs():
        return
    right = sorted(PAIRED)[step.pick % len(PAIRED)]
    request = PolicyRequest(deny=[right])
    if await world.attempt_now(site, "narrow", lambda: site.view.mesh.set_rights(other.name, request)) is not None:
        world.sometimes("right taken")
        await trio.sleep(5 + step.amount * 60)
        await world.attempt_now(site, "widen", lambda: give_rights_back(site, other.name))


def give_rights_back(site: MemorySite, peer: str) -> object:
    return site.view.mesh.set_rights(peer, PolicyRequest(allow=sorted(PAIRED)))


PEOPLE: dict[str, Mishap] = {
    "revoke": _revoke,
    "other_release": _other_release,
    "rotate": _rotate,
    "narrow": _narrow,
}
