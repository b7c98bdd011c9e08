"""The signed receipt: what "acknowledged" means."""

from protocol.messages.snapshots import Receipt
from replicator.catalog.records import Signer, SnapshotRecord, verify_signature
from replicator.core.errors import Untrusted

_SIGNED_AS = b"replicator receipt v1\0"


def _statement(snapshot_id: bytes, root: bytes, site_id: bytes, received_at_ns: int) -> bytes:
    return _SIGNED_AS + snapshot_id + root + site_id + received_at_ns.to_bytes(8, "big")


def sign_receipt(record: SnapshotRecord, *, site_id: bytes, received_at_ns: int, sign: Signer) -> Receipt:
    """Say, in our name, that we hold this snapshot whole and durably."""
    statement = _statement(record.snapshot_id, record.root, site_id, received_at_ns)
    return Receipt(
        snapshot_id=record.snapshot_id,
        root=record.root,
        site_id=site_id,  # type: ignore[arg-type]  # a site id is bytes with a meaning
        received_at_ns=received_at_ns,
        signature=sign(statement),
    )


def check_receipt(receipt: Receipt, record: SnapshotRecord, *, peer: bytes) -> None:
    """Raises `Untrusted` unless `peer` signed for exactly this snapshot."""
    if (receipt.snapshot_id, receipt.root, receipt.site_id) != (record.snapshot_id, record.root, peer):
        raise Untrusted("A receipt is for another snapshot or from another site.")
    statement = _statement(receipt.snapshot_id, receipt.root, receipt.site_id, receipt.received_at_ns)
    verify_signature(peer, statement, receipt.signature)
