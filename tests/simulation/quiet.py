"""The end of a round: faults stop, operators put right what only they can, and all work comes to an end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from protocol.wire.hashing import Kind
from replicator.catalog.audit import buried
from replicator.catalog.terms import PULL
from replicator.jobs.due import pending_snapshots
from replicator.jobs.pulls import Pulls
from replicator.testing.site import MemorySite
from tests.simulation.damage import has_other_copy
from tests.simulation.mishaps import start_again
from tests.simulation.model import Violation
from tests.simulation.people import give_rights_back
from tests.simulation.standing import set_standing
from tests.simulation.takeover import come_home
from tests.simulation.watch import read_history
from tests.simulation.whole import is_rightly_lost

if TYPE_CHECKING:
    from tests.simulation.world import World

_LINK_S = 120.0
_SETTLE_S = 1800.0
"""Longer than a liar is not asked for anything (ten minutes), and then the longest pause before a sync is tried again
(a quarter of an hour)."""


async def become_quiet(world: World) -> None:
    """Raises `Violation` if the mesh does not come to rest."""
    world.trace.note("quiet")
    _stop_faults(world)
    for site in world.sites:
        await site_is_up(world, site)
    world.look()
    await _settle(world, "new keys", lambda: [site.name for site in world.sites if _has_key_to_come(site)])
    await _pair_again(world)
    await come_home(world)
    for site in world.sites:
        set_standing(world, site, lively=False)
        for sync in site.catalog.syncs():
            site.view.syncs.pause(sync.sync_id, paused=False)
    await _settle(world, "jobs", lambda: [s.name for s in world.sites if _busy(s)])
    await _forgive(world)
    for _ in range(2):  # What the first could not heal, because its peer's copy was broken too, the second can.
        for site in world.sites:
            _check_scrub(world, site, await site.job("scrub"))
    await _settle(world, "records", lambda: [site.name for site in world.sites if _misses_record(world, site)])
    await _rest(world)
    if strays := [site for site in world.sites if _has_strays(world, site)]:
        # While somebody wrote, a scrub left them for the next time: their rows might have been about to come.
        for site in strays:
            await site.job("scrub")
        await _rest(world)
    world.look()
    read_history(world)


async def _forgive(world: World) -> None:
    """Who lied three times is not asked for ten minutes: what only a former liar has cannot be had before."""
    healers = [site.node.parts.healer for site in world.sites]
    if waits := max((healer.all_believed_in_s for healer in healers if healer is not None), default=0.0):
        await trio.sleep(waits)


async def _rest(world: World) -> None:
    """What is still to be brought is brought. A pull looks now and then only, and what it finds may be passed on."""
    for _ in world.sites:
        before = sum(len(model.seen) for model in world.models.values())
        await _settle(world, "syncs", lambda: [one for site in world.sites if (one := _waits_for(world, site))])
        await _settle(world, "jobs", lambda: [s.name for s in world.sites if _busy(s)])
        for site in world.sites:
            _pulls(site)._seen.clear()  # As after a start: each looks within a second, and not when its turn comes.
        looked = partial(_pulls_to_come, world)
        await _settle(world, "pulls", lambda looked=looked: [one for s in world.sites if (one := looked(s))])
        world.look()
        if before == sum(len(model.seen) for model in world.models.values()):
            return


def _pulls(site: MemorySite) -> Pulls:
    return next(one for one in site.node.workers._workers if isinstance(one, Pulls))


def _pulls_to_come(world: World, site: MemorySite) -> str:
    """The pulls of a site that have not looked yet, or have found what is not here yet."""
    pulls = _pulls(site)
    waiting: list[str] = []
    for sync in site.catalog.syncs():
        if sync.terms.direction != PULL or sync.paused or not sync.terms.open_hours.at(site.machine.clock.now_ns()):
            continue
        name, seen = site.catalog.peers.name_of(sync.peer), pulls._seen.get(sync.sync_id)
        if seen is None:
            waiting.append(f"{site.name}<{name}: no look yet")
            continue
        wanted = {one.record.snapshot_id for one in pulls.pending(sync)}
        there = world.mesh.sites[name]
        found = [one for one in there.catalog.snapshots() if one.snapshot_id in wanted]
        if pending := [one for one in found if not is_rightly_lost(world, there, one)]:
            waiting.append(f"{site.name}<{name}: {len(pending)} ({sync.last_error})")
    return "; ".join(waiting)


async def site_is_up(world: World, site: MemorySite) -> None:
    if site.is_up and site.machine.power.is_on and not site.down.is_set():
        return  # (One whose plug was pulled just now is not down yet, but it will be.)
    await site.down.wait()
    await start_again(world, site)


def _stop_faults(world: World) -> None:
    network = world.mesh.network
    for path in network.paths():
        path.is_blocked, path.rate_bytes = False, 0
    network.changed()
    for site in world.sites:
        machine = site.machine
        machine.disk.bytes_max = None
        machine.databases.is_full = False
        machine.clock.skew_s = 0.0
        machine.power.cut_at = None
        if machine.store is not None:
            machine.store.__dict__.pop("read_sealed", None)


async def _pair_again(world: World) -> None:
    """Who has revoked a peer, or has lost its catalogue, trusts again: that takes a person on both sides."""
    for a, b in world.plan.pairs:
        one, other = world.site(a), world.site(b)
        for here, there in ((one, other), (other, one)):
            _forget_stale_keys(here, there)
        known = {peer.name for peer in one.catalog.peers.all()}, {peer.name for peer in other.catalog.peers.all()}
        if other.name not in known[0] or one.name not in known[1]:
            code = one.view.invite(minutes=10)["code"]
            await other.view.join(code)
            world.sometimes("paired again")
        for here, there in ((one, other), (other, one)):
            give_rights_back(here, there.name)
            try:
                await here.node.mesh.wait_link(there.machine.identity.site_id, seconds=_LINK_S)
            except Exception as error:
                raise Violation(f"{here.name} and {there.name} do not find each other again: {error}") from error


def _forget_stale_keys(here: MemorySite, there: MemorySite) -> None:
    """Who was revoked while it changed its key, and paired anew, is known here twice: a person ends the older one."""
    for peer in here.catalog.peers.all():
        if peer.name == there.name and peer.site_id != there.machine.identity.site_id:
            here.view.revoke(peer.name)


def _check_scrub(world: World, site: MemorySite, report: dict[str, Any]) -> None:
    """Nothing may be broken but what a fault has hit: a peer that mends what we lost by ourselves would hide it."""
    model = world.model(site)
    if model.lost_catalogs:
        return  # What was deleted before, and half collected, may have come back with the records.
    for fault in report["faults"]:
        if bytes.fromhex(fault["block"]) not in model.damaged:
            raise Violation(f"{site.name} had {fault['block'][:12]} {fault['cause']}, and no fault has hit it")


def _has_key_to_come(site: MemorySite) -> bool:
    """Between two keys a node is down for a moment, and comes back by itself.

    One that was planned by a clock hours ahead, and lost its catalogue since, waits for the end of that overlap.
    """
    if not site.is_up:
        return True
    page = site.view.mesh.site()
    return page["next_site_id"] is not None and page["shown_in_s"] < _SETTLE_S


def _has_strays(world: World, site: MemorySite) -> bool:
    """Whether records lie in the store that were refused when the catalogue was lost, as keys were not known then."""
    if not world.model(site).lost_catalogs or site.machine.store is None:
        return False
    explained = {one.record_block for one in site.catalog.snapshots()} | set(buried(site.catalog.db).values())
    return not explained.issuperset(site.machine.store.of_kind(Kind.RECORD))


def _misses_record(world: World, site: MemorySite) -> bool:
    """Whether a snapshot is not in the catalogue as its record was broken when that was lost, and a peer has it."""
    return any(has_other_copy(world, site, block) for block in site.catalog.lost.unread())


def _busy(site: MemorySite) -> bool:
    return bool(site.node.jobs.running())


def _waits_for(world: World, site: MemorySite) -> str:
    """Which syncs of a site are not done, for people. What has lost its last copy is not owed."""
    catalog = site.catalog
    receipts = catalog.receipts()
    waiting = [
        f"{site.name}>{catalog.peers.name_of(sync.peer)}: {len(pending)} ({sync.last_error})"
        for sync in catalog.syncs()
        if (
            pending := [
                one for one in pending_snapshots(catalog, sync, receipts) if not is_rightly_lost(world, site, one)
            ]
        )
    ]
    return "; ".join(waiting)


async def _settle(world: World, what: str, still: object) -> None:
    assert callable(still)
    with trio.move_on_after(_SETTLE_S):
        while still():
            await trio.sleep(0.5)
            world.look()
            if world.problems:
                raise Violation(world.problems[0])
        return
    raise Violation(f"{what} have not come to an end: {still()}")
