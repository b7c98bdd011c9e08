"""The table of blocks: a log-structured one, because every block id is random and none is ever changed.

What is entered goes into the log (durable) and into a dictionary. When that is full it becomes a
sorted run, and runs are merged into fewer (`merge`). A look-up asks the dictionary and then the runs,
newest first, for all ids of a batch at once.

Why not an engine off the shelf: `docs/decisions/0010-the-ledgers-engine.md` has what was measured. In
short: nothing else kept a look-up under five microseconds, a row under eighty bytes and a hundred
thousand durable insertions a second at twenty million blocks, without holding up the event loop.

Invariants. What `put` has returned for survives a power cut. The files that the manifest names are
enough to open the table, whatever else lies beside them. A reader sees one state of dictionary and
runs together (`_view` is replaced whole), and never waits.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.core.errors import StoreError, StoreFull, StoreReadOnly
from replicator.core.logging import get_logger
from replicator.store.config import StoreConfig
from replicator.store.ledger.errors import LedgerDamaged
from replicator.store.ledger.log import FORGET, SUFFIX, UNCHANGED, Batch, Log, SegmentNote, log_path, read_log
from replicator.store.ledger.manifest import (
    Manifest,
    RunName,
    SegmentState,
    Totals,
    read_manifest,
    write_manifest,
)
from replicator.store.ledger.merge import LEVEL_NEW
from replicator.store.ledger.merger import Merger
from replicator.store.ledger.rows import (
    LOG_ROW_BYTES,
    RECORD,
    Answer,
    Heads,
    Rests,
    no_answer,
    unpack_record,
)
from replicator.store.ledger.run import SUFFIX as RUN_SUFFIX
from replicator.store.ledger.run import Run, write_run
from replicator.store.ledger.search import ask_runs, ids_in_order, scan_runs, sorted_rows

_LOGS_MAX: Final = 8
"""Each start begins a log. After so many the rows in them become a run, or they would pile up."""
_OVERFULL: Final = 4
"""How many times `fresh_rows_max` may wait in memory while the disk is too full for a run."""


class Row(NamedTuple):
    """A row to be entered."""

    block_id: BlockId
    record: bytes


class _View(NamedTuple):
    """What a reader sees."""

    fresh: dict[BlockId, bytes]
    runs: tuple[Run, ...]
    """In the order in which they are asked: newest first, the parts of the base last."""


class BlockTable:
    """Rows by block id. Thread-safe: one writes at a time, readers do not wait."""

    def __init__(self, folder: Path, config: StoreConfig) -> None:
        """Open the table in `folder`, or make one. Raises `LedgerDamaged`, `StoreError`."""
        self._folder = folder
        self._fresh_rows_max = config.ledger_fresh_rows_max
        self._lock = threading.RLock()
        self.changed = threading.Condition(self._lock)
        """Notified when other runs have taken the place of some."""
        self.entered = 0
        """How many rows were entered since the table was opened."""
        # Sums and segments as the runs make them, without the rows that are in the logs only: a replay adds those.
        self._settled: tuple[Totals, dict[int, SegmentState]]
        folder.mkdir(exist_ok=True)
        found = read_manifest(self._manifest_path)
        if found is None:
            if any(path.suffix in (RUN_SUFFIX, SUFFIX) for path in folder.iterdir()):
                raise LedgerDamaged(f"{folder} has rows and no manifest.")
            found = Manifest()
        self.generation = found.generation
        self._settled = found.totals, found.segments
        self.totals, self.segments = _copied(self._settled)
        self._next_number = found.next_number
        self._first_log = found.first_log
        self._view = _View({}, tuple(self._open_run(name) for name in found.runs))
        self._remove_strays(found)
        self._old_logs = self._replay(found.first_log)
        self._log = Log(folder, self._take_number(above=max(self._old_logs, default=0)))
        self._write_manifest()
        self._merger = Merger(self, config)
        with self._lock:
            if len(self._old_logs) >= _LOGS_MAX or len(self._view.fresh) >= self._fresh_rows_max:
                self._try_flush()
        self._merger.begin_if_due()

    # -- opening --------------------------------------------------------------------------

    @property
    def _manifest_path(self) -> Path:
        return self._folder / "manifest"

    def _run_path(self, number: int) -> Path:
        return self._folder / f"{number:08d}{RUN_SUFFIX}"

    def _open_run(self, name: RunName) -> Run:
        run = Run(self._run_path(name.number), level=name.level, first_head=name.first_head)
        if run.rows != name.rows:
            raise LedgerDamaged(f"{run.path} has {run.rows} rows, and the manifest says {name.rows}.")
        return run

    def _remove_strays(self, manifest: Manifest) -> None:
        """What a crash left: files that were being written, and such as had been replaced."""
        named = {self._run_path(run.number) for run in manifest.runs}
        for path in list(self._folder.iterdir()):
            is_old_log = path.suffix == SUFFIX and int(path.stem) < manifest.first_log
            if path.suffix == ".new" or is_old_log or (path.suffix == RUN_SUFFIX and path not in named):
                path.unlink(missing_ok=True)

    def _replay(self, first: int) -> list[int]:
        numbers = sorted(int(path.stem) for path in self._folder.glob(f"*{SUFFIX}") if int(path.stem) >= first)
        for number in numbers:
            for batch in read_log(log_path(self._folder, number)):
                rows = list(_rows_of(batch.rows))
                self._apply(rows, batch.notes, before=self.records([row.block_id for row in rows]))
        return numbers

    def _take_number(self, *, above: int = 0) -> int:
        number = max(self._next_number, above + 1)
        self._next_number = number + 1
        return number

    # -- looking up -----------------------------------------------------------------------

    def look_up(self, ids: Sequence[BlockId]) -> Answer:
        """The newest record of each id that has one. Raises `StoreError` if the disk does not answer."""
        fresh, runs = self._view
        if not fresh:
            return ask_runs(runs, ids)
        waiting = list(map(fresh.get, ids))
        known = np.array([record is not None for record in waiting], bool)
        if not known.any():
            return ask_runs(runs, ids)
        answer = no_answer(len(ids))
        answer.known[known] = True
        answer.records[known] = np.frombuffer(b"".join(filter(None, waiting)), np.uint8).reshape(-1, RECORD.size)
        if not known.all():
            found = ask_runs(runs, list(compress(ids, (~known).tolist())))
            answer.known[~known], answer.records[~known] = found
        return answer

    def records(self, ids: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """The same as a dictionary, records of gone blocks included."""
        return self.look_up(ids).by_id(ids)

    # -- entering -------------------------------------------------------------------------

    def put(
        self, rows: Sequence[Row], notes: Sequence[SegmentNote] = (), *, before: dict[BlockId, bytes] | None = None
    ) -> None:
        """Enter rows and notes, durably, all or none.

        `before` is what `records` says of these ids, from a caller who has asked already and lets nobody else enter
        rows meanwhile. Raises `StoreFull`, `StoreReadOnly`, `StoreError`.
        """
        with self._lock:
            if len(self._view.fresh) >= _OVERFULL * self._fresh_rows_max:
                self._flush()
            if before is None:
                before = self.records([row.block_id for row in rows])
            self._log.append(Batch(b"".join([row.block_id + row.record for row in rows]), notes))
            self._apply(rows, notes, before=before)
            if len(self._view.fresh) >= self._fresh_rows_max:
                self._try_flush()
                self._merger.begin_if_due()
                self._merger.wait_for_room()

    def _apply(self, rows: Iterable[Row], notes: Iterable[SegmentNote], *, before: dict[BlockId, bytes]) -> None:
        """Take what is durable into memory. `before` has what was there, and is changed as rows follow each other."""
        fresh = self._view.fresh
        for block, record in rows:
            self.entered += 1
            old = before.get(block)
            if old is not None:
                self._count(old, -1)
            self._count(record, 1)
            before[block] = record
            fresh[block] = record
        for note in notes:
            if note.verified_ns == FORGET:
                self.segments.pop(note.segment, None)
                continue
            state = self.segments.setdefault(note.segment, SegmentState())
            state.known_bytes = max(state.known_bytes, note.known_bytes)
            if note.verified_ns != UNCHANGED:
                state.verified_ns = note.verified_ns

    def _count(self, record: bytes, sign: int) -> None:
        entry = unpack_record(record)
        if entry is None:
            return
        place = entry.place
        self.totals.blocks += sign
        self.totals.sealed_bytes += sign * place.length
        self.totals.body_bytes += sign * entry.body_bytes
        state = self.segments.get(place.segment)
        if state is None:
            state = self.segments[place.segment] = SegmentState()
        state.live_blocks += sign
        state.live_bytes += sign * place.length

    def set_generation(self, number: int) -> None:
        with self._lock:
            self.generation = number
            self._write_manifest()

    def distrust_segments(self) -> None:
        """Account for nothing any more: a replay is to walk every segment again."""
        with self._lock:
            for segments in (self.segments, self._settled[1]):
                for state in segments.values():
                    state.known_bytes = 0
            self._write_manifest()

    # -- from the dictionary to a run -----------------------------------------------------

    def _try_flush(self) -> None:
        """A disk too full for a run is no failure yet: the rows are in the log and in memory."""
        try:
            self._flush()
        except StoreFull as error:
            get_logger().warning("ledger.run_waits", error=error.message, rows=len(self._view.fresh))

    def _flush(self) -> None:
        fresh, runs = self._view
        if not fresh:
            return
        path = self._run_path(self._take_number())
        write_run(path, [sorted_rows(fresh)])
        log = Log(self._folder, self._take_number())
        settled, self._settled = self._settled, _copied((self.totals, self.segments))
        try:
            self._replace_runs((Run(path, level=LEVEL_NEW), *runs), fresh={}, first_log=log.number)
        except StoreError:
            self._settled = settled
            log.close()
            raise
        old, self._log = self._log, log
        old.close()
        for number in (*self._old_logs, old.number):
            log_path(self._folder, number).unlink(missing_ok=True)
        self._old_logs = []

    def _replace_runs(self, runs: tuple[Run, ...], *, fresh: dict[BlockId, bytes], first_log: int) -> None:
        """Enter a new set of runs in the manifest, and only then use it.

        If that fails no file is deleted: the manifest on the disk may be the old one or the new one.
        """
        before = self._view, self._first_log
        self._view, self._first_log = _View(fresh, runs), first_log
        try:
            self._write_manifest()
        except StoreError as error:
            self._view, self._first_log = before
            if isinstance(error, StoreReadOnly):
                self._log.poison(error.message)
            raise
        self.changed.notify_all()

    def _manifest(self) -> Manifest:
        return Manifest(
            generation=self.generation,
            first_log=self._first_log,
            next_number=self._next_number,
            totals=self._settled[0],
            runs=tuple(RunName(run.number, run.level, run.rows, run.first_head) for run in self._view.runs),
            segments=self._settled[1],
        )

    def _write_manifest(self) -> None:
        write_manifest(self._manifest_path, self._manifest())

    # -- what the merger needs ------------------------------------------------------------

    def new_run_path(self) -> Path:
        """Where the next run goes."""
        with self._lock:
            return self._run_path(self._take_number())

    def use_runs(self, runs: tuple[Run, ...]) -> None:
        """Other runs with the same rows. For whoever holds `changed`. Raises what writing the manifest raises."""
        self._replace_runs(runs, fresh=self._view.fresh, first_log=self._first_log)

    @property
    def damage(self) -> str:
        """What a merge found wrong, for whoever can have the ledger rebuilt."""
        return self._merger.damage

    def wait_merged(self) -> None:
        """Until nothing is left to be merged: for measurements, and before a copy is made."""
        self._merger.wait()

    # -- reading it all -------------------------------------------------------------------

    def ids_in_order(self) -> Iterator[bytes]:
        """All ids that were here when it began, ascending, joined, some ten thousand at a time."""
        fresh, runs = self._view
        return ids_in_order(sorted_rows(fresh), runs)

    def scan(self) -> Iterator[tuple[Heads, Rests]]:
        """Every row, those that newer ones shadow included, in no order. For searches: look each hit up again."""
        fresh, runs = self._view
        yield sorted_rows(fresh)
        yield from scan_runs(runs)

    @property
    def runs(self) -> tuple[Run, ...]:
        return self._view.runs

    def fresh_rows(self) -> dict[BlockId, bytes]:
        """A copy of what no run holds yet."""
        return dict(self._view.fresh)

    def check(self) -> Iterator[str]:
        """Read every row of every run again; a line for each run that is not as it was written, "" for each stretch."""
        for run in self._view.runs:
            for number in range(run.stretches_count):
                try:
                    run.stretch(number)
                except (LedgerDamaged, StoreError) as error:
                    yield error.message
                    break
                yield ""

    def stop_merging(self) -> None:
        self._merger.stop()

    def close(self) -> None:
        self.stop_merging()
        with self._lock:
            self._log.close()


def _copied(state: tuple[Totals, dict[int, SegmentState]]) -> tuple[Totals, dict[int, SegmentState]]:
    totals, segments = state
    return replace(totals), {number: replace(one) for number, one in segments.items()}


def _rows_of(packed: bytes) -> Iterator[Row]:
    for at in range(0, len(packed), LOG_ROW_BYTES):
        middle = at + BLOCK_ID_BYTES
        yield Row(BlockId(packed[at:middle]), packed[middle : at + LOG_ROW_BYTES])
