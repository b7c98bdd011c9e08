"""What befalls sites. Each mishap ends by itself; what only an operator can mend is mended when it is quiet."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, walk
from protocol.wire.hashing import Kind
from replicator.core.errors import ReplicatorError
from replicator.store.ports import SealedRuns
from replicator.testing.network import Path
from replicator.testing.site import MemorySite
from tests.simulation.damage import has_other_copy, is_sound
from tests.simulation.deeds import delete
from tests.simulation.plan import Step

if TYPE_CHECKING:
    from tests.simulation.world import World

Mishap = Callable[["World", Step], Awaitable[None]]


# -- the network ------------------------------------------------------------------------------


async def _reset(world: World, step: Step) -> None:
    world.mesh.network.break_lines(world.site(step.site).name, world.site(step.other).name)


def _paths(world: World, step: Step, *, both: bool) -> list[Path]:
    a, b = world.site(step.site).name, world.site(step.other).name
    paths = [world.mesh.network.path(a, b)]
    return [*paths, world.mesh.network.path(b, a)] if both else paths


async def _block(world: World, step: Step, *, both: bool) -> None:
    for path in _paths(world, step, both=both):
        path.is_blocked = True
    # From a hiccup to longer than anybody's patience.
    await trio.sleep(0.5 + step.amount * 60)
    for path in _paths(world, step, both=both):
        path.is_blocked = False
    world.mesh.network.changed()


async def _cut(world: World, step: Step) -> None:
    await _block(world, step, both=True)


async def _cut_one_way(world: World, step: Step) -> None:
    world.sometimes("one-way cut")
    await _block(world, step, both=False)


async def _clog(world: World, step: Step) -> None:
    for path in _paths(world, step, both=True):
        path.rate_bytes = 2_000 + int(step.amount * 30_000)
    await trio.sleep(5 + step.amount * 40)
    for path in _paths(world, step, both=True):
        path.rate_bytes = 0


# -- the machines -----------------------------------------------------------------------------


async def start_again(world: World, site: MemorySite) -> None:
    """Switch on a machine that is off."""
    if site.down.is_set() and not site.is_up:
        jobs = site.machine.databases.connection("jobs.sqlite")
        is_new = not jobs.execute("SELECT 1 FROM sqlite_schema WHERE name = 'jobs'").fetchone()
        if not is_new and jobs.execute("SELECT count(*) FROM jobs WHERE state = 'running'").fetchone()[0]:
            world.sometimes("job taken up again")
        while not site.is_up:  # Another mishap of the same machine may have started it while we waited.
            # Whoever supervises a node starts it again when it could not start: a disk may have been full.
            try:
                await site.start()
            except ReplicatorError as error:
                world.trace.note(f"{site.name} does not start: {error}")
                await trio.sleep(2)
        world.trace.note(f"{site.name} is up")


def note_crash(world: World, site: MemorySite) -> None:
    """What was going on when the power went."""
    world.ever_crashed.add(site.name)
    store = site.machine.store
    if store is None or not site.is_up:
        return
    pending = store.pending_bytes()
    kinds = {view.row.kind for view in site.node.jobs.running()}
    holders = store.leases.holders()
    for happened, name in (
        (bool(pending), "unsynced write lost"),
        (bool(kinds), "crash with a job running"),
        ("gc" in kinds, "crash while collecting"),
        (any("receive" in holder for holder in holders), "crash while receiving"),
    ):
        if happened:
            world.sometimes(name)


async def _crash(world: World, step: Step) -> None:
    site = world.site(step.site)
    if not site.is_up:
        return
    world.look()
    note_crash(world, site)
    world.sometimes("crash at a checkpoint")
    before = len(site.machine.disk.blocks())
    await site.crash()
    if len(site.machine.disk.blocks()) > before:
        world.sometimes("unsynced write survived")
    await trio.sleep(step.amount * 30)
    await start_again(world, site)


async def _crash_at_step(world: World, step: Step) -> None:
    site = world.site(step.site)
    if not site.is_up:
        return
    power = site.machine.power
    cut_at = power.cut_at = power.steps + step.pick % 24
    down, go_dark = site.down, power.on_cut
    blocks: list[int] = []

    def on_cut() -> None:
        # No look at the catalogue now: it may be in the middle of a transaction that will never have been.
        note_crash(world, site)
        blocks.append(len(site.machine.disk.blocks()))
        go_dark()
        blocks.append(len(site.machine.disk.blocks()))

    power.on_cut = on_cut
    with trio.move_on_after(20):
        await down.wait()
    if not down.is_set():
        power.cut_at = None
        return
    world.sometimes("crash before a durable step" if cut_at % 2 == 0 else "crash after a durable step")
    if blocks and blocks[1] > blocks[0]:
        world.sometimes("unsynced write survived")
    await trio.sleep(step.amount * 20)
    await start_again(world, site)


async def _stop(world: World, step: Step) -> None:
    site = world.site(step.site)
    if site.is_up:
        world.look()
        await world.attempt(site, "stop", site.stop)
        await site.down.wait()
        world.sometimes("stopped in order")
        await trio.sleep(step.amount * 20)
        await start_again(world, site)


async def _lose_catalog(world: World, step: Step) -> None:
    """The catalogue's file is gone; peers and schedules with it. What the blocks say must come back."""
    site = world.site(step.site)
    if not site.is_up:
        return
    world.look()
    await site.crash()
    world.ever_crashed.add(site.name)
    world.sometimes("catalogue lost")
    model = world.model(site)
    model.lost_catalogs += 1
    model.held.clear()
    # The rules lay in it; what the file says holds again.
    world.forget_rates(site)
    # A snapshot whose record has rotted cannot be found again, and that is said.
    model.seen = {name: one for name, one in model.seen.items() if is_sound(site, one.record_block)}
    site.machine.lose_catalog()
    await trio.sleep(1)
    await start_again(world, site)


