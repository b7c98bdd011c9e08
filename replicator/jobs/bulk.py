"""The bulk guard: what goes in a day, by however many small steps, is looked at as one.

A rule lets about as many snapshots go as come, and their blocks with them; a thief, a script with a bug, or a rule
that was changed by mistake lets go of many at once, and not always in one run. So a collection is held for a person
when there are a fifth fewer snapshots, or there would be a fifth fewer blocks, than there were within the last day.
For snapshots it is held until somebody confirms it or they are back; for blocks until somebody confirms it or the day
is over, so that no day takes more than a fifth. Confirming begins a new day.

What it remembers is in the catalogue, so a restart begins no new day.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from replicator.catalog.catalog import Catalog
from replicator.core.facts import read_fact
from replicator.store.plan import Plan
from replicator.store.ports import BlockStore

HELD_FACT: Final = "gc.held"
_DAY_FACT: Final = "gc.day"
_DAY_NS: Final = 86_400 * 10**9
_FEW: Final = 5
"""Fewer snapshots than this are one person's afternoon. If they are much of the store, the blocks say so."""


@dataclass(frozen=True, slots=True)
class Held:
    """A collection that was held: why, the share that it would have condemned, and the most snapshots of that day."""

    why: str = ""
    share: float = 0.0
    peak: int = 0


def held_now(catalog: Catalog) -> Held:
    """Raises `DatabaseDamaged`."""
    return read_fact(catalog.fact(HELD_FACT) or "{}", Held, name="the collection that is held")


@dataclass(frozen=True, slots=True)
class Stand:
    """How many blocks bore no sentence when a run began."""

    at_ns: int
    alive: int


@dataclass(frozen=True, slots=True)
class Day:
    """What is held against a plan."""

    snapshots: int
    alive: int
    """Blocks without a sentence, now."""
    peak_snapshots: int
    """The most there were in the last 24 hours; of a hold that still stands, when it began."""
    peak_alive: int


def why_held_in_a_day(day: Day, plan: Plan, *, share_max: float) -> str:
    """Why this plan waits for a person; empty if it does not."""
    gone, most = day.peak_snapshots - day.snapshots, f"over {share_max:.0%} waits for a person"
    if gone >= _FEW and gone > share_max * day.peak_snapshots:
        return f"{gone} of {day.peak_snapshots} snapshots are gone within a day; {most}"
    if plan.held or not plan.condemn_blocks:
        return plan.held
    lost = day.peak_alive - (day.alive - plan.condemn_blocks + len(plan.revive))
    if day.peak_alive > day.alive and lost > share_max * day.peak_alive:
        return f"{lost / day.peak_alive:.0%} of the store would be condemned within a day; {most}"
    return ""


class BulkGuard:
    """The day of one node."""

    def __init__(self, catalog: Catalog, store: BlockStore, now_ns: Callable[[], int]) -> None:
        self._catalog = catalog
        self._store = store
        self._now_ns = now_ns

    def judge(self, plan: Plan, *, share_max: float) -> str:
        stands = self._stands()
        catalog, alive, held = self._catalog, self.alive(), held_now(self._catalog)
        snapshots = catalog.snapshot_count()
        day = Day(
            snapshots=snapshots,
            alive=alive,
            peak_snapshots=max(catalog.peak_since(self._now_ns() - _DAY_NS), held.peak, snapshots),
            peak_alive=max([alive, *(stand.alive for stand in stands)]),
        )
        return why_held_in_a_day(day, plan, share_max=share_max)

    def note(self, plan: Plan, *, alive_before: int, held: str, confirmed: bool) -> None:
        """A run has been carried out, or was held. Raises `StoreFull`, `CatalogError`."""
        catalog = self._catalog
        if held:
            peak = max(catalog.peak_since(self._now_ns() - _DAY_NS), catalog.snapshot_count())
            before = held_now(catalog).peak
            catalog.set_fact(HELD_FACT, json.dumps(asdict(Held(held, plan.share, max(peak, before)))))
            return
        if catalog.fact(HELD_FACT):
            catalog.set_fact(HELD_FACT, "")
        if confirmed:
            catalog.set_fact(_DAY_FACT, "")
            catalog.forget_peak()
        elif plan.condemn_blocks:
            stands = [*self._stands(), Stand(self._now_ns(), alive_before)]
            catalog.set_fact(_DAY_FACT, json.dumps([asdict(stand) for stand in stands]))

    def alive(self) -> int:
        """Blocks without a sentence."""
        counted = self._store.statistics()
        return counted.blocks - counted.condemned_blocks

    def _stands(self) -> list[Stand]:
        since_ns = self._now_ns() - _DAY_NS
        kept = read_fact(self._catalog.fact(_DAY_FACT) or "[]", list[Stand], name="the collections of a day")
        return [stand for stand in kept if stand.at_ns > since_ns]
