"""Proving that two sites hold the same blocks of a snapshot, without sending them or their names.

Both sides walk the snapshot's manifest, keep what they really have of it, and exchange Merkle
summaries of that (`protocol.machines.reconcile`): at most three round trips, some 25 bytes a
difference. Each learns which of its blocks the other lacks.

This proves what a peer *knows of*, not what it can still read: that is its scrub's business.
And it never decides that a snapshot is complete: that was decided by the receiver, locally,
before it signed.
"""

from dataclasses import dataclass

import trio

from protocol.errors import ErrorCode, ProtocolError, Unexpected
from protocol.ids import BLOCK_ID_BYTES, BlockId, SnapshotId, split_ids
from protocol.machines.reconcile import Reconciled, Reconciliation
from protocol.messages.registry import Message
from protocol.messages.summary import SummaryOpen
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.walk import closure
from replicator.catalog.records import SnapshotRecord
from replicator.core.errors import PeerError
from replicator.core.ports import Entropy, Offload
from replicator.index.tokens import TokenKey
from replicator.index.view import FrozenSet
from replicator.net.link import Link, Stream
from replicator.store.ports import BlockReader, BlockStore


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit of one snapshot with one peer found."""

    blocks: int
    """Distinct blocks of the snapshot that we hold."""
    shared: int
    peer_lacks: list[BlockId]
    we_lack: int
    """Blocks that the snapshot needs and we do not hold: known locally, no peer has to tell."""
    summary_bytes: int
    round_trips: int
    took_s: float


class Auditor:
    """Asks and answers audits."""

    def __init__(
        self, *, store: BlockStore, catalog: Catalog, reader: BlockReader, offload: Offload, entropy: Entropy
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._entropy = entropy

    async def compare(self, link: Link, record: SnapshotRecord) -> Audited:
        """Compare what we and the peer hold of a snapshot that both have.

        Raises `Refused` if the peer does not have it, `Unreachable`, `BlockMissing` if our own manifest cannot be
        walked, and what the protocol raises if the peer makes no sense.
        """
        began = trio.current_time()
        packed, lacking = await self._held(record)
        nonce = self._entropy.token(16)
        machine = await self._machine(packed, record.snapshot_id, nonce)
        first, *rest = await self._offload.run(machine.start)
        try:
            async with link.open(first, lane=Lane.SYNC, end=False) as stream:
                for message in rest:
                    await stream.send(message)
                result = await _converse(stream, machine, self._offload)
        except ProtocolError as error:
            raise PeerError(f"{link.name} compared in a way that makes no sense: {error.why}.") from error
        return Audited(
            blocks=len(packed) // BLOCK_ID_BYTES,
            shared=result.shared_count,
            peer_lacks=split_ids(result.peer_lacks),
            we_lack=lacking,
            summary_bytes=result.wire_bytes,
            round_trips=(result.turns_count + 1) // 2,
            took_s=trio.current_time() - began,
        )

    async def asked(self, stream: Stream, request: Message) -> None:
        """Answer a `SummaryOpen`."""
        assert isinstance(request, SummaryOpen)
        if not self._catalog.has_snapshot(request.snapshot_id):
            stream.reset(ErrorCode.NOT_FOUND, "that snapshot is not here")
            return
        packed, _ = await self._held(self._catalog.snapshot(request.snapshot_id).record)
        machine = await self._machine(packed, request.snapshot_id, request.nonce)
        for message in await self._offload.run(machine.receive, request):
            await stream.send(message)
        await _converse(stream, machine, self._offload)

    async def _machine(self, packed: bytes, snapshot_id: SnapshotId, nonce: bytes) -> Reconciliation:
        key = TokenKey(snapshot_id=snapshot_id, nonce=nonce)
        view = await self._offload.run(FrozenSet, packed, key)
        return Reconciliation(view, snapshot_id=snapshot_id, nonce=nonce)

    async def _held(self, record: SnapshotRecord) -> tuple[bytes, int]:
        """The blocks of a snapshot that are here, distinct and in order, joined; and how many are not."""
        needed: set[BlockId] = set()
        async for _, packed in closure(self._reader, record.root, record.shape):
            needed.update(split_ids(packed))
        return await self._offload.run(self._present_of, needed)

    def _present_of(self, needed: set[BlockId]) -> tuple[bytes, int]:
        lease = self._store.begin("audit")
        try:
            here = self._store.have(lease, list(needed))
        finally:
            self._store.end(lease)
        return b"".join(sorted(here)), len(needed) - len(here)


async def _converse(stream: Stream, machine: Reconciliation, offload: Offload) -> Reconciled:
    """Feed the machine until one side has closed and the other has agreed; who agrees ends the stream."""
    while True:
        if machine.done and machine.result.is_confirmed:
            await stream.send_blocks([], end=True)
            return machine.result
        item = await stream.receive()
        if item is None or isinstance(item, bytes):
            break
        for message in await offload.run(machine.receive, item):
            await stream.send(message)
    if not machine.done:
        raise Unexpected("a summary exchange ended before its end")
    return machine.result
