"""One snapshot on its way in.

We say which roots of its volume we hold, the sender tells the difference, and while it is still
telling we ask for the blocks that we lack, prove them and store them. We build the new manifest
ourselves from our old one and the difference: if its root is the one that the origin signed, we
have understood everything.

Without the site that offers, others may have what is left. They need not tell a difference; the signed root and the
blocks are enough (`descent.py`). If it only falls silent while it tells the difference, the same is done, without
giving up on it (`hearing.py`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Final

from protocol.errors import Unexpected
from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK, BlockId, SiteId, VolumeId, split_ids
from protocol.limits import HAVE_ROOTS_MAX
from protocol.messages.snapshots import DiffBase, SyncReport, WantDiff
from protocol.wire.frames import Lane
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.entries import pieces_of
from replicator.catalog.manifest.nodes import Shape, decode_node
from replicator.catalog.manifest.walk import closure
from replicator.catalog.model import Snapshot
from replicator.catalog.records import Signer, SnapshotRecord
from replicator.core.errors import ManifestDamaged
from replicator.core.logging import get_logger
from replicator.core.ports import Offload, WallClock
from replicator.net.link import Link
from replicator.store.ports import BlockReader, BlockStore, Lease
from replicator.sync.bases import BaseReader, Bases
from replicator.sync.descent import descend
from replicator.sync.difference import DifferenceReader
from replicator.sync.fetch import Fetcher
from replicator.sync.hearing import FellSilent, Hearing
from replicator.sync.publish import publish_snapshot, store_nodes, store_record
from replicator.sync.told import Told

_ASK_BATCH: Final = 256
_NODE_BATCH: Final = 128
_EXPECTED: Final = 256
"""Changes whose nodes of the old manifest are read together: at most some megabytes."""
SOURCES_MAX: Final = 3
"""Sites that are asked for blocks besides the one that offers: four of them fill any link of ours."""


@dataclass(frozen=True, slots=True)
class ReceiverPorts:
    """What a receive needs."""

    store: BlockStore
    catalog: Catalog
    reader: BlockReader
    offload: Offload
    clock: WallClock
    site_id: SiteId
    sign: Signer
    holders: Callable[[VolumeId], Sequence[Link]]
    """Linked sites that hold something of a volume: further sources of its blocks."""
    receiving: Callable[[SiteId], AbstractAsyncContextManager[None]]
    """Around what a further source sends: it is told its share of what may come in."""
    on_received: Callable[[Snapshot, SiteId], None]
    """Told of each snapshot that has become ours: onward syncs and pruning start here."""


class Intake:
    """One receive of one snapshot, from the site that offers it and others, or from others alone."""

    def __init__(
        self,
        sender: Link | None,
        others: Sequence[Link],
        record: SnapshotRecord,
        *,
        ports: ReceiverPorts,
        bases: Bases,
        lease: Lease,
        on_told: Callable[[Told], None] | None,
    ) -> None:
        self._on_told = on_told
        self._told = Told()
        self._sender = sender
        self._bases = bases
        self._record = record
        self._ports = ports
        self._lease = lease
        self.fetcher = Fetcher(
            sender,
            others=others[:SOURCES_MAX],
            store=ports.store,
            lease=lease,
            offload=ports.offload,
            lane=Lane.SYNC,
            receiving=ports.receiving,
        )
        self._hearing = Hearing(self.fetcher.sources)
        self.plan_is_complete = False
        self._ids: list[BlockId] = []
        self._piece_roots: list[BlockId] = []
        self._nodes: list[tuple[BlockId, bytes]] = []
        self._already_here = self._entries = self._diff_bytes = self._round_trips = 0
        self._base = b""

    async def receive(self) -> None:
        """Everything up to, and without, publishing. Raises on the first thing that is not as announced."""
        assert self._sender is not None
        try:
            root = await self._read_difference(self._sender)
        except FellSilent:
            record = self._record
            get_logger().warning("difference.silent", peer=self._sender.name, volume=record.volume_name)
            self._nodes, self._entries = [], 0  # Half a map is none: the way down finds all of it.
            self._on_told = None
            await self.complete()
            return
        await self._fetch_rest()
        await self._store_nodes()
        if root != self._record.root:
            volume = self._record.volume_name
            raise ManifestDamaged(
                f"What {self._sender.name} told of {volume} does not lead to the root that was signed.",
                hint="Run `replicator scrub` there.",
            )
        await self.check_if_damaged()

    async def watch(self) -> None:
        """Beside `receive`: let nobody wait for a sender that says nothing, if others have what it was to tell."""
        await self._hearing.watch(lambda: self.fetcher.bring([self._record.root]))

    async def complete(self) -> None:
        """The same without anybody who tells the difference: down from the root, beside the nearest map here."""
        record, held = self._record, self._held()
        unfit = await self._bases.unfit(held)
        base = next((root for root in held if root not in unfit), None)
        self._base = base or b""
        async for value in descend(
            self._ports.reader,
            self.fetcher.bring,
            base=base,
            base_reader=BaseReader(self._ports.reader, self._bases, base),
            root=record.root,
            shape=record.shape,
            entries_max=record.entries,
        ):
            self._entries += 1
            if self._entries > record.entries:
                raise ManifestDamaged("A map has more entries than its snapshot says.")
            self._note_needed(value)
            await self._ask()
        await self._fetch_rest()
        await self.check_if_damaged()

    async def _fetch_rest(self) -> None:
        await self._ask(flush=True)
        await self._receive_pieces()
        self.plan_is_complete = True
        if self._on_told is not None:
            self._told.from_base = bool(self._base)
            self._on_told(self._told)
        await self.fetcher.drain()

    def _held(self) -> dict[BlockId, int]:
        """Roots of the volume that are whole here, the best base first, and how many entries each has.

        After an outage the newest snapshot comes first and older ones fill in: what lies nearest differs least.
        """
        record = self._record
        others = [snapshot.record for snapshot in reversed(self._ports.catalog.snapshots(record.volume_id))]
        others.sort(key=lambda one: abs(one.sequence - record.sequence))
        return {one.root: one.entries for one in others[:HAVE_ROOTS_MAX] if one.shape is record.shape}

    async def _read_difference(self, sender: Link) -> BlockId:
        record, ports = self._record, self._ports
        held = self._held()
        for root in await self._bases.unfit(held):
            del held[root]
        request = WantDiff(snapshot_id=record.snapshot_id, have_roots=b"".join(held))
        self._round_trips += 1
        hear = self._hearing.receive
        async with sender.open(request, lane=Lane.SYNC) as stream:
            first = await hear(stream)
            if not isinstance(first, DiffBase) or (first.base_root and first.base_root not in held):
                raise Unexpected("a difference does not begin with a base that we hold")
            self._base = first.base_root
            base = BlockId(first.base_root) if first.base_root else None
            reader = BaseReader(ports.reader, self._bases, base)
            editor = MapEditor(record.shape, self._take_node, reader=reader, base=base)
            unpack = DifferenceReader(record.shape)
            # At worst all that was there goes, and all that is there now comes: a longer one has no end.
            entries_max = record.entries + (held[base] if base else 0)
            complete = False
            while (item := await hear(stream)) is not None:
                if isinstance(item, DiffBase):
                    complete = True
                    continue
                if isinstance(item, bytes) or complete:
                    raise Unexpected("a difference goes on after its end")
                changes = unpack.changes(item)
                while some := list(islice(changes, _EXPECTED)):
                    self._entries += len(some)
                    if self._entries > entries_max:
                        raise Unexpected("a difference names more than both snapshots hold")
                    await editor.expect([key for key, _ in some])
                    for key, value in some:
                        await editor.put(key, value)
                        if value is not None:
                            self._note_needed(value)
                await self._ask()
                await self._store_nodes_if_many()
                self._diff_bytes = stream.message_bytes_in
        if not complete:
            raise Unexpected("a difference ends before its end")
        return await editor.finish()

    def _take_node(self, name: BlockId, body: bytes) -> None:
        self._nodes.append((name, body))

    def _note_needed(self, value: bytes) -> None:
        if self._record.shape is not Shape.NAMES:
            self._note([BlockId(value[:BLOCK_ID_BYTES])], [self._record.block_bytes])
            return
        lengths, ids, root = pieces_of(value)
        self._note(split_ids(ids), lengths)
        if root:
            self._piece_roots.append(BlockId(root))

    def _note(self, ids: list[BlockId], sizes: list[int]) -> None:
        self._ids += ids
        if self._on_told is not None:
            self._told.name(ids, sizes)

    async def _ask(self, *, flush: bool = False) -> None:
        while len(self._ids) >= _ASK_BATCH or (flush and self._ids):
            batch, self._ids = self._ids[:_ASK_BATCH], self._ids[_ASK_BATCH:]
            await self._want([block for block in batch if block != ZERO_BLOCK])

    async def _want(self, ids: list[BlockId]) -> None:
        missing = await self.fetcher.want(ids)
        self._already_here += len(ids) - len(missing)
        if self._on_told is not None:
            self._told.look_up(ids, missing)

    async def _receive_pieces(self) -> None:
        """Large files' own maps, level by level: their nodes travel as blocks, and say what else is needed."""
        levels: dict[BlockId, int | None] = dict.fromkeys(self._piece_roots)  # None: a root may be of any level.
        self._piece_roots = []
        while levels:
            nodes = list(levels)
            self._round_trips += 1
            await self._want(nodes)
            await self.fetcher.drain()
            below: dict[BlockId, int | None] = {}
            for at in range(0, len(nodes), _ASK_BATCH):
                for block, body in (await self._ports.reader.read(nodes[at : at + _ASK_BATCH])).items():
                    node = decode_node(body)
                    if node.shape is not Shape.PIECES or levels[block] not in (None, node.level):
                        # Levels count down, or a peer could lead us down a tree that has no end.
                        raise ManifestDamaged("A large file's map is not the map that the entry above it says.")
                    ids = [BlockId(value[:BLOCK_ID_BYTES]) for value in node.values]
                    if node.level:
                        below.update(dict.fromkeys(ids, node.level - 1))
                    else:
                        self._note(ids, [int.from_bytes(value[BLOCK_ID_BYTES:], "big") for value in node.values])
                await self._ask()
            levels = below
        await self._ask(flush=True)

    async def _store_nodes_if_many(self) -> None:
        if len(self._nodes) >= _NODE_BATCH:
            await self._store_nodes()

    async def _store_nodes(self) -> None:
        nodes, self._nodes = self._nodes, []
        if nodes:
            await self._ports.offload.run(store_nodes, self._ports.store, self._lease, nodes)

    async def check_if_damaged(self) -> None:
        """If anything at all is broken here, prove that nothing of this snapshot is, before signing for it.

        What we took over from an older snapshot was whole when that one was signed for; only
        damage since then can have changed it, and damage is known to the store.
        Raises `BlockMissing`.
        """
        if not self._ports.store.broken():
            return
        record = self._record
        async for _, packed in closure(self._ports.reader, record.root, record.shape):
            ids = [BlockId(packed[at : at + BLOCK_ID_BYTES]) for at in range(0, len(packed), BLOCK_ID_BYTES)]
            here = await self._ports.offload.run(self._ports.store.have, self._lease, ids)
            broken = [block for block in ids if block not in here]
            if broken:
                # Reading through the healing reader mends them, or says that nobody can.
                await self._ports.reader.read(broken)

    async def publish(self, signed: bytes) -> None:
        """Make everything durable, then known. The order is the promise."""
        ports = self._ports
        await ports.offload.run(ports.store.commit, self._lease)
        name = await ports.offload.run(store_record, ports.store, self._lease, signed)
        publish_snapshot(ports.catalog, ports.store, self._lease, signed, name)

    def report(self) -> SyncReport:
        counts = self.fetcher.counts
        return SyncReport(
            blocks_received=counts.received,
            blocks_received_twice=counts.received_twice,
            blocks_already_here=self._already_here,
            block_bytes=counts.sealed_bytes,
            diff_bytes=self._diff_bytes,
            diff_entries=self._entries,
            round_trips=self._round_trips,
            base_root=self._base,
        )
