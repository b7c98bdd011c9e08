"""The store of one node on one local file system: its verbs, put together of its halves.

`commits` writes, `verify` reads, `inspection` looks at what is at rest, `shelves` is what a collector may do.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer
from replicator.core.errors import StoreFull
from replicator.core.logging import get_logger
from replicator.core.ports import SystemClock, WallClock
from replicator.store.commits import Commits
from replicator.store.config import StoreConfig
from replicator.store.inspection import LocalInspection
from replicator.store.layout import StoreLayout
from replicator.store.leases import Leases
from replicator.store.opening import open_ledger, rebuilt_ledger, recover
from replicator.store.ports import (
    Bodies,
    Cause,
    Fault,
    Lease,
    ScrubCursor,
    SealedBlock,
    SealedRuns,
    SegmentAge,
    StoreStatistics,
    VerifiedPart,
)
from replicator.store.replay import Replayed
from replicator.store.segments import SegmentFiles
from replicator.store.shelves import LocalShelves
from replicator.store.sums import SumFiles
from replicator.store.verify import Piece, Wanted, read_pieces

_PENDING_MAX: Final = 32 * 1024
"""Blocks that may wait for a commit, wherever they come from: half a kilobyte of memory each."""


class LocalStore:
    """The `BlockStore` that a node uses. Open it with `LocalStore.open`."""

    def __init__(
        self,
        layout: StoreLayout,
        config: StoreConfig,
        *,
        clock: WallClock,
        monotonic: Callable[[], float],
        lock_handle: int,
    ) -> None:
        self._layout = layout
        self.config = config
        self._clock = clock
        self._lock_handle = lock_handle
        self.leases = Leases(clock=monotonic, lease_s=config.lease_s)
        self.files = SegmentFiles(
            layout.segments,
            sums=SumFiles(layout.sums),
            segment_bytes_max=config.segment_bytes_max,
            past_cache=config.past_cache,
            long_run_bytes=config.long_run_bytes,
        )
        self.ledger = open_ledger(layout, config)
        self.housekeeping = threading.Lock()
        """Held by whoever removes segments or rows, or makes the ledger anew."""
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prove")
        self.commits = Commits(self, refuse_if_full=self._refuse_if_full)
        self.replayed = Replayed(0, 0, 0)
        self.shelves = LocalShelves(self)
        self._inspection = LocalInspection(self, clock=clock, threads=self._threads)

    @classmethod
    def open(
        cls,
        root: Path,
        config: StoreConfig | None = None,
        *,
        clock: WallClock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> "LocalStore":
        """Open or create the store at `root`, recover what a crash left, and hold its lock.

        Raises `StoreLocked`, `ConfigError`, `OSError`.
        """
        layout = StoreLayout(root)
        layout.prepare()
        handle = layout.acquire()
        try:
            store = cls(
                layout, config or StoreConfig(), clock=clock or SystemClock(), monotonic=monotonic, lock_handle=handle
            )
            store.leases.epoch = max(1, store.ledger.fact("epoch"))
            store.replayed = recover(layout, store.files, store.ledger, now_ns=store._clock.now_ns())
            store._inspection.absolve()
        except BaseException:
            layout.release(handle)
            raise
        if store.replayed.blocks or store.replayed.skipped_bytes:
            get_logger().info(
                "store.replayed",
                segments=store.replayed.segments,
                blocks=store.replayed.blocks,
                skipped_bytes=store.replayed.skipped_bytes,
            )
        return store

    def rebuild_ledger(self, why: str) -> None:
        """Make the ledger anew from the segments, because something in it is not as it was written.

        Reads go on with what the old one knows; commits and collections wait, as long as it takes to read everything.
        """
        self.flush()
        with self.housekeeping, self.commits.commit_lock:
            # The old one is not closed: a reader may be in the middle of it. It goes when nobody refers to it.
            self.ledger = rebuilt_ledger(self._layout, self.config, self.files, self.ledger, why=why)

    # -- writing --------------------------------------------------------------------------

    def begin(self, holder: str) -> Lease:
        return self.leases.begin(holder)

    def end(self, lease: Lease) -> None:
        self.leases.end(lease)

    def renew(self, lease: Lease) -> None:
        self.leases.check(lease)

    def holders(self) -> list[str]:
        return self.leases.holders()

    def have(self, lease: Lease, ids: Sequence[BlockId]) -> set[BlockId]:
        self.leases.check(lease)
        condemned = self.ledger.condemned_among(ids)
        if condemned:
            # Told "present" under a lease is a promise, so the sentence is lifted before we look what
            # is here: the other way round a sweep could carry it out in between.
            with self.noticing():
                self.ledger.revive(list(condemned))
        # In this order: see `Commits`.
        return self.commits.waiting(ids).keys() | self.ledger.present(ids)

    def append(self, lease: Lease, blocks: Sequence[SealedBlock]) -> int:
        added = self.commits.append(blocks, here=self.have(lease, [block.header.block_id for block in blocks]))
        if self.commits.pending_count >= _PENDING_MAX:
            self.flush()  # Writers count bytes, and of the smallest blocks a million wait before those are many.
        return added

    def reserve_bytes(self) -> int:
        """What writes must leave free on this disk."""
        room = os.statvfs(self._layout.segments)
        return min(self.config.reserve_bytes_max, int(room.f_blocks * room.f_frsize * self.config.reserve_share))

    def _refuse_if_full(self, coming_bytes: int) -> None:
        room = os.statvfs(self._layout.segments)
        free = room.f_bavail * room.f_frsize
        reserve = self.reserve_bytes()
        if free - coming_bytes < reserve:
            raise StoreFull(
                f"{self._layout.root} has {free} bytes free, and {reserve} are kept in reserve.",
                hint="Delete snapshots and run `replicator gc`, or give the disk more room.",
            )

    def commit(self, lease: Lease, *, keep_cached: bool = True) -> None:
        self.leases.check(lease)
        self.flush(keep_cached=keep_cached)
        # And again: the process may have been stopped in the middle, a flush may take minutes, and somebody else's may
        # have found that what we wrote is gone.
        self.leases.check(lease)

    def flush(self, *, keep_cached: bool = True) -> None:
        """Make everything durable that was appended before, whoever did."""
        self.commits.flush(keep_cached=keep_cached)

    def noticing(self) -> AbstractContextManager[None]:
        """A flush of the ledger that fails closes the store for writes, whoever asked for it."""
        return self.commits.noticing()

    def fact(self, name: str) -> int:
        """A number that somebody keeps with the ledger, to notice if it is replaced; 0 if there is none."""
        return self.ledger.fact(name)

    def set_fact(self, name: str, value: int) -> None:
        with self.noticing():
            self.ledger.set_fact(name, value)

    def full_segments(self) -> list[int]:
        """The segments that will never be appended to again."""
        return self.commits.full_segments()

    def rewrite(self, blocks: Sequence[SealedBlock]) -> None:
        """Give proven blocks a second place, make it durable, and only then let the ledger point there."""
        self.commits.rewrite(blocks)

    # -- reading --------------------------------------------------------------------------

    def wanted(self, ids: Sequence[BlockId]) -> tuple[list[Wanted], list[Fault]]:
        """Where these lie now, and faults for those that lie nowhere."""
        unique = list(dict.fromkeys(ids))
        fresh = self.commits.waiting(unique)  # Before the ledger: see `Commits`.
        known = self.ledger.places([block for block in unique if block not in fresh])
        wanted: list[Wanted] = [(block, place, header.kind) for block, (header, place) in fresh.items()]
        wanted += [(block, place, kind) for block, (place, kind) in known.items()]
        absent = [block for block in unique if block not in fresh and block not in known]
        causes = self.ledger.broken_causes(absent) if absent else {}
        return wanted, [_absent(block, causes) for block in absent]

    def _pieces(self, ids: Sequence[BlockId], take: Callable[[list[Piece]], None]) -> list[Fault]:
        """Read, and read again what a collection moved away under us. Returns what is not sound."""
        wanted, faults = self.wanted(ids)
        suspects: list[Fault] = []
        for run in read_pieces(self.files, wanted):
            self._inspection.note_soft(sum(piece.is_soft for piece in run))
            suspects += [piece.fault for piece in run if piece.fault is not None]
            take([piece for piece in run if piece.fault is None])
        sound, still = self._inspection.look_again(suspects)
        for run in sound:
            take(run)
        return faults + still

    def read(self, ids: Sequence[BlockId]) -> Bodies:
        bodies = Bodies()

        def take(run: list[Piece]) -> None:
            bodies.sound.update((piece.wanted[0], piece.body) for piece in run)

        bodies.faults = self._pieces(ids, take)
        return bodies

    def read_sealed(self, ids: Sequence[BlockId]) -> SealedRuns:
        answer = SealedRuns()

        def take(run: list[Piece]) -> None:
            if run:
                answer.runs.append(_joined(run))
                answer.blocks_count += len(run)

        answer.faults = self._pieces(ids, take)
        return answer

    # -- damage ---------------------------------------------------------------------------

    def quarantine(self, faults: Sequence[Fault]) -> int:
        for fault in faults:
            if fault.place is not None:
                self.commits.stop_writing_to(fault.place.segment)
        with self.noticing():
            return self.ledger.quarantine(faults, now_ns=self._clock.now_ns())

    def broken(self) -> list[Fault]:
        return self.ledger.broken()

    def verify(
        self, *, after: ScrubCursor | None, bytes_max: int, past_cache: bool = False, by_sums: bool = False
    ) -> VerifiedPart:
        return self._inspection.verify(after=after, bytes_max=bytes_max, past_cache=past_cache, by_sums=by_sums)

    def still_faulty(self, suspects: Sequence[Fault]) -> list[Fault]:
        """Look again before condemning anything: at its present place, and past the page cache (restic#4774)."""
        return [fault for fault in self._inspection.look_again(suspects)[1] if fault.place is not None]

    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]:
        return self._inspection.rescue(ids)

    def check_index(self) -> str:
        wrong = self.ledger.check() or next((found for found in self.ledger.check_rows() if found), "")
        if wrong:
            self.rebuild_ledger(wrong)
        return wrong

    def of_kind(self, kind: int) -> list[BlockId]:
        return self.ledger.of_kind(kind)

    def ages(self) -> list[SegmentAge]:
        return self._inspection.ages()

    def flush_quietly(self) -> None:
        """So that a scrub sees what was appended; a store that cannot write can still be read."""
        if not self.files.poisoned:
            self.flush()

    # -- the rest -------------------------------------------------------------------------

    def ids(self) -> Iterator[bytes]:
        return self.ledger.packed_ids()

    def statistics(self) -> StoreStatistics:
        blocks, sealed, body = self.ledger.totals()
        numbers = self.files.numbers()
        return StoreStatistics(
            blocks=blocks,
            sealed_bytes=sealed,
            body_bytes=body,
            disk_bytes=sum(self.files.size(number) for number in numbers),
            segments=len(numbers),
            broken_blocks=self.ledger.broken_count(),
            condemned_blocks=self.ledger.condemned_count(),
            read_only=self.files.poisoned,
            oldest_verified_ns=self.ledger.oldest_verified_ns(),
            soft_errors=self._inspection.soft_errors,
        )

    def close(self) -> None:
        self._threads.shutdown()
        self.files.close()
        self.ledger.close()
        self._layout.release(self._lock_handle)


def _joined(run: list[Piece]) -> Buffer:
    """Neighbours without gaps are handed on as the one piece of memory that they were read into."""
    whole = run[0].run
    if len(whole) == sum(len(piece.sealed) for piece in run):
        return whole
    return b"".join(piece.sealed for piece in run)


def _absent(block: BlockId, causes: dict[BlockId, tuple[Cause, int]]) -> Fault:
    cause, kind = causes.get(block, (Cause.MISSING, 0))
    return Fault(block, kind, cause, None)
