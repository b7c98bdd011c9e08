"""The thread that keeps a table's runs few, while there is something to merge.

It writes new runs beside the old ones without any lock, and takes the table's only to put them in
their place. What it is doing when the process is killed is a file that no manifest names.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from replicator.core.errors import StoreError
from replicator.core.logging import get_logger
from replicator.core.memory import give_back_freed_memory
from replicator.store.config import StoreConfig
from replicator.store.ledger.errors import LedgerDamaged
from replicator.store.ledger.merge import HEAD_END, LEVEL_BASE, LEVEL_NEW, Merge, merged, part_bounds, plan_merge
from replicator.store.ledger.run import Run, write_run

_WAITING_RUNS_MAX: Final = 24
"""New runs that may wait for a merge: whoever enters more waits too, so that look-ups stay quick."""


class RunKeeper(Protocol):
    """The parts of `BlockTable` that a merge touches."""

    changed: threading.Condition

    @property
    def runs(self) -> tuple[Run, ...]: ...
    def new_run_path(self) -> Path: ...
    def use_runs(self, runs: tuple[Run, ...]) -> None: ...


class _StopMerging(Exception):
    """The table is being closed."""


class Merger:
    """Merges the runs of one table. Thread-safe."""

    def __init__(self, table: RunKeeper, config: StoreConfig) -> None:
        self._table = table
        self._part_rows_max = config.ledger_part_rows_max
        self._runs_max = config.ledger_runs_max
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self.damage = ""
        """What a merge found wrong. None is begun after that."""

    def begin_if_due(self) -> None:
        with self._table.changed:
            if self._is_running() or self._is_closing or self.damage or self._next() is None:
                return
            self._thread = threading.Thread(target=self._merge_all, name="ledger-merge", daemon=True)
            self._thread.start()

    def wait_for_room(self) -> None:
        """So that runs do not pile up faster than they are merged. For whoever holds the table's lock."""

        def has_caught_up() -> bool:
            waiting = sum(1 for run in self._table.runs if run.level == LEVEL_NEW)
            return waiting < _WAITING_RUNS_MAX or not self._is_running()

        while not has_caught_up():
            self._table.changed.wait(1.0)

    def wait(self) -> None:
        self.begin_if_due()
        thread = self._thread
        if thread is not None:
            thread.join()

    def stop(self) -> None:
        """After the stretch that is being written. Nothing is merged from then on."""
        self._is_closing = True
        if self._thread is not None:
            self._thread.join()

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _next(self) -> Merge | None:
        return plan_merge(self._table.runs, runs_max=self._runs_max)

    def _merge_all(self) -> None:
        """In a thread of its own, which ends when there is nothing to merge."""
        try:
            while not self._is_closing and (plan := self._next()) is not None:
                self._merge(plan)
            # Up to 80 MB of buffers, which nobody needs for the next three million blocks.
            give_back_freed_memory()
        except _StopMerging:
            return
        except LedgerDamaged as error:
            self.damage = error.message
            get_logger().error("ledger.damaged", found=error.message, then="rebuild it from the segments")
        except StoreError as error:
            get_logger().warning("ledger.merge_waits", error=error.message)

    def _merge(self, plan: Merge) -> None:
        if plan.level != LEVEL_BASE:
            self._merge_range(plan, None, first=0, end=HEAD_END)
            self._drop(plan.sources)
            return
        starts = [part.first_head for part in plan.base] or [0]
        assert starts[0] == 0, "the base begins at the first head"
        parts: Sequence[Run | None] = plan.base or (None,)
        for part, first, end in zip(parts, starts, [*starts[1:], HEAD_END], strict=True):
            self._merge_range(plan, part, first=first, end=end)
        self._drop(plan.sources)

    def _merge_range(self, plan: Merge, part: Run | None, *, first: int, end: int) -> None:
        """Write what `plan` makes of a range of heads, and put it in the place of `part` of the base."""
        is_base = plan.level == LEVEL_BASE
        sources = plan.sources if part is None else (*plan.sources, part)
        bounds = part_bounds(sources, first=first, end=end, rows_max=self._part_rows_max) if is_base else [(first, end)]
        made: list[Run] = []
        try:
            for low, high in bounds:
                path = self._table.new_run_path()
                write_run(path, merged(sources, first=low, end=high, drop_gone=is_base, go_on=self._go_on))
                made.append(Run(path, level=plan.level, first_head=low))
        except (StoreError, _StopMerging, LedgerDamaged):
            for run in made:
                run.path.unlink(missing_ok=True)
            raise
        with self._table.changed:
            kept = [run for run in self._table.runs if run is not part]
            self._table.use_runs(tuple(sorted([*kept, *made], key=_asked)))
        if part is not None:
            part.path.unlink(missing_ok=True)

    def _drop(self, sources: Sequence[Run]) -> None:
        """What has been merged is asked no more, and then deleted."""
        with self._table.changed:
            self._table.use_runs(tuple(run for run in self._table.runs if run not in sources))
        for run in sources:
            run.path.unlink(missing_ok=True)

    def _go_on(self) -> None:
        if self._is_closing:
            raise _StopMerging


def _asked(run: Run) -> tuple[int, int, int]:
    """The order of look-ups: levels, in a level the newest first, the parts of the base by their heads."""
    return (run.level, run.first_head if run.level == LEVEL_BASE else 0, -run.number)
