"""Who has a good copy of a block: judged here, from the bytes on the disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.wire.envelope import unseal
from replicator.testing.site import MemorySite

if TYPE_CHECKING:
    from tests.simulation.world import World


def is_sound(site: MemorySite, block: BlockId) -> bool:
    """Whether a good copy lies on the site's disk: judged here, not by its store."""
    sealed = site.machine.disk.sealed(block)
    if sealed is None:
        return False
    try:
        header, _ = unseal(sealed)
    except ProtocolError:
        return False
    return header.block_id == block


def has_other_copy(world: World, site: MemorySite, block: BlockId) -> bool:
    """Whether a site that this one can ask has a good copy."""
    return any(is_sound(other, block) for other in world.sites if (site.name, other.name) in world.known_pairs())
