"""Finding the snapshots again when the catalogue is gone.

Each snapshot's signed record lies in the store as a block of its own, so a store without a
catalogue still says what it holds. Without this, a deleted `catalog.sqlite` would be an empty
one, and the next collection would find that nothing needs any block.

What was deleted and not yet collected comes back too: it is better to delete twice than to
lose once. Peers, schedules and receipts are not in the store; they have to be made again.
"""

from collections.abc import Sequence

from protocol.ids import BlockId
from replicator.catalog.catalog import Catalog
from replicator.core.errors import ReplicatorError
from replicator.core.logging import get_logger
from replicator.store.ports import BlockStore


def recover_snapshots(store: BlockStore, catalog: Catalog, names: Sequence[BlockId]) -> int:
    """Enter every snapshot whose record is among the blocks `names`. Returns how many. Safe to repeat."""
    if not names:
        return 0
    log = get_logger()
    found = store.read(names)
    entered = 0
    for name, body in sorted(found.sound.items()):
        try:
            catalog.add_snapshot(bytes(body), name)
            entered += 1
        except ReplicatorError as error:
            log.error("record.refused", block=name.hex(), error=str(error))
    log.warning(
        "catalog.recovered",
        snapshots=entered,
        unreadable=len(found.faults),
        then="pair again, and protect again: peers and schedules were only in the lost catalogue",
    )
    return entered
