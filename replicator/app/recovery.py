"""Finding the snapshots again when the catalogue is gone, was set back, or has rotted.

Each snapshot's signed record lies in the store as a block of its own, so a store without a
catalogue still says what it holds. Without this, a deleted `catalog.sqlite` would be an empty
one, and the next collection would find that nothing needs any block. An old copy of it, put
back after a crash, would do the same to every snapshot that is younger than the copy.

To notice that, store and catalogue carry the same number, which changes whenever the store is
opened and closed. A catalogue with another one has not been there all the time.

What was deleted and not yet collected comes back too: it is better to delete twice than to
lose once. Peers, schedules and receipts are not in the store; they have to be made again.
"""

from typing import Final, Protocol

from protocol.ids import BlockId
from protocol.wire.hashing import Kind
from replicator.catalog.audit import buried
from replicator.catalog.catalog import Catalog
from replicator.catalog.lost import RECOVERED
from replicator.core.errors import ReplicatorError, StoreError
from replicator.core.logging import get_logger
from replicator.core.ports import Entropy
from replicator.store.ports import BlockStore

_WHOLE: Final = "catalogue.whole"
"""Set once a catalogue has been checked against the store: a new one, and one that was lost, are not."""
_PARTNER: Final = "catalogue.partner"
_NEVER: Final = -1
"""The store's number while the catalogue cannot be opened: whatever is put back in its place must be checked."""


class Facts(Protocol):
    """The numbers that a store keeps beside its blocks, and loses only with the list of them."""

    def fact(self, name: str) -> int: ...
    def set_fact(self, name: str, value: int) -> None: ...


def is_checked(catalog: Catalog) -> bool:
    """Whether this catalogue has been compared with the store before."""
    return catalog.fact(_WHOLE) is not None


def bring_together(store: BlockStore, catalog: Catalog, *, facts: Facts, entropy: Entropy) -> None:
    """See that every snapshot whose record is in the store is in the catalogue. To be called at each opening."""
    known = facts.fact(_PARTNER)  # 0: the ledger is new, or was lost, and says nothing about the catalogue.
    was_there = not known or str(known) in (catalog.fact(_PARTNER) or "").split()
    if not is_checked(catalog) or not was_there:
        recover_snapshots(store, catalog)
        catalog.set_fact(_WHOLE, "yes")
    _mend_rows(store, catalog)
    renew(facts, catalog, entropy=entropy)


def renew(facts: Facts, catalog: Catalog, *, entropy: Entropy) -> None:
    """A new number for both. The catalogue keeps the last one too: a crash between the two is no other catalogue."""
    number = 1 + int.from_bytes(entropy.token(7), "big")
    try:
        catalog.set_fact(_PARTNER, f"{facts.fact(_PARTNER)} {number}")
        facts.set_fact(_PARTNER, number)
    except StoreError as error:
        # A full disk must not keep anybody from restoring. Both still bear the last number, so all that is lost
        # is that an older copy of the catalogue, put back before the next renewal, would not be noticed.
        get_logger().warning("catalog.not_renumbered", error=str(error))


def distrust(facts: Facts) -> None:
    """The catalogue could not be opened."""
    facts.set_fact(_PARTNER, _NEVER)


def recover_snapshots(store: BlockStore, catalog: Catalog) -> int:
    """Enter every snapshot whose record is among the blocks. Returns how many. Safe to repeat.

    A record that cannot be read is noted: nothing may be collected until it has been.
    """
    names = store.of_kind(Kind.RECORD)
    broken = [fault.block_id for fault in store.broken() if fault.kind == Kind.RECORD]
    if not names and not broken:
        return 0
    entered, unread = _enter(store, catalog, names)
    catalog.lost.set_unread([*catalog.lost.unread(), *unread, *broken])
    catalog.set_fact(RECOVERED, "yes")
    get_logger().warning(
        "catalog.recovered",
        snapshots=entered,
        unreadable=len(unread) + len(broken),
        then="pair again, and protect again, what is not there: only the lost catalogue knew of it",
    )
    return entered


def _mend_rows(store: BlockStore, catalog: Catalog) -> None:
    """Put rows that have rotted back from the records in the store."""
    damaged = catalog.lost.damaged()
    if not damaged:
        return
    for snapshot_id in damaged:
        catalog.lost.remove(snapshot_id)
    # The name of the record may be what has rotted, so all that are there are entered.
    gone = set(buried(catalog.db).values())
    names = [name for name in store.of_kind(Kind.RECORD) if name not in gone]
    entered, unread = _enter(store, catalog, names)
    missing = [name for snapshot_id, name in damaged.items() if not catalog.has_snapshot(snapshot_id)]
    catalog.lost.set_unread([*catalog.lost.unread(), *unread, *missing])
    get_logger().error("catalog.rows_damaged", rows=len(damaged), mended=len(damaged) - len(missing), entered=entered)


def _enter(store: BlockStore, catalog: Catalog, names: list[BlockId]) -> tuple[int, list[BlockId]]:
    found = store.read(names)
    entered = 0
    for name, body in sorted(found.sound.items()):
        try:
            catalog.add_snapshot(bytes(body), name)
            entered += 1
        except ReplicatorError as error:
            get_logger().error("record.refused", block=name.hex(), error=str(error))
    return entered, [fault.block_id for fault in found.faults]
