"""Negative controls: the product broken on purpose, one guard at a time. The simulation has to find each.

A simulation that finds nothing may be a good product or a blind simulation. Each control takes
one guard away, as a careless change would, and says within how many seeds that has to show.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import lz4.block
import trio

from protocol.ids import BlockId, SnapshotId
from protocol.wire.envelope import HEADER_BYTES, Buffer, Codec, Header, parse_header
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Protection
from replicator.catalog.terms import SyncTerms
from replicator.core.throttle import TokenBucket
from replicator.jobs import pruning as pruning_module
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.replicate import SyncJobs
from replicator.jobs.scheduler import Scheduler
from replicator.repair.putback import PutBack
from replicator.repair.scrub import Scrubber
from replicator.store.leases import Leases
from replicator.store.ports import Lease
from replicator.sync.intake import Intake
from replicator.sync.publish import store_record
from replicator.sync.receive import Receiver
from replicator.testing.blocks import MachineStore
from tests.simulation.plan import Faults, make_plan
from tests.simulation.world import Outcome, run_plan


def _unproven(data: Buffer, at: int = 0) -> tuple[Header, Buffer]:
    """Open a sealed block and believe it."""
    header = parse_header(data, at)
    payload = memoryview(data)[at + HEADER_BYTES : at + header.sealed_bytes]
    if header.codec == Codec.LZ4:
        try:
            return header, lz4.block.decompress(payload, uncompressed_size=header.body_bytes)
        except lz4.block.LZ4BlockError:
            return header, bytes(header.body_bytes)
    return header, payload


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _have_without_lifting(self: MachineStore, lease: Lease, ids: Sequence[BlockId]) -> set[BlockId]:
    self.leases.check(lease)
    return {block for block in ids if block in self._pending or block in self.disk.rows}


async def _publish_before_commit(self: Intake, signed: bytes) -> None:
    ports = self._ports
    ports.catalog.add_snapshot(signed, block_id(Kind.RECORD, signed))
    await ports.offload.run(ports.store.commit, self._lease)
    await ports.offload.run(store_record, ports.store, self._lease, signed)


async def _mark_all_but_the_newest(self: CollectionJobs, progress: Any) -> Any:
    catalog, honest = self._parts.catalog, Catalog.snapshots
    # On this one catalogue: several sites collect at once, and would put each other's lies back in the class.
    with patch.object(catalog, "snapshots", lambda volume_id=None: honest(catalog, volume_id)[:-1]):
        return await _MARK(self, progress)


_MARK = CollectionJobs._mark


def _delete_whatever(self: Catalog, ids: Sequence[bytes]) -> None:
    with self.db.write() as connection:
        connection.executemany("DELETE FROM snapshots WHERE snapshot_id = ?", [(one,) for one in ids])


def _without_holds(*values: Any) -> Any:
    return _CANDIDATE(*values[:-1], "")


_CANDIDATE = pruning_module.Candidate


async def _careless(self: Scrubber, faults: Any) -> None:
    return None


@asynccontextmanager
async def _turn_without_end(self: Receiver, snapshot_id: SnapshotId) -> AsyncIterator[None]:
    async with self._locks.setdefault(snapshot_id, trio.Lock()):
        yield


def _forget_holds(self: Scheduler, protection: Protection, now: int) -> None:
    """What a rule that counts in days might do when a clock leaps."""
    if now > _FAR_NS:
        with self._catalog.db.write() as connection:
            connection.execute("UPDATE snapshots SET held = ''")
    _SUBMIT(self, protection, now)


_SUBMIT = Scheduler._submit_snapshot
_FAR_NS: Final = 1_767_225_600 * 10**9 + 3600 * 10**9
"""Later than any world lasts."""


def _end_no_schedule(self: Catalog, volume_id: bytes) -> None:
    self.set_fact(f"ended:{volume_id.hex()}", "yes")


@dataclass(frozen=True, slots=True)
class Control:
    """A guard that is taken away."""

    patches: Callable[[], list[Any]]
    seeds_max: int
    """Within so many worlds it has to show."""
    faults: Faults | None = None
    """What goes wrong in them; None for whatever the seeds say."""
    deeds: Mapping[str, int] | None = None
    """What is done in them, by weight; None for the usual mixture."""


_CRASHES: Final = Faults(crashes=1, crashes_at_steps=3)
_SLOW: Final = Faults(delay_s=0.05, clogs=3)
_CARELESS: Final = Faults(deletes=3)
_HOLDING: Final = {"snapshot": 10, "hold": 30}
_TIDY: Final = {"change": 20, "snapshot": 20, "tidy": 20}
"""Much that is taken, and let go again, at the same time."""
_TENANTS: Final = {"change": 20, "snapshot": 20, "label": 10, "refilter": 20, "leave": 5, "come": 10}
"""Much that is changed about whose data is what, while it is carried."""
CONTROLS: Final[dict[str, Control]] = {
    "a commit that does not flush": Control(lambda: [patch.object(MachineStore, "commit", _nothing)], 10, _CRASHES),
    "acknowledged before the commit": Control(
        lambda: [patch.object(Intake, "publish", _publish_before_commit)], 40, _CRASHES
    ),
    "blocks believed when read and when received": Control(
        lambda: [patch("replicator.store.memory.unseal", _unproven), patch("replicator.sync.fetch.unseal", _unproven)],
        20,
    ),
    "a sentence that is not lifted": Control(
        lambda: [patch.object(MachineStore, "have", _have_without_lifting)], 10, _SLOW, _TIDY
    ),
    "a collection that waits for no writer": Control(
        lambda: [patch.object(Leases, "oldest_epoch", lambda self: self.epoch + 1)],
        10,
        _SLOW,
        _TIDY,
    ),
    "a mark that misses the newest snapshot": Control(
        lambda: [patch.object(CollectionJobs, "_mark", _mark_all_but_the_newest)], 10, Faults()
    ),
    "a delete that looks at no hold": Control(
        lambda: [patch.object(Catalog, "delete_snapshots", _delete_whatever)], 20, _CARELESS, _HOLDING
    ),
    "a keep rule that looks at no hold": Control(
        lambda: [
            patch.object(pruning_module, "Candidate", _without_holds),
            patch.object(Catalog, "delete_snapshots", _delete_whatever),
        ],
        20,
        Faults(),
        _HOLDING,
    ),
    "a receive that leaves something behind": Control(
        lambda: [patch.object(Receiver, "_turn", _turn_without_end)], 10, Faults(cuts=3)
    ),
    "a clock that ends holds": Control(
        lambda: [patch.object(Scheduler, "_submit_snapshot", _forget_holds)], 20, Faults(clock_jumps=3), _HOLDING
    ),
    "a bandwidth rule that counts nothing": Control(
        lambda: [patch.object(TokenBucket, "take", _nothing)], 10, Faults()
    ),
    "a repair without its line": Control(
        lambda: [patch.object(PutBack, "_end_lines", _nothing)], 10, Faults(rots=3, losses=3)
    ),
    "a scrub that takes no care": Control(
        lambda: [patch.object(Scrubber, "_take_care", _careless)], 10, Faults(rots=3, losses=3)
    ),
    "an order that looks at no tenant": Control(
        lambda: [patch.object(SyncTerms, "wants_tags", lambda self, tags: not self.tags or set(self.tags) & set(tags))],
        10,
        Faults(),
        _TENANTS,
    ),
    "an order that is looked up once": Control(
        lambda: [patch.object(SyncJobs, "_as_it_stands", lambda self, sync: sync)], 40, _SLOW, _TENANTS
    ),
    "an unprotect that leaves the schedule on": Control(
        lambda: [patch.object(Catalog, "end_protection", _end_no_schedule)], 10, Faults(), _TENANTS
    ),
    "a receipt that is never kept": Control(lambda: [patch.object(Catalog, "add_receipt", _nothing)], 5, Faults()),
}


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The product without that guard."""
    patches = CONTROLS[name].patches()
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def seeds_until_found(name: str, *, first: int = 1) -> tuple[int, Outcome | None]:
    """How many worlds it takes until the missing guard shows, and the world that shows it; None if none does."""
    control = CONTROLS[name]
    with broken(name):
        for count in range(1, control.seeds_max + 1):
            outcome = run_plan(make_plan(first + count - 1, faults=control.faults, deeds=control.deeds))
            if outcome.problem:
                # A guard is missed when a promise is broken, not when what was put in its place does not fit.
                assert "TypeError" not in outcome.problem, outcome.problem
                return count, outcome
    return control.seeds_max, None
