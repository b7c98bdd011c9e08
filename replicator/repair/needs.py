"""Whether everything that the snapshots need is here: every map walked from its root, every block looked up.

What the ledger has lost all trace of is looked for in the segments first, then asked of the peers.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from protocol.ids import BLOCK_ID_BYTES, BlockId, split_ids
from protocol.wire.hashing import Kind
from replicator.catalog.audit import sound_records
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.walk import Layer, closure
from replicator.catalog.records import SnapshotRecord
from replicator.core.errors import BlockMissing, ManifestDamaged
from replicator.core.ports import Offload
from replicator.repair.verdict import Verdict, of_fault
from replicator.store.ports import BlockReader, BlockStore, Cause, Fault

_LOST_MAX: Final = 100_000
"""Blocks without an entry that are looked for at once: each search reads the whole store."""
_RUNS_A_STEP: Final = 64
_ASKED_BYTES: Final = 4096 * BLOCK_ID_BYTES


class NeedsCheck:
    """One walk through all snapshots, a step at a time. What it finds goes to `take_care` and `take_down`."""

    def __init__(
        self,
        *,
        store: BlockStore,
        catalog: Catalog,
        reader: BlockReader,
        offload: Offload,
        take_care: Callable[[Sequence[Fault]], Awaitable[None]],
        take_down: Callable[[Verdict], None],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._take_care = take_care
        self._take_down = take_down
        self._walk: AsyncGenerator[None, None] | None = None
        self._forget()

    def _forget(self) -> None:
        self._walk = None
        self._lost: dict[BlockId, Kind] = {}
        self._asked = {kind: bytearray() for kind in Kind}

    async def stop(self) -> None:
        """The next step begins anew."""
        if self._walk is not None:
            await self._walk.aclose()
        self._forget()

    async def walk_on(self) -> bool:
        """Some nodes further. Answers whether all maps are done. After a restart it begins anew: nodes are few."""
        if self._walk is None:
            self._walk = self._walk_all()
        try:
            for _ in range(_RUNS_A_STEP):
                if await anext(self._walk, _DONE) is _DONE:
                    self._walk = None
                    return True
        except BaseException:
            # A walk that was cut short is over, and would look like one that came to its end.
            self._forget()
            raise
        return False

    async def _walk_all(self) -> AsyncGenerator[None, None]:
        seen: set[BlockId] = set()
        for record in sound_records(self._catalog.db):
            layer = Layer(seen)
            while True:
                try:
                    async with aclosing(closure(self._reader, record.root, record.shape, seen=layer)) as needed:
                        async for kind, packed in needed:
                            await self._look_up(kind, packed)
                            yield
                    layer.merge()
                except BlockMissing as error:
                    if await self._find_again({BlockId(error.block_id): Kind.NODE}):
                        layer = Layer(seen)
                        continue
                    # A node that nobody has: what lies below it cannot even be named.
                    await self._take_care([Fault(BlockId(error.block_id), Kind.NODE, Cause.MISSING, None)])
                except ManifestDamaged as error:
                    self._take_down(_manifest_verdict(record, error))
                break
            yield
        for kind in Kind:
            await self._ask(kind)
        await self._settle_lost()

    async def _look_up(self, kind: Kind, packed: bytes) -> None:
        """Have these looked for, together with others: a trip to another thread costs as much as fifty of them."""
        asked = self._asked[kind]
        asked += packed
        if len(asked) >= _ASKED_BYTES:
            await self._ask(kind)

    async def _ask(self, kind: Kind) -> None:
        packed, self._asked[kind] = bytes(self._asked[kind]), bytearray()
        for block in await self._offload.run(self._lost_among, packed):
            self._lost[block] = kind
        if len(self._lost) >= _LOST_MAX:
            await self._settle_lost()

    def _lost_among(self, packed: bytes) -> list[BlockId]:
        ids = split_ids(packed)
        lease = self._store.begin("scrub")
        try:
            here = self._store.have(lease, ids)
        finally:
            self._store.end(lease)
        return [block for block in dict.fromkeys(ids) if block not in here]

    async def _settle_lost(self) -> None:
        """What snapshots need and the ledger does not know: from the segments if it lies there, else from the peers."""
        lost, self._lost = self._lost, {}
        if not lost:
            return
        known = {fault.block_id for fault in self._store.broken()}
        untraced = {block: kind for block, kind in lost.items() if block not in known}
        found = await self._find_again(untraced) if untraced else set()
        await self._take_care([Fault(b, k, Cause.MISSING, None) for b, k in lost.items() if b not in found])

    async def _find_again(self, lost: dict[BlockId, Kind]) -> set[BlockId]:
        found = await self._offload.run(self._store.rescue, list(lost))
        for block in found:
            self._lost.pop(block, None)
            fault = Fault(block, lost[block], Cause.MISSING, None)
            verdict = of_fault(fault, done="the ledger had lost it; entered again from its segment", is_mended=True)
            self._take_down(replace(verdict, what="index"))
        return set(found)


_DONE: Final = object()


def _manifest_verdict(record: SnapshotRecord, error: ManifestDamaged) -> Verdict:
    return Verdict(
        what="manifest",
        subject=record.snapshot_id.hex(),
        cause=error.message,
        place=f"{record.volume_name}, below root {record.root.hex()[:16]}",
        done="refused: its blocks are what was signed, so no peer has better ones; the next snapshot makes new nodes",
        is_mended=False,
    )
