"""Stores for tests: small segments, so that a few blocks already make several files."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from protocol.ids import BlockId
from replicator.store.collect import Collectable, Collected, Collector, MarkSet
from replicator.store.config import StoreConfig
from replicator.store.local import LocalStore
from replicator.store.ports import BlockStore, Fault, SealedBlock
from tests.support.clocks import FakeMonotonic, FakeWallClock

SMALL_SEGMENTS = StoreConfig(
    segment_bytes_max=4096,
    reserve_bytes_max=0,
    grace_s=0.0,
    ledger_fresh_rows_max=16,
    ledger_part_rows_max=64,
    ledger_runs_max=3,
)
"""And a ledger of which a few rows already make runs, merges and parts."""


def open_store(
    root: Path,
    *,
    config: StoreConfig = SMALL_SEGMENTS,
    clock: FakeWallClock | None = None,
    monotonic: FakeMonotonic | None = None,
) -> LocalStore:
    return LocalStore.open(root, config, clock=clock or FakeWallClock(), monotonic=monotonic or FakeMonotonic())


def put(store: BlockStore, blocks: list[SealedBlock]) -> None:
    """Append and commit under a lease of its own."""
    lease = store.begin("put")
    store.append(lease, blocks)
    store.commit(lease)
    store.end(lease)


def collect(
    store: Collectable, roots: Iterable[BlockId], *, clock: FakeWallClock | None = None, grace_s: float = 0.0
) -> Collected:
    """One whole run of the collector; `roots` are all ids that are spoken for."""
    collector = Collector(store, clock=clock or FakeWallClock())
    mark = collector.begin()
    marks = MarkSet()
    marks.add(b"".join(roots))
    return collector.finish(mark, marks.finish(), grace_s=grace_s, dry_run=False, confirmed=True)


def scrub(store: BlockStore, *, bytes_max: int = 1 << 20) -> list[Fault]:
    """A whole scrub, step by step. Returns every fault; nothing is quarantined."""
    faults: list[Fault] = []
    cursor = None
    while True:
        part = store.verify(after=cursor, bytes_max=bytes_max)
        faults += part.faults
        cursor = part.cursor
        if cursor is None:
            return faults


def segment_of(store: LocalStore, block: BlockId) -> Path:
    place, _ = store.ledger.places([block])[block]
    return store.files.path(place.segment)


def damage(store: LocalStore, block: BlockId, *, at: int = 60) -> None:
    """Flip one bit of a block at rest, `at` bytes behind the start of its header."""
    place, _ = store.ledger.places([block])[block]
    with store.files.path(place.segment).open("r+b") as file:
        file.seek(place.offset + at)
        byte = file.read(1)[0]
        file.seek(place.offset + at)
        file.write(bytes([byte ^ 1]))


def copy_ledger(root: Path, to: Path) -> Path:
    """A copy of the ledger of a store that is closed."""
    return Path(shutil.copytree(root / "ledger", to))


def replace_ledger(root: Path, copy: Path | None) -> None:
    """Put a copy in the place of the ledger of a store that is closed, or nothing."""
    shutil.rmtree(root / "ledger", ignore_errors=True)
    if copy is not None:
        shutil.copytree(copy, root / "ledger")


def lose(store: LocalStore, block: BlockId) -> None:
    """Zeros where a block was."""
    place, _ = store.ledger.places([block])[block]
    with store.files.path(place.segment).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.length))
