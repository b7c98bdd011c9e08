"""What users and operators do, through the same verbs that the API calls."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from protocol.ids import BlockId
from protocol.wire.hashing import Kind
from replicator.api.schema import ThrottleRequest
from replicator.catalog.model import Snapshot
from replicator.core.errors import Held
from replicator.testing.site import MemorySite
from tests.simulation.damage import has_other_copy, is_sound
from tests.simulation.plan import Step

if TYPE_CHECKING:
    from tests.simulation.world import World

Deed = Callable[["World", Step], Awaitable[None]]


def chosen(site: MemorySite, step: Step) -> Snapshot | None:
    """Some snapshot that is at the site."""
    found = site.catalog.snapshots() if site.is_up else []
    return found[step.pick % len(found)] if found else None


async def _change(world: World, step: Step) -> None:
    volume = world.volumes[step.pick % len(world.volumes)]
    sources = world.site(volume.site).sources
    if volume.path in sources:
        sources[volume.path] = world.contents.change(sources[volume.path], random.Random(step.pick))  # type: ignore[arg-type]


async def _snapshot(world: World, step: Step) -> None:
    volume = world.volumes[step.pick % len(world.volumes)]
    site = world.site(volume.site)
    await world.attempt(site, "snapshot", lambda: site.snapshot(volume.path))


async def _snapshot_all(world: World, step: Step) -> None:
    site = world.site(world.volumes[step.pick % len(world.volumes)].site)
    await world.attempt(site, "snapshot all", lambda: site.job("snapshot"))


async def restore_and_check(world: World, site: MemorySite, snapshot: Snapshot) -> bool:
    """Give a snapshot back and compare. Raises `Violation`, and whatever keeps it from being given back."""
    content = await site.restore(snapshot.snapshot_id.hex())
    world.contents.check(content, f"{site.name}: {snapshot.record.volume_name} {snapshot.snapshot_id.hex()[:8]}")
    return True


async def _restore(world: World, step: Step) -> None:
    site = world.site(step.site)
    if (snapshot := chosen(site, step)) is None:
        return
    healed_before = _healed(site)
    done = await world.attempt(site, "restore", lambda: restore_and_check(world, site, snapshot))
    if done and site.is_up and _healed(site) > healed_before:
        world.sometimes("healed while restoring")


def _healed(site: MemorySite) -> int:
    return site.catalog.repair_counts().get(("asked", "healed"), 0)


def _job(kind: str, **args: Any) -> Deed:
    async def deed(world: World, step: Step) -> None:
        site = world.site(step.site)
        await world.attempt(site, kind, lambda: site.job(kind, **args))

    return deed


async def _audit(world: World, step: Step) -> None:
    site, other = world.site(step.site), world.site(step.other)
    if (snapshot := chosen(site, step)) is None:
        return
    if other.is_up:  # Preferably one that both have, or there is nothing to compare.
        both = [one for one in site.catalog.snapshots() if other.catalog.has_snapshot(one.snapshot_id)]
        snapshot = both[step.pick % len(both)] if both else snapshot
    name = snapshot.snapshot_id.hex()
    if world.plan.faults.rots and step.pick % 2 and site.is_up and other.is_up:
        await _audit_in_a_scrub(world, site, other, snapshot)
        return
    await world.attempt(site, "audit", lambda: site.job("audit", snapshot=name, peer=other.name))


def _is_data(site: MemorySite, block: BlockId) -> bool:
    return site.machine.disk.kind(block) == Kind.DATA


async def _audit_in_a_scrub(world: World, site: MemorySite, other: MemorySite, snapshot: Snapshot) -> None:
    """Somebody compares while the other site finds that a block is broken, and asks around for a sound copy."""
    data = [one for one in world.needs.of(snapshot, world.sites) if is_sound(other, one) and _is_data(other, one)]
    for block in data[-3:]:
        if has_other_copy(world, other, block):
            world.model(other).damaged.add(block)
            other.rot(block)

    async def compare() -> None:
        for _ in range(6):
            await site.job("audit", snapshot=snapshot.snapshot_id.hex(), peer=other.name, fresh=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.attempt, other, "scrub", lambda: other.job("scrub"))
        await world.attempt(site, "audits", compare)


async def _hold(world: World, step: Step) -> None:
    site = world.site(step.site)
    if (snapshot := chosen(site, step)) is not None:
        done = await world.attempt_now(site, "hold", lambda: site.view.hold(snapshot.snapshot_id.hex(), "a reason"))
        if done is not None:
            world.model(site).held[snapshot.snapshot_id] = "a reason"


async def _release(world: World, step: Step) -> None:
    site = world.site(step.site)
    held = sorted(world.model(site).held)
    if held:
        one = held[step.pick % len(held)]
        # From here on it may go; if the release is cut, it merely stays held.
        world.model(site).held.pop(one)
        await world.attempt_now(site, "release", lambda: site.view.hold(one.hex(), ""))


async def delete(world: World, step: Step) -> None:
    """An operator deletes: a snapshot that is held must not go."""
    site = world.site(step.site)
    if (snapshot := chosen(site, step)) is None:
        return
    world.look()
    name = snapshot.snapshot_id
    is_held = name in world.model(site).held

    def deed() -> dict[str, Any] | None:
        try:
            return site.view.delete_snapshot(name.hex())
        except Held:
            world.sometimes("hold refused a delete")
            return None

    if not is_held:
        world.model(site).deleted.add(name)
    if await world.attempt_now(site, "delete", deed) is not None:
        world.sometimes("deleted")
        if is_held:
            world.note_problem(f"{site.name} deleted a snapshot that is held")


_WRITERS = ("receive", "snapshot")
_PATIENCE_S = 40.0
_LOOK_S = 0.05


async def _writer_at(site: MemorySite) -> str:
    """Who is writing at a site, once somebody is; empty if nobody comes."""
    with trio.move_on_after(_PATIENCE_S):
        while site.is_up and site.machine.store is not None:
            for holder in site.machine.store.leases.holders():
                if holder.startswith(_WRITERS):
                    return holder
            await trio.sleep(_LOOK_S)
    return ""


def _delete_all(world: World, site: MemorySite, volume_id: bytes) -> None:
    """Everything of a volume that is under no hold."""
    world.look()  # A prune may just have let an older one go for the sake of one that goes here.
    for snapshot in site.catalog.snapshots():
        if snapshot.record.volume_id == volume_id and snapshot.snapshot_id not in world.model(site).held:
            world.model(site).deleted.add(snapshot.snapshot_id)
            site.view.delete_snapshot(snapshot.snapshot_id.hex())
            world.sometimes("deleted")


async def _tidy(world: World, step: Step) -> None:
    """Somebody makes room: deletes what there is of a volume and collects, just while somebody writes the next version.

    The worst moments for a collector, in three sorts: what goes was promised to a writer when it was needed; or it had
    been sentenced before the writer asked for it; or it is sentenced and asked for at once.
    """
    site = world.site(step.site)
    if (snapshot := chosen(site, step)) is None:
        return
    volume_id = snapshot.record.volume_id

    async def deed() -> None:
        sort = step.pick % 3
        if sort:
            _delete_all(world, site, volume_id)
            # The second raises the epoch above that of the sentences; their grace keeps it from carrying them out.
            await site.job("gc", confirmed=True)
            await site.job("gc", confirmed=True)
        if not await _writer_at(site):
            return
        await trio.sleep(step.amount * 0.5)
        if sort != 1:
            _delete_all(world, site, volume_id)
        done = await site.job("gc", grace_s=0, confirmed=True)
        if done["writers_waited_for"]:
            world.sometimes("tidied while somebody wrote")

    await world.attempt(site, "tidy", deed)


async def _pause(world: World, step: Step) -> None:
    site = world.site(step.site)
    syncs = site.catalog.syncs() if site.is_up else []
    if syncs:
        sync = syncs[step.pick % len(syncs)]
        await world.attempt_now(site, "pause", lambda: site.view.syncs.pause(sync.sync_id, paused=True))
        world.sometimes("sync paused")


async def _resume(world: World, step: Step) -> None:
    site = world.site(step.site)
    for sync in site.catalog.syncs() if site.is_up else []:
        await world.attempt_now(site, "resume", lambda sync=sync: site.view.syncs.pause(sync.sync_id, paused=False))  # type: ignore[misc]


async def _throttle(world: World, step: Step) -> None:
    site = world.site(step.site)
    rate = (0, 30_000, 300_000)[step.pick % 3]
    # Until it has been answered either rule may hold, and none at all is the loosest.
    before = world.paces[site.name].rate_bytes
    world.paces[site.name].set_rate(max(rate, before) if rate and before else 0)
    request = ThrottleRequest(out_bytes_per_s=rate)
    if await world.attempt_now(site, "throttle", lambda: site.view.mesh.throttle(request)) is not None:
        world.paces[site.name].set_rate(rate)


async def _cancel(world: World, step: Step) -> None:
    site = world.site(step.site)
    running = site.node.jobs.running() if site.is_up else []
    if running:
        job = running[step.pick % len(running)].row.job_id
        await world.attempt_now(site, "cancel", lambda: site.view.cancel(job))


async def _undo(world: World, step: Step) -> None:
    site = world.site(step.site)
    await world.attempt(site, "undo", lambda: site.job("gc", undo=True))


async def _rejoin(world: World, step: Step) -> None:
    """A code is used by the right site, and then by another one."""
    site, other = world.site(step.site), world.site(step.other)
    third = world.site((step.site + step.other) % world.plan.sites)
    code = await world.attempt_now(site, "invite", lambda: site.view.invite(minutes=5)["code"])
    if code is None or third in (site, other):
        return
    if (site.name, other.name) in world.known_pairs():
        await world.attempt(other, "join", lambda: other.view.join(code))
        await world.attempt(third, "join again", lambda: third.view.join(code))


DEEDS: dict[str, Deed] = {
    "change": _change,
    "snapshot": _snapshot,
    "snapshot_all": _snapshot_all,
    "restore": _restore,
    "scrub": _job("scrub"),
    "repair": _job("repair"),
    "collect": _job("gc"),
    "collect_all": _job("gc", grace_s=0),
    "undo": _undo,
    "verify": _job("verify"),
    "audit": _audit,
    "hold": _hold,
    "release": _release,
    "delete": delete,
    "tidy": _tidy,
    "pause": _pause,
    "resume": _resume,
    "throttle": _throttle,
    "cancel": _cancel,
    "rejoin": _rejoin,
}

__all__ = ["DEEDS", "chosen", "delete", "restore_and_check"]
