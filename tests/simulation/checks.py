"""What must be true: always, and when it is quiet. The product is looked at from outside."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from replicator.catalog.model import Snapshot
from replicator.catalog.terms import CONTINUOUS_TAG
from replicator.core.errors import BlockMissing, ReplicatorError
from replicator.testing.site import MemorySite
from tests.simulation.damage import has_other_copy, is_sound
from tests.simulation.memory import check_at_rest, check_queues
from tests.simulation.model import Violation
from tests.simulation.tenancy import check_carried
from tests.simulation.whole import is_rightly_lost

if TYPE_CHECKING:
    from tests.simulation.world import World

_BRIEFLY_S = 30.0
_CONTINUOUS_KEPT = 10


def check_always(world: World) -> None:
    """Memory stays inside its bounds, and what is held is there, whatever the clocks say. Raises `Violation`."""
    for site in world.sites:
        if site.is_up:
            check_queues(site)
            _check_holds(world, site)


def _check_holds(world: World, site: MemorySite) -> None:
    held = world.model(site).held
    if not held:
        return
    here = {snapshot.snapshot_id for snapshot in site.catalog.snapshots() if snapshot.held}
    for name in held:
        if name not in here:
            raise Violation(f"{site.name} no longer has {name.hex()[:8]}, which is held, or has forgotten that it is")
    if site.machine.clock.skew_s:
        world.sometimes("held under a wrong clock")


async def check_quiet(world: World) -> None:
    """Raises `Violation`."""
    if world.problems:
        raise Violation(world.problems[0])
    for site in world.sites:
        _check_kept(world, site)
        await _check_restores(world, site)
        await _check_audit(world, site)
        await _check_rest(site)
        check_at_rest(site)
    await _check_convergence(world)
    check_carried(world)


def _check_kept(world: World, site: MemorySite) -> None:
    """Every acknowledged snapshot is there, unless an operator or a rule let it go."""
    model = world.model(site)
    here = {snapshot.snapshot_id for snapshot in site.catalog.snapshots()}
    for name, snapshot in model.seen.items():
        if name in here:
            continue
        if name in model.held:
            raise Violation(f"{site.name} lost {_name(snapshot)} although it is held")
        if model.lost_catalogs and _is_lost_for_good(world, site, snapshot):
            continue
        if name not in model.deleted and not _may_be_pruned(world, site, snapshot):
            raise Violation(f"{site.name} has acknowledged {_name(snapshot)} and does not have it")
    for snapshot in site.catalog.snapshots():
        if snapshot.snapshot_id in model.held and not snapshot.held:
            raise Violation(f"{site.name} forgot that {_name(snapshot)} is held")


def _is_lost_for_good(world: World, site: MemorySite, snapshot: Snapshot) -> bool:
    """Whether it can never be whole again: a fault has hit its record here, or a block of it, and nobody has another.

    Once a catalogue is lost only what is whole is entered again: what lacks something may be one that was deleted, and
    half collected. As long as somebody has the block it waits, and comes back when that is healed.
    """
    record = snapshot.record_block
    if record in world.model(site).damaged and not is_sound(site, record) and not has_other_copy(world, site, record):
        return True
    # A map that nobody has whole does not say what was hit: that is no excuse.
    return bool(world.needs.of(snapshot, world.sites)) and is_rightly_lost(world, site, snapshot)


def _may_be_pruned(world: World, site: MemorySite, snapshot: Snapshot) -> bool:
    """Whether the keep rule has room for it no more: only its own origin has a rule, and the newest always stay."""
    record = snapshot.record
    path = world.model(site).paths.get(record.volume_id)
    # A keep rule belongs to a schedule: without one there is none.
    keeps = [one.keep if one.every_s else 0 for one in world.volumes_of(site) if one.path == path]
    newer = [
        one
        for one in world.model(site).seen.values()
        if one.record.volume_id == record.volume_id and one.record.sequence > record.sequence
    ]
    is_ours = site.catalog.current_key(record.origin) == site.catalog.current_key(site.machine.identity.site_id)
    if not is_ours or not keeps:
        return False
    # Without a rule, what a continuous sync takes for itself is kept while it is of use.
    return len(newer) >= (keeps[0] or (_CONTINUOUS_KEPT if CONTINUOUS_TAG in record.tags else math.inf))


async def _check_restores(world: World, site: MemorySite) -> None:
    """Every snapshot that is there can be given back, byte for byte, if anybody still has the bytes."""
    versions: dict[bytes, list[tuple[int, int]]] = {}
    for snapshot in site.catalog.snapshots():
        try:
            content = await site.restore(snapshot.snapshot_id.hex())
        except BlockMissing as error:
            _excuse(world, site, snapshot, error)
            continue
        except ReplicatorError as error:
            raise Violation(f"{site.name} cannot give back {_name(snapshot)}: {error}") from error
        number = world.contents.check(content, f"{site.name}: {_name(snapshot)}")
        versions.setdefault(snapshot.record.volume_id, []).append((snapshot.record.sequence, number))
    for found in versions.values():
        if [number for _, number in sorted(found)] != sorted(number for _, number in found):
            raise Violation(f"{site.name} gives an older version back for a newer snapshot: {sorted(found)}")


def _excuse(world: World, site: MemorySite, snapshot: Snapshot, error: BlockMissing) -> None:
    block = error.block_id
    if has_other_copy(world, site, block):  # type: ignore[arg-type]
        raise Violation(f"{site.name} cannot give back {_name(snapshot)}, and a peer has block {block.hex()[:12]}")
    hit = [one.name for one in world.sites if block in world.model(one).damaged]
    if site.name not in hit:
        raise Violation(f"{site.name} cannot give back {_name(snapshot)}: block {block.hex()[:12]} is gone, unharmed")
    world.trace.note(f"{site.name} has rightly lost {block.hex()[:12]}")


async def _check_audit(world: World, site: MemorySite) -> None:
    """Each line has its end; and whoever was served has a line for it as well."""
    with trio.move_on_after(_BRIEFLY_S):
        # What nobody has is asked for again now and then, also while we look: each time briefly.
        while any(line.outcome == "asking" for line in site.catalog.repairs(limit=10_000)):  # noqa: ASYNC110  (no event)
            await trio.sleep(0.05)
    lines = site.catalog.repairs(limit=10_000)
    for line in lines:
        if line.outcome == "asking":
            raise Violation(f"{site.name}: an audit line about {line.block_id.hex()[:12]} has no end")
        if line.role == "asked" and line.outcome == "healed":
            world.sometimes("block healed")
            if line.kind == 1:
                world.sometimes("manifest healed")
            if line.kind == 2:
                world.sometimes("record healed")
            other = world.mesh.sites.get(line.peer)
            if other is None or other.name in world.ever_crashed or other.name in world.ever_full:
                continue  # It may have been switched off, or had no room, between the last byte and its line.
            served = {one.block_id for one in other.catalog.repairs(limit=10_000) if one.role == "served"}
            if line.block_id not in served:
                raise Violation(f"{other.name} healed a block of {site.name} and has no line about it")
        if line.outcome == "nobody has it":
            world.sometimes("nobody has it")
    for block in site.blocks():
        if not is_sound(site, block):
            raise Violation(f"{site.name} has scrubbed, and still counts {block.hex()[:12]} as sound")


async def _check_rest(site: MemorySite) -> None:
    """Nothing is left over from work that has ended. Sites go on telling each other how they are, each time briefly."""
    store = site.machine.store
    assert store is not None
    for link in site.node.mesh.connected():
        with trio.move_on_after(_BRIEFLY_S):
            while link._streams:  # noqa: ASYNC110  (a stream's end has no event)
                await trio.sleep(0.05)
        if link._streams:
            raise Violation(f"{site.name} still has {len(link._streams)} streams to {link.name} when nobody works")
    with trio.move_on_after(_BRIEFLY_S):
        # What nobody has any more is tried again now and then, also while we look: each time briefly.
        while store.leases.holders():  # noqa: ASYNC110  (nor has a lease's)
            await trio.sleep(0.05)
    if holders := store.leases.holders():
        raise Violation(f"{site.name} still has leases when nobody works: {holders}")


async def _check_convergence(world: World) -> None:
    """Who has signed for a snapshot has it, and summaries agree."""
    for site in world.sites:
        receipts = site.catalog.receipts()
        for snapshot in site.catalog.snapshots():
            for peer_id in [peer for name, peer in receipts if name == snapshot.snapshot_id]:
                other = next((one for one in world.sites if one.machine.identity.site_id == peer_id), None)
                if other is None or other.catalog.has_snapshot(snapshot.snapshot_id):
                    continue
                model = world.model(other)
                if _may_be_pruned(world, other, snapshot):
                    continue  # It came home while a peer did not know yet that this is its home, and was signed for.
                if snapshot.snapshot_id not in model.deleted and not model.lost_catalogs:
                    raise Violation(f"{other.name} has signed for {_name(snapshot)} of {site.name} and lacks it")


def _name(snapshot: Snapshot) -> str:
    record = snapshot.record
    return f"{record.volume_name}#{record.sequence} ({record.snapshot_id.hex()[:8]})"