async def _jump(world: World, step: Step) -> None:
    clock = world.site(step.site).machine.clock
    hours = (step.amount - 0.5) * 24 * (1 if step.pick % 2 else 4000)
    world.sometimes("clock jumped ahead" if hours > 0 else "clock jumped back")
    clock.skew_s += hours * 3600
    await trio.sleep(10 + step.pick % 40)
    clock.skew_s = 0.0


# -- the disks --------------------------------------------------------------------------------


async def _damage(world: World, step: Step, *, kinds: Sequence[int], loses: bool) -> None:
    """Hit a block, if another site has a good copy: no product can bring back the last one."""
    site = world.site(step.site)
    blocks = [one for one in site.machine.disk.blocks() if site.machine.disk.kind(one) in kinds]
    for count in range(min(len(blocks), 1 + step.pick % 4)):
        block = blocks[(step.pick // 7 + count * 13) % len(blocks)]
        if is_sound(site, block) and has_other_copy(world, site, block):
            world.model(site).damaged.add(block)
            if loses:
                site.lose(block)
            else:
                site.rot(block, bit=step.pick)


async def _rot(world: World, step: Step) -> None:
    await _damage(world, step, kinds=(Kind.DATA,), loses=False)


async def _lose(world: World, step: Step) -> None:
    await _damage(world, step, kinds=(Kind.DATA, Kind.NODE, Kind.RECORD), loses=True)


async def _rot_metadata(world: World, step: Step) -> None:
    await _damage(world, step, kinds=(Kind.NODE, Kind.RECORD), loses=False)


async def _fill_disk(world: World, step: Step) -> None:
    disk = world.site(step.site).machine.disk
    disk.bytes_max = disk.used_bytes() + int(step.amount * 20_000)
    await trio.sleep(5 + step.amount * 30)
    disk.bytes_max = None


async def _fill_database(world: World, step: Step) -> None:
    databases = world.site(step.site).machine.databases
    world.ever_full.add(world.site(step.site).name)
    databases.is_full = True
    await trio.sleep(2 + step.amount * 20)
    databases.is_full = False


# -- the people -------------------------------------------------------------------------------


def _lying(
    honest: Callable[[Sequence[BlockId]], SealedRuns], chance: random.Random
) -> Callable[[Sequence[BlockId]], SealedRuns]:
    """A store that gives peers something else: swapped, twice, cut short, flipped, or nothing at all."""

    def lie(ids: Sequence[BlockId]) -> SealedRuns:
        answer = honest(ids)
        runs: list[Buffer] = list(answer.runs)
        if not runs:
            return answer
        at = chance.randrange(len(runs))
        match chance.randrange(5):
            case 0:
                runs.append(runs[at])
            case 1:
                _, header = next(iter(walk(runs[at])))
                flipped = bytearray(runs[at])
                flipped[header.sealed_bytes - 1] ^= 1
                runs[at] = bytes(flipped)
            case 2:
                del runs[at]
            case 3:
                other = honest([chance.choice(all_ids)]) if (all_ids := list(ids)) else answer
                runs += other.runs
            case _:
                return answer
        return SealedRuns(runs=runs, blocks_count=len(runs), faults=answer.faults)

    return lie


async def _lie(world: World, step: Step) -> None:
    site = world.site(step.site)
    store = site.machine.store
    if not site.is_up or store is None or "read_sealed" in store.__dict__:
        return
    store.read_sealed = _lying(store.read_sealed, random.Random(step.pick))  # type: ignore[method-assign]
    await trio.sleep(5 + step.amount * 40)
    store.__dict__.pop("read_sealed", None)


MISHAPS: dict[str, Mishap] = {
    "reset": _reset,
    "cut": _cut,
    "cut_one_way": _cut_one_way,
    "clog": _clog,
    "crash": _crash,
    "crash_at_step": _crash_at_step,
    "stop": _stop,
    "rot": _rot,
    "lose": _lose,
    "rot_metadata": _rot_metadata,
    "fill_disk": _fill_disk,
    "fill_database": _fill_database,
    "jump": _jump,
    "lie": _lie,
    "lose_catalog": _lose_catalog,
    "delete": delete,
}
