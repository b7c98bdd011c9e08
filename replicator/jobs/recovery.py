"""Finding the snapshots again that the catalogue does not know of.

Each snapshot's signed record lies in the store as a block of its own, so a store still says what it holds when its
catalogue was lost, or when an older copy of it was put back. Without this the snapshots since that copy would be
blocks that nothing needs, and the next collection would let them go. So it is done when a node starts, and before
each collection.

What was deleted is remembered by the catalogue, or it would come back each time. An older copy does not remember what
was deleted after it: that comes back, and it is better to delete twice than to lose once. Peers, schedules and
receipts are not in the store; they have to be made again.
"""

from collections.abc import Sequence

from protocol.ids import BlockId
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import open_record
from replicator.core.errors import ReplicatorError
from replicator.core.logging import get_logger
from replicator.store.ports import BlockStore

_READ = 256


def recover_snapshots(store: BlockStore, catalog: Catalog, records: Sequence[BlockId]) -> int:
    """Enter every snapshot whose record is among these blocks, and is not known. Returns how many. Safe to repeat."""
    unknown = catalog.unexplained_records(records)
    entered = unreadable = 0
    for at in range(0, len(unknown), _READ):
        found = store.read(unknown[at : at + _READ])
        unreadable += len(found.faults)
        for name, body in sorted(found.sound.items()):
            entered += _enter(bytes(body), name, catalog)
    if entered or unreadable:
        get_logger().warning(
            "catalog.recovered",
            snapshots=entered,
            unreadable=unreadable,
            then="if the catalogue was lost or set back: pair again, and protect again; those are not in the store",
        )
    return entered


def _enter(signed: bytes, name: BlockId, catalog: Catalog) -> bool:
    try:
        # A snapshot that was being taken when the node died was taken again, with another record: that one counts.
        if catalog.has_snapshot(open_record(signed).snapshot_id):
            return False
        catalog.add_snapshot(signed, name)
    except ReplicatorError as error:
        get_logger().error("record.refused", block=name.hex(), error=str(error))
        return False
    return True
