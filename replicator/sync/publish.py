"""How a snapshot becomes one of ours, whoever made it: its nodes, its record, and the moment it is known."""

from collections.abc import Sequence

from protocol.ids import BlockId
from protocol.wire.envelope import seal_named
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.catalog import Catalog
from replicator.catalog.records import open_record
from replicator.core.errors import LeaseLost
from replicator.store.ports import BlockStore, Lease, SealedBlock


def store_nodes(store: BlockStore, lease: Lease, nodes: Sequence[tuple[BlockId, bytes]]) -> None:
    """Keep those nodes of a map that are not here yet."""
    here = store.have(lease, [name for name, _ in nodes])
    blocks: list[SealedBlock] = []
    for name, body in nodes:
        if name not in here:
            blocks.append(SealedBlock(*seal_named(Kind.NODE, body, name)))
    store.append(lease, blocks)


def store_record(store: BlockStore, lease: Lease, signed: bytes) -> BlockId:
    """Keep a signed record among the blocks, durably, so that the catalogue can be found again from them."""
    name = block_id(Kind.RECORD, signed)
    store.append(lease, [SealedBlock(*seal_named(Kind.RECORD, signed, name))])
    store.commit(lease)
    return name


def publish_snapshot(catalog: Catalog, store: BlockStore, lease: Lease, signed: bytes, record_block: BlockId) -> None:
    """Enter a snapshot whose every block is committed under `lease`, and take it back if the lease is lost by then.

    A process that was stopped after its last commit and woken must not publish a root over blocks that were
    collected meanwhile. Looking before would leave a gap; a collection that did not see the lease alive when we
    look *after* publishing is sure to see the root (restic#3569). Raises `LeaseLost`, `Untrusted`.
    """
    is_new = not catalog.has_snapshot(open_record(signed).snapshot_id)
    snapshot = catalog.add_snapshot(signed, record_block)
    try:
        store.renew(lease)
    except LeaseLost:
        if is_new:
            catalog.delete_snapshots([snapshot.snapshot_id])
        raise


__all__ = ["publish_snapshot", "store_nodes", "store_record"]
