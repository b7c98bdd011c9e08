"""Proving that two sites hold the same blocks of a snapshot, without sending them or their names.

Both sides take the blocks that the snapshot needs and that they really have, and exchange Merkle
summaries of that (`protocol.machines.reconcile`): at most three round trips, some 20 bytes a
difference. Each learns which of its blocks the other lacks.

What a snapshot needs is found by walking its manifest once, and then lies on the shelf
(`index/shelf.py`). What is here of it is what the ledger says; a view of that is kept for the
next session, as long as nothing has been found broken since. The nonce is kept with it, because
the sums depend on it: an audit asks for a fresh one, and so makes both sides look anew.

This proves what a peer *knows of*, not what it can still read: that is its scrub's business.
And it never decides that a snapshot is complete: that was decided by the receiver, locally,
before it signed.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

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
from replicator.index.shelf import IdSets, common, sorted_set
from replicator.index.tokens import Packed, TokenKey
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


_VIEWS_BLOCKS_MAX: Final = 12_000_000
"""Blocks in the views that are kept: some 200 MB. The newest one is kept whatever its size."""
VIEWS_MAX: Final = 256
"""Views that are kept, small ones too: a peer may ask about an empty snapshot under ever new nonces."""


@dataclass(frozen=True, slots=True)
class _View:
    frozen: FrozenSet
    blocks: int
    lacking: int
    holes: frozenset[BlockId]
    """What the store knew to be broken when the view was made."""


class Auditor:
    """Asks and answers audits."""

    def __init__(
        self,
        *,
        store: BlockStore,
        catalog: Catalog,
        reader: BlockReader,
        offload: Offload,
        entropy: Entropy,
        shelf: IdSets,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._entropy = entropy
        self._shelf = shelf
        self._views: OrderedDict[tuple[SnapshotId, bytes], _View] = OrderedDict()
        self._nonces: dict[SnapshotId, bytes] = {}
        self._building = trio.Lock()  # One at a time: a view is a few seconds of work, and peers may ask for many.

    async def compare(self, link: Link, record: SnapshotRecord, *, fresh: bool) -> Audited:
        """Compare what we and the peer hold of a snapshot that both have; `fresh` makes both look anew.

        Raises `Refused` if the peer does not have it, `Unreachable`, `BlockMissing` if our own manifest cannot be
        walked, and what the protocol raises if the peer makes no sense.
        """
        began = trio.current_time()
        nonce = (None if fresh else self._nonces.get(record.snapshot_id)) or self._entropy.token(16)
        view = await self._view(record, nonce)
        self._nonces[record.snapshot_id] = nonce
        machine = Reconciliation(view.frozen, snapshot_id=record.snapshot_id, nonce=nonce)
        first, *rest = await self._offload.run(machine.start)
        try:
            async with link.open(first, lane=Lane.SYNC, end=False) as stream:
                for message in rest:
                    await stream.send(message)
                result = await _converse(stream, machine, self._offload)
        except ProtocolError as error:
            raise PeerError(f"{link.name} compared in a way that makes no sense: {error.why}.") from error
        return Audited(
            blocks=view.blocks,
            shared=result.shared_count,
            peer_lacks=split_ids(result.peer_lacks),
            we_lack=view.lacking,
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
        view = await self._view(self._catalog.snapshot(request.snapshot_id).record, request.nonce)
        machine = Reconciliation(view.frozen, snapshot_id=request.snapshot_id, nonce=request.nonce)
        for message in await self._offload.run(machine.receive, request):
            await stream.send(message)
        await _converse(stream, machine, self._offload)

    async def _view(self, record: SnapshotRecord, nonce: bytes) -> _View:
        """What is here of a snapshot, summed under the key of a nonce."""
        async with self._building:
            holes = frozenset(fault.block_id for fault in await self._offload.run(self._store.broken))
            key = (record.snapshot_id, nonce)
            view = self._views.pop(key, None)
            if view is None or view.holes != holes:
                needed = await self._needed(record)
                view = await self._offload.run(self._build, needed, record.snapshot_id, nonce, holes)
            self._views[key] = view
            while len(self._views) > 1 and (
                len(self._views) > VIEWS_MAX or sum(one.blocks for one in self._views.values()) > _VIEWS_BLOCKS_MAX
            ):
                (snapshot_id, old), _ = self._views.popitem(last=False)
                if self._nonces.get(snapshot_id) == old:
                    del self._nonces[snapshot_id]
            return view

    async def _needed(self, record: SnapshotRecord) -> Packed:
        """All blocks of a snapshot, distinct and in order."""
        found: Packed | None = await self._offload.run(self._shelf.get, record.root)
        if found is None:
            runs = [packed async for _, packed in closure(self._reader, record.root, record.shape)]
            ids = await self._offload.run(sorted_set, runs)
            await self._offload.run(self._shelf.put, record.root, ids)
            found = ids
        return found

    def _build(self, needed: Packed, snapshot_id: SnapshotId, nonce: bytes, holes: frozenset[BlockId]) -> _View:
        """In a worker thread: the ledger says what is here, whatever was here when the snapshot was entered."""
        here = common(needed, self._store.ids())
        frozen = FrozenSet(here, TokenKey(snapshot_id=snapshot_id, nonce=nonce))
        blocks = len(here) // BLOCK_ID_BYTES
        return _View(frozen, blocks, len(needed) // BLOCK_ID_BYTES - blocks, holes)


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
