"""Bringing back snapshots whose record could not be read when the catalogue was rebuilt."""

from protocol.ids import BlockId
from replicator.catalog.catalog import Catalog
from replicator.core.errors import BlockMissing, CatalogError, ReplicatorError
from replicator.core.logging import get_logger
from replicator.store.ports import BlockReader


class RecordsUnread(CatalogError):
    """Some snapshots are not in the catalogue, so nobody knows what they need."""

    def __init__(self, names: list[BlockId]) -> None:
        super().__init__(
            f"{len(names)} snapshot records cannot be read, the first {names[0].hex()[:16]}: "
            "what those snapshots need is not known, so nothing is collected.",
            hint="When a peer that has them is linked, run this again; or give them up: `replicator gc --give-up`.",
        )


async def account_for_records(catalog: Catalog, reader: BlockReader, *, give_up: bool) -> None:
    """Enter every missing snapshot whose record can be had by now. Raises `RecordsUnread` while one cannot.

    `give_up` is a person's word that what is still missing is not wanted any more.
    """
    unread = catalog.lost.unread()
    if not unread:
        return
    still = [name for name in unread if not await _enter(catalog, reader, name)]
    if still and give_up:
        get_logger().warning("records.given_up", records=[name.hex() for name in still])
        still = []
    catalog.lost.set_unread(still)
    if still:
        raise RecordsUnread(still)


async def _enter(catalog: Catalog, reader: BlockReader, name: BlockId) -> bool:
    try:
        bodies = await reader.read([name])
    except BlockMissing:
        return False
    try:
        catalog.add_snapshot(bytes(bodies[name]), name)
    except ReplicatorError as error:
        # It can be read, and is no snapshot that this site would take: nothing is owed to it.
        get_logger().error("record.refused", block=name.hex(), error=str(error))
    return True
