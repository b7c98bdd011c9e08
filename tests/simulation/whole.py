"""What each snapshot needs must be where it is, at every moment: not only in the end, when peers have mended the rest.

A block that a collection took from under a writer comes back by itself more often than not: the next
snapshot writes it again, a peer sends it, a reader is healed. Whoever looks only when it is quiet sees
a sound mesh. So each snapshot in a catalogue is held against the disk below it now and then.

What a map needs never changes, because the map is named by its content: it is worked out once a world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protocol.errors import ProtocolError
from protocol.ids import BlockId, split_ids
from protocol.wire.envelope import unseal
from replicator.catalog.manifest.walk import closure
from replicator.catalog.model import Snapshot
from replicator.core.errors import BlockMissing
from replicator.testing.site import MemorySite
from tests.simulation.damage import has_other_copy, is_sound
from tests.simulation.model import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


class AnyCopy:
    """`NodeReader` of whatever sound copy there is in the whole world."""

    def __init__(self, sites: Sequence[MemorySite]) -> None:
        self._sites = sites

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, bytes]:
        return {block: self._read_one(block) for block in ids}

    def _read_one(self, block: BlockId) -> bytes:
        for site in self._sites:
            sealed = site.machine.disk.sealed(block)
            if sealed is not None:
                try:
                    header, body = unseal(sealed)
                except ProtocolError:
                    continue
                if header.block_id == block:
                    return bytes(body)
        raise BlockMissing(block)


class Needs:
    """What each map needs, by its root."""

    def __init__(self) -> None:
        self._known: dict[BlockId, tuple[BlockId, ...]] = {}

    def of(self, snapshot: Snapshot, sites: Sequence[MemorySite]) -> tuple[BlockId, ...]:
        """Every block of a snapshot's map; nothing if no site has all nodes of it: other checks say why."""
        root = snapshot.record.root
        if root not in self._known:
            try:
                self._known[root] = _at_once(snapshot, AnyCopy(sites))
            except BlockMissing:
                return ()
        return self._known[root]


def _at_once(snapshot: Snapshot, reader: AnyCopy) -> tuple[BlockId, ...]:
    async def collect() -> tuple[BlockId, ...]:
        found: dict[BlockId, None] = {}
        async for _, packed in closure(reader, snapshot.record.root, snapshot.record.shape):
            found.update(dict.fromkeys(split_ids(packed)))
        return tuple(found)

    try:
        # Memory never waits, so one step is the whole of it.
        collect().send(None)
    except StopIteration as done:
        needed: tuple[BlockId, ...] = done.value
        return needed
    raise AssertionError("a reader in memory has waited")


def is_rightly_lost(world: World, site: MemorySite, snapshot: Snapshot) -> bool:
    """Whether a fault has hit a block of it here, and nobody that can be asked has that block any more.

    A person may delete the last other copy: what is asked for then cannot be given.
    """
    needed = (snapshot.record_block, *world.needs.of(snapshot, world.sites))
    if len(needed) == 1:
        return True
    hit = world.model(site).damaged
    return any(one in hit and not is_sound(site, one) and not has_other_copy(world, site, one) for one in needed)


def check_whole(world: World, site: MemorySite) -> None:
    """Raises `Violation` if a snapshot needs what is neither here nor was hit by a fault."""
    model = world.model(site)
    if model.lost_catalogs:
        return  # What was deleted, and half collected, may have come back with the records.
    disk = site.machine.disk
    snapshots = site.catalog.snapshots()
    needed: set[BlockId] = set()
    for snapshot in snapshots:
        needed.add(snapshot.record_block)
        needed.update(world.needs.of(snapshot, world.sites))
    if lost := needed.difference(disk.rows, model.damaged):
        block = min(lost)
        whose = [one for one in snapshots if block in (one.record_block, *world.needs.of(one, world.sites))]
        name = f"{whose[0].record.volume_name}#{whose[0].record.sequence}"
        raise Violation(f"{site.name} has {name} and not its block {block.hex()[:12]}, which no fault has hit")
