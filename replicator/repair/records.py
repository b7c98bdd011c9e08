"""Holding the catalogue and the records in the store against each other, in both directions.

A snapshot's record is kept twice: in a row of the catalogue and as a block in the store. Both
are signed by the origin, so neither has to be believed, and each can be mended from the other:

- a row whose signature, columns or block id are wrong is mended from the block;
- a record whose block is gone is written again from the row;
- a record without a row, that nobody deleted, is a row that was lost: if everything that it
  needs is here, it is entered again. If a writer is at work it is left for the next time: its
  row may be about to come.

What neither side can say any more is refused by name, and stays an alert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.ids import BlockId, SnapshotId, split_ids
from protocol.wire.envelope import parse_header, seal
from protocol.wire.hashing import Kind
from replicator.catalog.audit import (
    SnapshotRow,
    buried,
    bury,
    damage_of_file,
    forget_graves,
    mend_row,
    open_row,
    snapshot_rows,
)
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.walk import closure
from replicator.catalog.records import SnapshotRecord, open_record
from replicator.core.errors import BlockMissing, ManifestDamaged, ReplicatorError, Untrusted
from replicator.core.ports import Offload, WallClock
from replicator.repair.verdict import Verdict
from replicator.store.ports import BlockReader, BlockStore, Lease, SealedBlock

_NOTED: Final = "deletions.noted"
"""Set in the catalogue once every deletion is in its table; before that its word is taken once, at the first check."""
_READ: Final = 256
_HOLDER: Final = "scrub"


@dataclass(slots=True)
class _Look:
    """What the blocking half found."""

    verdicts: list[Verdict] = field(default_factory=list)
    strays: dict[BlockId, bytes] = field(default_factory=dict)
    """Records that no row speaks for and that nobody deleted: their blocks and their signed bytes."""


class RecordCheck:
    """Checks and mends the catalogue of one node."""

    def __init__(
        self, *, store: BlockStore, catalog: Catalog, reader: BlockReader, offload: Offload, clock: WallClock
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reader = reader
        self._offload = offload
        self._clock = clock

    async def run(self) -> list[Verdict]:
        """One whole check. Every finding is mended if it can be."""
        look = await self._offload.run(self._look)
        is_quiet = not [holder for holder in self._store.holders() if holder != _HOLDER]
        for block, signed in look.strays.items() if is_quiet else ():
            look.verdicts.append((await self._take_back(block, signed))[0])
        return look.verdicts

    async def take_back_lost(
        self, seen: dict[BlockId, float], *, give_up: bool = False
    ) -> tuple[list[Verdict], list[tuple[BlockId, bytes]]]:
        """Of a check only the third part, and cheap: what a collection must know before it judges anything.

        While a writer is at work a record without a row may be its own, a moment before the row: that one is given
        back, for whoever judges to spare what it needs. But on some nodes a writer is always at work. So `seen` keeps
        when each was met first, and one that is older than a lease is nobody's any more: who wrote it has published
        it by then, or has lost the right to.

        The number that catalogue and store share tells of an older catalogue only if something was opened or closed
        since that copy was made. A node that was killed, and got a copy from the same run, has neither.

        Given back as well is what this site would take from nobody just now. After a catalogue was lost, the keys that
        took the place of others are not known until the peers have told of them again: until then, what a site has
        signed with its second key is a stranger's, and a volume is of one site. And so is what lacks a block that is
        broken here: when that is healed it is whole again. `give_up` is a person's word that such snapshots are not
        wanted any more.
        """
        strays = await self._offload.run(self._unexplained)
        is_quiet = not [holder for holder in self._store.holders() if holder != _HOLDER]
        now = trio.current_time()
        for block in seen.keys() - strays.keys():
            del seen[block]
        verdicts: list[Verdict] = []
        waiting: list[tuple[BlockId, bytes]] = []
        for block, signed in strays.items():
            if why := self._disowned(signed):
                verdicts.append(_row_verdict(open_record(signed), f"refused: {why}", is_mended=False))
                waiting += [] if give_up else [(block, signed)]
            elif is_quiet or now - seen.setdefault(block, now) > self._lease_s():
                verdict, lacking = await self._take_back(block, signed)
                verdicts.append(verdict)
                if lacking is not None and not give_up and lacking in self._broken():
                    waiting.append((block, signed))
            else:
                waiting.append((block, signed))
        return verdicts, waiting

    async def broken_strays(self) -> list[BlockId]:
        """Records that are broken, and belong to no row and to no deletion: what their snapshots need is not known."""
        return await self._offload.run(self._broken_strays)

    def _broken_strays(self) -> list[BlockId]:
        if self._catalog.fact(_NOTED) is None:
            return []
        broken = [fault.block_id for fault in self._store.broken() if fault.kind == Kind.RECORD]
        explained = self._explained() if broken else set()
        return [block for block in broken if block not in explained]

    def _explained(self) -> set[BlockId]:
        rows, graves = snapshot_rows(self._catalog.db), buried(self._catalog.db)
        return {*(BlockId(row.record_block) for row in rows), *graves.values()}

    def _broken(self) -> set[BlockId]:
        return {fault.block_id for fault in self._store.broken()}

    def _disowned(self, signed: bytes) -> str:
        try:
            self._catalog.check_owner(open_record(signed))
        except Untrusted as error:
            return error.message
        return ""

    def _lease_s(self) -> float:
        lease = self._store.begin(_HOLDER)
        self._store.end(lease)
        return lease.lasts_s

    # -- in a worker thread ---------------------------------------------------------------

    def _look(self) -> _Look:
        look = _Look()
        if wrong := damage_of_file(self._catalog.db):
            look.verdicts.append(
                Verdict(
                    what="catalogue", subject=self._catalog.db.path.name, cause=wrong, place=str(self._catalog.db.path),
                    done="refused: put a copy back, or move it away and its snapshots are found in the store",
                    is_mended=False,
                )
            )  # fmt: skip
            return look
        records = self._records_in_store()
        here = {name for name, _ in records.values()}
        rows: set[bytes] = set()
        for row in snapshot_rows(self._catalog.db):
            record = open_row(row)
            if isinstance(record, str):
                kept = self._mend(row, record, records, look)
                rows.update(kept)
                continue
            rows.add(record.snapshot_id)
            if BlockId(row.record_block) not in here:
                look.verdicts.append(self._write_again(record, row))
        self._sort_strays(records, rows, look)
        return look

    def _unexplained(self) -> dict[BlockId, bytes]:
        """Records that belong to no row and to no deletion. Reads only those of which the row's name does not tell."""
        if self._catalog.fact(_NOTED) is None:
            return {}
        rows, graves = snapshot_rows(self._catalog.db), buried(self._catalog.db)
        explained = {*(row.record_block for row in rows), *graves.values()}
        names = [name for name in self._store.of_kind(Kind.RECORD) if name not in explained]
        known = {*(row.snapshot_id for row in rows), *graves}
        return {block: signed for one, (block, signed) in self._sound(names).items() if one not in known}

    def _records_in_store(self) -> dict[SnapshotId, tuple[BlockId, bytes]]:
        """Every sound record among the blocks, by its snapshot."""
        return self._sound(self._store.of_kind(Kind.RECORD))

    def _sound(self, names: Sequence[BlockId]) -> dict[SnapshotId, tuple[BlockId, bytes]]:
        found: dict[SnapshotId, tuple[BlockId, bytes]] = {}
        for at in range(0, len(names), _READ):
            for name, body in self._store.read(names[at : at + _READ]).sound.items():
                try:
                    found[open_record(bytes(body)).snapshot_id] = (name, bytes(body))
                except (ManifestDamaged, Untrusted):
                    continue  # A hash that is right over a signature that is wrong: nobody of ours wrote that.
        return found

    def _mend(
        self, row: SnapshotRow, wrong: str, records: dict[SnapshotId, tuple[BlockId, bytes]], look: _Look
    ) -> list[bytes]:
        by_block = dict(records.values())
        good = by_block.get(BlockId(row.record_block))
        if good is None:
            good = records.get(SnapshotId(row.snapshot_id), (None, None))[1]
        subject = row.snapshot_id.hex()
        if good is None:
            look.verdicts.append(
                Verdict(
                    what="catalogue", subject=subject, cause=wrong, place="table snapshots",
                    done="refused: neither row nor block has the record; a peer that has the snapshot can send it",
                    is_mended=False,
                )
            )  # fmt: skip
            return [row.snapshot_id]
        mend_row(self._catalog.db, row, good)
        look.verdicts.append(
            Verdict(
                what="catalogue", subject=subject, cause=wrong, place="table snapshots",
                done="row mended from the record's block", is_mended=True,
            )
        )  # fmt: skip
        return [open_record(good).snapshot_id]

    def _write_again(self, record: SnapshotRecord, row: SnapshotRow) -> Verdict:
        sealed = seal(Kind.RECORD, row.signed)
        lease = self._store.begin(_HOLDER)
        try:
            self._store.append(lease, [SealedBlock(parse_header(sealed), sealed)])
            self._store.commit(lease)
            done, is_mended = "record written again from the catalogue", True
        except ReplicatorError as error:
            done, is_mended = f"could not be written again: {error.message}", False
        finally:
            self._store.end(lease)
        return Verdict(
            what="record", subject=record.snapshot_id.hex(), cause="missing", place="the store", done=done,
            is_mended=is_mended, block_id=BlockId(row.record_block),
        )  # fmt: skip

    def _sort_strays(self, records: dict[SnapshotId, tuple[BlockId, bytes]], rows: set[bytes], look: _Look) -> None:
        catalog, graves = self._catalog, buried(self._catalog.db)
        strays = {one: found for one, found in records.items() if one not in rows and one not in graves}
        if catalog.fact(_NOTED) is None:
            bury(catalog.db, [(one, block) for one, (block, _) in strays.items()], now_ns=self._clock.now_ns())
            catalog.set_fact(_NOTED, "yes")
            strays = {}
        look.strays = dict(strays.values())
        # One whose record is broken is still told from a lost row by its grave alone.
        broken = self._broken()
        forget_graves(catalog.db, [one for one, block in graves.items() if one not in records and block not in broken])

    # -- on the event loop ----------------------------------------------------------------

    async def _take_back(self, block: BlockId, signed: bytes) -> tuple[Verdict, BlockId | None]:
        """Also the block for whose sake it could not be, if that was the reason."""
        record, lacking = open_record(signed), None
        lease = self._store.begin(_HOLDER)
        try:
            async for _, packed in closure(self._reader, record.root, record.shape):
                await self._offload.run(self._demand, lease, packed)
            self._catalog.add_snapshot(signed, block)
            self._store.renew(lease)
            done, is_mended = "row entered again from the record's block", True
        except ReplicatorError as error:
            done, is_mended = f"refused: {error.message}", False
            lacking = BlockId(error.block_id) if isinstance(error, BlockMissing) else None
        finally:
            self._store.end(lease)
        return _row_verdict(record, done, is_mended=is_mended), lacking

    def _demand(self, lease: Lease, packed: bytes) -> None:
        ids = split_ids(packed)
        here = self._store.have(lease, ids)
        for block in ids:
            if block not in here:
                raise BlockMissing(block)


def _row_verdict(record: SnapshotRecord, done: str, *, is_mended: bool) -> Verdict:
    return Verdict(
        what="catalogue", subject=record.snapshot_id.hex(), cause="its row is missing", place="table snapshots",
        done=done, is_mended=is_mended,
    )  # fmt: skip
