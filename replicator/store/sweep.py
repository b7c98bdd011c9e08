"""Carrying out a collection's plan, one bounded step after the other.

Between two steps the process may be killed, the switch may be thrown, or somebody who has
better use for the disk may be let in: what is done is durable, and what is not is planned
again by the next run. Nothing but the engine's own tables says how far a run has come.

Three guards stand between a mistake and the disk, each without trust in the others:

- a sentence is looked at again in the transaction that carries it out;
- ids are held against the marks a second time, by other means, before their rows go;
- before a file goes, its own bytes are asked what lies in it: whatever of that is spoken for
  must be pointed at *elsewhere* (kopia#5371: what is there before must be there after).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from protocol.ids import BLOCK_ID_BYTES, BlockId, split_ids
from protocol.limits import MIB
from replicator.core.errors import StoreFull
from replicator.core.logging import get_logger
from replicator.store.config import StoreConfig
from replicator.store.marks import are_marked, prefixes
from replicator.store.plan import Plan, plan_shelves
from replicator.store.ports import Shelf, Shelves

_ROWS: Final = 1000
"""Ids a transaction. Each may dirty three pages of 4 KiB, at random places: 12 MiB, which is what the ballast of a
full disk has room for (`core/ballast.py`)."""
_MOVE_BYTES: Final = 4 * MIB
_REMOVE_FILES: Final = 16
"""Segments a step: each directory flush covers them all, and a kill between two steps leaves few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a run did, or, for a dry run, will do."""

    blocks_condemned: int
    bytes_condemned: int
    blocks_swept: int
    bytes_swept: int
    blocks_revived: int
    segments_removed: int
    bytes_freed: int
    writers_waited_for: int
    duration_s: float
    condemned: tuple[bytes, ...] = ()
    """Runs of ids."""
    swept: tuple[bytes, ...] = ()
    segments: tuple[int, ...] = ()
    """The numbers of those that are removed, ascending."""
    segments_kept: tuple[int, ...] = ()
    """Those that should have gone, and did not: they could not be read, or held what is needed."""
    bytes_moved: int = 0
    held: str = ""
    """Why nothing was let go; see `StoreConfig.bulk_share_max`."""
    stopped: str = ""
    """Why the run ended before its end; the next one goes on."""

    def joined(self, later: "Collected") -> "Collected":
        """This run and the one right after it, as one: the sentences of the first, carried out by the second.

        (The second has sentences of its own where the disk was too full for all of them at once.)
        """
        return replace(
            later,
            blocks_condemned=self.blocks_condemned + later.blocks_condemned,
            bytes_condemned=self.bytes_condemned + later.bytes_condemned,
            condemned=self.condemned + later.condemned,
            blocks_swept=self.blocks_swept + later.blocks_swept,
            bytes_swept=self.bytes_swept + later.bytes_swept,
            swept=self.swept + later.swept,
            blocks_revived=self.blocks_revived + later.blocks_revived,
            segments_removed=self.segments_removed + later.segments_removed,
            segments=tuple(sorted(self.segments + later.segments)),
            bytes_freed=self.bytes_freed + later.bytes_freed,
            bytes_moved=self.bytes_moved + later.bytes_moved,
            duration_s=self.duration_s + later.duration_s,
        )


@dataclass(slots=True)
class _Tally:
    condemned: list[bytes] = field(default_factory=list)
    bytes_condemned: int = 0
    blocks_swept: int = 0
    bytes_swept: int = 0
    blocks_revived: int = 0
    bytes_freed: int = 0
    bytes_moved: int = 0
    segments: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    stopped: str = ""


class Sweep:
    """One execution. Step through `steps`, then ask for the `result`; a `Collector` makes it."""

    def __init__(
        self,
        shelves: Shelves,
        config: StoreConfig,
        *,
        plan: Plan,
        confirmed: bool,
        shrinks: bool,
        why_off: Callable[[], str],
    ) -> None:
        self._shelves = shelves
        self._config = config
        self._plan = plan
        self._held = "" if confirmed else plan.held
        self._shrinks = shrinks
        self._why_off = why_off
        self._tally = _Tally()

    def steps(self) -> Iterator[int]:
        """Do one step for each `next`; each gives the bytes that it moved on the disk, for whoever paces it.

        Raises `StoreReadOnly`, `StoreError`.
        """
        yield from self._revive()
        if self._held:
            return
        # Deletion first, the cheapest first: it frees space without taking any.
        shrinking = (self._remove_empty, self._empty_sparse) if self._shrinks else ()
        for part in (self._sweep, self._condemn, self._drop_broken, *shrinking):
            for moved_bytes in part():
                yield moved_bytes
                if self._tally.stopped:
                    return

    def dead(self) -> int:
        """Unlink the segments in which no block is left, and nothing else: on a full disk this takes no room at all.

        Returns the bytes freed. Raises `StoreError`.
        """
        for _ in self._remove_empty():
            pass
        return self._tally.bytes_freed

    def _is_off(self) -> bool:
        self._tally.stopped = self._tally.stopped or self._why_off()
        return bool(self._tally.stopped)

    def _revive(self) -> Iterator[int]:
        for at in range(0, len(self._plan.revive), _ROWS):
            part = self._plan.revive[at : at + _ROWS]
            self._shelves.revive(part)
            self._tally.blocks_revived += len(part)
            yield 0

    def _sweep(self) -> Iterator[int]:
        size = _ROWS * BLOCK_ID_BYTES
        for at in range(0, len(self._plan.sweep), size):
            if self._is_off():
                yield 0
                return
            packed = self._plan.sweep[at : at + size]
            assert not np.isin(prefixes(packed), self._plan.marks).any(), "what is spoken for is not swept"
            self._tally.bytes_swept += self._shelves.sweep(
                split_ids(packed), epoch_below=self._plan.mark.oldest_writer_epoch
            )
            self._tally.blocks_swept += len(packed) // BLOCK_ID_BYTES
            yield 0

    def _condemn(self) -> Iterator[int]:
        """A disk too full for all sentences is no failure if it had room for some: to carry them out makes more."""
        size = _ROWS * BLOCK_ID_BYTES
        for packed in (run[at : at + size] for run in self._plan.condemn for at in range(0, len(run), size)):
            if self._is_off():
                yield 0
                return
            ids = split_ids(packed)
            try:
                self._shelves.condemn(ids, epoch=self._plan.mark.epoch, now_ns=self._plan.at_ns)
            except StoreFull:
                if not self._tally.condemned:
                    raise
                return
            self._tally.condemned.append(packed)
            self._tally.bytes_condemned += sum(place.length for place in self._shelves.places(ids).values())
            yield 0

    def _drop_broken(self) -> Iterator[int]:
        """Nobody waits for the repair of what nothing needs."""
        broken = self._shelves.broken_ids()
        if broken:
            spoken_for = are_marked(self._plan.marks, prefixes(b"".join(broken)))
            self._shelves.drop_broken([broken[at] for at in np.flatnonzero(~spoken_for).tolist()])
        yield 0

    def _remove_empty(self) -> Iterator[int]:
        empty, _ = plan_shelves(self._shelves.shelves(), {}, config=self._config)
        for at in range(0, len(empty), _REMOVE_FILES):
            if self._is_off():
                yield 0
                return
            self._remove([shelf for shelf in empty[at : at + _REMOVE_FILES] if self._holds_nothing(shelf.number)])
            yield 0

    def _empty_sparse(self) -> Iterator[int]:
        """Oldest first, so that a run that is cut leaves a shorter list. A full disk ends it: the next finds room."""
        _, sparse = plan_shelves(self._shelves.shelves(), {}, config=self._config)
        for shelf in sparse:
            after: int | None = 0
            unreadable = 0
            while after is not None:
                if self._is_off():
                    yield 0
                    return
                if self._tally.bytes_moved >= self._config.rewrite_bytes_max:
                    self._tally.stopped = "as much was moved as one run may move"
                    yield 0
                    return
                try:
                    moved = self._shelves.move_out(shelf.number, after=after, bytes_max=_MOVE_BYTES)
                except StoreFull:
                    return
                self._tally.bytes_moved += moved.moved_bytes
                after, unreadable = moved.after, unreadable + moved.unreadable_blocks
                yield moved.moved_bytes
            if unreadable:
                self._tally.kept.append(shelf.number)
            elif self._holds_nothing(shelf.number):
                self._remove([shelf])
            yield 0

    def _remove(self, shelves: Sequence[Shelf]) -> None:
        numbers = [shelf.number for shelf in shelves]
        if numbers:
            self._tally.bytes_freed += self._shelves.remove(numbers)
            self._tally.segments += numbers

    def _holds_nothing(self, number: int) -> bool:
        """The recount: by its own bytes, is there nothing in this segment that would be missed?"""
        try:
            for packed in self._shelves.inventory(number):
                ids = split_ids(packed)
                places = self._shelves.places(ids)
                spoken_for = are_marked(self._plan.marks, prefixes(packed))
                lost = [ids[at] for at in np.flatnonzero(spoken_for).tolist() if ids[at] not in places]
                if any(place.segment == number for place in places.values()):
                    return self._keep(number, "the index still points into it", lost)
                if lost:
                    return self._keep(number, "a snapshot needs what the index has lost", lost)
        except OSError as error:
            return self._keep(number, f"it cannot be read: {error.strerror}", [])
        return True

    def _keep(self, number: int, why: str, lost: Sequence[BlockId]) -> bool:
        found = self._shelves.rescue(lost) if lost else []
        self._tally.kept.append(number)
        get_logger().error("collect.segment_kept", segment=number, why=why, lost=len(lost), entered_again=len(found))
        return False

    def result(self, *, duration_s: float) -> Collected:
        tally = self._tally
        return Collected(
            blocks_condemned=sum(map(len, tally.condemned)) // BLOCK_ID_BYTES,
            bytes_condemned=tally.bytes_condemned,
            blocks_swept=tally.blocks_swept,
            bytes_swept=tally.bytes_swept,
            blocks_revived=tally.blocks_revived,
            segments_removed=len(tally.segments),
            bytes_freed=tally.bytes_freed,
            writers_waited_for=len(self._plan.writers),
            duration_s=duration_s,
            condemned=tuple(tally.condemned),
            swept=(self._plan.sweep,) if tally.blocks_swept else (),
            segments=tuple(sorted(tally.segments)),
            segments_kept=tuple(sorted(tally.kept)),
            bytes_moved=tally.bytes_moved,
            held=self._held,
            stopped=tally.stopped,
        )
