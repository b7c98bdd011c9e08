"""Letting go: mark, condemn, wait, sweep. Decided here, carried out by any engine that has `Shelves`.

Replication software loses data mostly in collectors that race with writers, so this one is
slow on purpose. A run is a plan and its execution:

1. *Mark.* Read who is writing, then the roots, then walk everything the roots reach (the
   caller does the walking and hands in the marks). Any failing read aborts the run: "could
   not read" never means "nothing refers to it".
2. *Plan*: what is condemned and reached again comes back; what was condemned before
   `grace_s`, in an epoch from which no writer is left, and is still unreached, goes; what is
   present and unreached now is sentenced. Pure looking: a dry run ends here, and its list is
   the list of the run that follows, because it is made by the same lines.
3. *Carry out* (`store/sweep.py`), in small steps between which the process may be killed.

Why no race is left: a writer that was told "present" before the sentence holds a lease from
that epoch or before, so the sweep waits for it; when it ends, its root is among the roots of
the next mark. The roots include what a live writer builds on (its base), or a base that is
pruned under it would not be spoken for. A writer that asks after the sentence lifts it
(`have`). The lease list is read *before* the roots, so a writer that ends in between counts as
alive; and one that was taken for dead by the clock learns it when it renews its lease after
publishing, and takes its root back (`BlockStore.renew`).
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from protocol.ids import BLOCK_ID_BYTES, BlockId, split_ids
from replicator.core.ports import WallClock
from replicator.store.config import StoreConfig
from replicator.store.marks import Marks, MarkSet, are_marked, packed_batches, prefixes
from replicator.store.plan import Freed, Plan, plan_shelves, why_held
from replicator.store.ports import Mark, Shelves
from replicator.store.sweep import Collected, Sweep

_EVER = 2**62
_AHEAD_NS = 3600 * 10**9
"""A sentence from further ahead than this is lifted, and passed anew by the next run."""


class Collectable(Protocol):
    """A store with segments to empty."""

    @property
    def config(self) -> StoreConfig: ...
    @property
    def shelves(self) -> Shelves: ...


class Collector:
    """Collects one store. One run at a time: the caller sees to that.

    `why_off` is the kill switch: while it gives a reason, nothing is deleted, also not by a run that has begun.
    """

    def __init__(self, store: Collectable, *, clock: WallClock, why_off: Callable[[], str] = lambda: "") -> None:
        self._config = store.config
        self._shelves = store.shelves
        self._clock = clock
        self._why_off = why_off

    @property
    def rewrite_rate_bytes(self) -> int:
        """What whoever steps through an execution moves at most in a second."""
        return self._config.rewrite_rate_bytes

    @property
    def bulk_share_max(self) -> float:
        """More of the store, or of the snapshots, waits for a person."""
        return self._config.bulk_share_max

    def why_off(self) -> str:
        return self._why_off()

    def weigh(self, ids: Sequence[BlockId]) -> tuple[int, int]:
        """How many of these are present, and what they take."""
        places = self._shelves.places(ids)
        return len(places), sum(place.length for place in places.values())

    def begin(self, *, is_rehearsal: bool = False) -> Mark:
        """Call before reading the roots. A rehearsal changes nothing."""
        return self._shelves.open_epoch(is_rehearsal=is_rehearsal)

    def plan(self, mark: Mark, marks: Marks, *, grace_s: float, at_once: bool = False) -> Plan:
        """Judge by `marks`: everything that the roots read after `mark` reach.

        `at_once` foretells two runs in one: sentence, and execution with a fresh mark that finds the same.
        """
        now_ns = self._clock.now_ns()
        condemned_ever = self._shelves.condemned(epoch_below=_EVER, at_most_ns=_EVER)
        # By a clock that has been set back since: their grace would last until it gets there once more.
        early = set(condemned_ever).difference(
            self._shelves.condemned(epoch_below=_EVER, at_most_ns=now_ns + _AHEAD_NS)
        )
        back = (*self._among(marks, condemned_ever, marked=True), *self._among(marks, sorted(early), marked=False))
        ripe = self._shelves.condemned(epoch_below=mark.oldest_writer_epoch, at_most_ns=now_ns - int(grace_s * 1e9))
        sweep = b"".join(self._among(marks, ripe, marked=False))
        freed = Freed()
        self._weigh(freed, sweep)
        condemned = [run for packed in self._shelves.ids() if (run := self._unspoken(marks, packed))]
        sentenced = Freed()
        for run in condemned:
            self._weigh(sentenced, run)
        sweep_bytes = freed.bytes
        if at_once and mark.oldest_writer_epoch == mark.epoch:  # Nobody is alive to wait for.
            sweep += b"".join(condemned)
            sweep_bytes += sentenced.bytes
            freed.merge(sentenced)
        remove, rewrite = plan_shelves(self._shelves.shelves(), freed.by_segment, config=self._config)
        share = self._share(sentenced)
        return Plan(
            mark=mark,
            marks=marks,
            at_ns=now_ns,
            revive=back,
            sweep=sweep,
            sweep_bytes=sweep_bytes,
            condemn=tuple(condemned),
            condemn_blocks=sentenced.blocks,
            condemn_bytes=sentenced.bytes,
            remove=tuple(remove),
            rewrite=tuple(rewrite),
            share=share,
            held=why_held(share, self._config.bulk_share_max),
            writers=tuple(self._shelves.holders()),
        )

    def _among(self, marks: Marks, ids: Sequence[BlockId], *, marked: bool) -> list[BlockId]:
        if not ids:
            return []
        hits = are_marked(marks, prefixes(b"".join(ids)))
        return [ids[at] for at in np.flatnonzero(hits if marked else ~hits).tolist()]

    def _unspoken(self, marks: Marks, packed: bytes) -> bytes:
        """Of a run of present ids those that nothing speaks for and that bear no sentence yet."""
        dead = np.flatnonzero(~are_marked(marks, prefixes(packed))).tolist()
        ids = [BlockId(packed[at * BLOCK_ID_BYTES : (at + 1) * BLOCK_ID_BYTES]) for at in dead]
        if not ids:
            return b""
        already = self._shelves.condemned_among(ids)
        return b"".join(block for block in ids if block not in already)

    def _weigh(self, freed: "Freed", packed: bytes) -> None:
        if packed:
            freed.add(self._shelves.places(split_ids(packed)).values())

    def _share(self, sentenced: "Freed") -> float:
        blocks, sealed = self._shelves.totals()
        return max(sentenced.blocks / max(1, blocks), sentenced.bytes / max(1, sealed))

    def carry_out(self, plan: Plan, *, confirmed: bool, shrinks: bool = True) -> Sweep:
        """The execution, to be stepped through. `confirmed`: somebody has seen how much it is, and wants it.

        With `shrinks` False no segment is touched: a further run follows at once and does that.
        """
        return Sweep(
            self._shelves, self._config, plan=plan, confirmed=confirmed, shrinks=shrinks, why_off=self._why_off
        )

    def free_dead(self, plan: Plan) -> int:
        """Of an execution only what takes no room on a full disk: see `Sweep.dead`. Returns the bytes freed."""
        return self.carry_out(plan, confirmed=False).dead()

    def finish(self, mark: Mark, marks: Marks, *, grace_s: float, dry_run: bool, confirmed: bool) -> Collected:
        """A whole run at once, unpaced."""
        began = time.monotonic()
        plan = self.plan(mark, marks, grace_s=grace_s)
        if dry_run:
            return foretold(plan, duration_s=time.monotonic() - began)
        run = self.carry_out(plan, confirmed=confirmed)
        for _ in run.steps():
            pass
        return run.result(duration_s=time.monotonic() - began)

    def undo(self) -> int:
        """Lift every sentence that has not been carried out. Returns how many blocks that saves."""
        return self._shelves.revive_all()


def foretold(plan: Plan, *, duration_s: float) -> Collected:
    """A plan in the words of a run: what a dry run answers."""
    return Collected(
        blocks_condemned=plan.condemn_blocks,
        bytes_condemned=plan.condemn_bytes,
        blocks_swept=len(plan.sweep) // BLOCK_ID_BYTES,
        bytes_swept=plan.sweep_bytes,
        blocks_revived=len(plan.revive),
        segments_removed=len(plan.remove) + len(plan.rewrite),
        # Where something is moved out there is a newer segment by then, and none is cut down to its header.
        bytes_freed=sum(s.frees_bytes for s in plan.remove) + sum(s.size_bytes for s in plan.rewrite),
        writers_waited_for=len(plan.writers),
        duration_s=duration_s,
        condemned=plan.condemn,
        swept=(plan.sweep,) if plan.sweep else (),
        segments=tuple(sorted(shelf.number for shelf in (*plan.remove, *plan.rewrite))),
        held=plan.held,
    )


__all__ = [
    "Collectable",
    "Collected",
    "Collector",
    "Mark",
    "MarkSet",
    "Marks",
    "Plan",
    "foretold",
    "packed_batches",
    "plan_shelves",
    "prefixes",
]
