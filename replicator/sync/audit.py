"""Proving that two sites hold the same blocks of a snapshot, without sending them or their names.

Both sides take the blocks that the snapshot needs and that they really have, and exchange Merkle
summaries of that (`protocol.machines.reconcile`): at most three round trips, some 20 bytes a
difference. Each learns which of its blocks the other lacks.

What a snapshot needs is found by walking its manifest once, and then lies on the shelf
(`index/shelf.py`). What is here of it is what the ledger says; a view of that is kept for the
next session, as long as nothing is lacking and nothing has been found broken since. The nonce is kept with it, because
the sums depend on it: an audit asks for a fresh one, and so makes both sides look anew.

Whoever lacks blocks knows which from its own map, before the first turn: no sum need be subtracted for that, and none
can mislead it. So each side asks for what it lacks at once, by name, beside the talk. The first block is on the wire
after one round trip at most, whatever the talk takes, and none is sent that was here. What the sums are for is
that the *other* side knows.

This proves what a peer *knows of*, not what it can still read: that is its scrub's business.
And it never decides that a snapshot is complete: that was decided by the receiver, locally,
before it signed.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final

import trio

from protocol.errors import ErrorCode, ProtocolError, Unexpected
from protocol.ids import BLOCK_ID_BYTES, BlockId, SnapshotId, split_ids
from protocol.machines.reconcile import Reconciled, Reconciliation
from protocol.messages.registry import Message
from protocol.messages.summary import SummaryOpen
from protocol.wire.frames import Lane
from protocol.wire.hashing import Kind
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.walk import closure
from replicator.catalog.records import SnapshotRecord
from replicator.core.errors import PeerError, StoreError
from replicator.core.logging import get_logger
from replicator.core.nursery import open_work_nursery
from replicator.core.ports import Entropy, Offload
from replicator.index.shelf import IdSets, common, sorted_set
from replicator.index.tokens import Packed, TokenKey
from replicator.index.view import FrozenSet
from replicator.net.link import Link, Stream
from replicator.store.ports import BlockReader, BlockStore, Cause, Fault


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit of one snapshot with one peer found."""

    blocks: int
    """Distinct blocks of the snapshot that we hold."""
    shared: int
    peer_lacks: list[BlockId]
    we_lack: int
    """Blocks that the snapshot needs and we did not hold: known locally, no peer has to tell."""
    mended: int
    """Of these, what was fetched beside the comparison, from this peer or another."""
    summary_bytes: int
    round_trips: int
    took_s: float


Mend = Callable[[Sequence[Fault]], Awaitable[int]]
"""Have sound copies of blocks fetched from peers; answers of how many."""

_MEND_BATCH: Final = 1024
"""Some 60 MB: as much as shares a flush."""
_MEND_AGAIN_S: Final = 600.0
"""After a round for a peer's sake in which nothing came. Each ask leaves a line in the repairs, and a peer may open
sessions as it likes; our own are ours to open."""

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
        mend: Mend,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._entropy = entropy
        self._shelf = shelf
        self._mend = mend
        self._mend_from = -inf
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
        mended = 0

        async def mend(lacking: bytes) -> None:
            nonlocal mended
            mended = await self._fetch(lacking)

        try:
            async with open_work_nursery() as nursery:
                view = await self._view(record, nonce, on_lacking=lambda lost: nursery.start_soon(mend, lost))
                self._nonces[record.snapshot_id] = nonce
                machine = Reconciliation(view.frozen, snapshot_id=record.snapshot_id, nonce=nonce)
                first, *rest = await self._offload.run(machine.start)
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
            mended=mended,
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
        record = self._catalog.snapshot(request.snapshot_id).record
        async with open_work_nursery() as nursery:
            view = await self._view(
                record, request.nonce, on_lacking=lambda lost: nursery.start_soon(self._fetch_for_peer, lost)
            )
            machine = Reconciliation(view.frozen, snapshot_id=request.snapshot_id, nonce=request.nonce)
            # How the talk ends is the asker's business, and often a reset; what we lack we fetch all the same.
            with suppress(PeerError):
                for message in await self._offload.run(machine.receive, request):
                    await stream.send(message)
                await _converse(stream, machine, self._offload)

    async def _fetch_for_peer(self, lacking: bytes) -> None:
        if trio.current_time() >= self._mend_from and not await self._fetch(lacking):
            self._mend_from = trio.current_time() + _MEND_AGAIN_S

    async def _fetch(self, lacking: bytes) -> int:
        """Ask for what a snapshot needs and is not here. Answers how many of these blocks are here now."""
        known = {fault.block_id: fault for fault in await self._offload.run(self._store.broken)}
        mended = 0
        for at in range(0, len(lacking), _MEND_BATCH * BLOCK_ID_BYTES):
            lost = split_ids(lacking[at : at + _MEND_BATCH * BLOCK_ID_BYTES])
            try:
                mended += await self._mend([known.get(b, Fault(b, Kind.DATA, Cause.MISSING, None)) for b in lost])
            except StoreError as error:
                # A full disk is no reason to leave the comparison without an answer; it has an alert of its own.
                get_logger().warning("audit.not_mended", error=str(error))
                break
        return mended

    async def _view(self, record: SnapshotRecord, nonce: bytes, *, on_lacking: Callable[[bytes], None]) -> _View:
        """What is here of a snapshot, summed under the key of a nonce.

        `on_lacking` is told the ids that are not, joined: before the sums are made, which takes longer.
        """
        async with self._building:
            holes = frozenset(fault.block_id for fault in await self._offload.run(self._store.broken))
            key = (record.snapshot_id, nonce)
            view = self._views.pop(key, None)
            if view is None or view.holes != holes:
                # The ledger says what is here, whatever was here when the snapshot was entered.
                needed = await self._needed(record)
                here, lacking = await self._offload.run(lambda: common(needed, self._store.ids()))
                if lacking:
                    on_lacking(lacking)
                token_key = TokenKey(snapshot_id=record.snapshot_id, nonce=nonce)
                frozen = await self._offload.run(FrozenSet, here, token_key)
                view = _View(frozen, len(here) // BLOCK_ID_BYTES, len(lacking) // BLOCK_ID_BYTES, holes)
            if view.lacking:
                return view  # It is being mended: the next session has to look again.
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
