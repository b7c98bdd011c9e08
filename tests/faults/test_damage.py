"""What a node says of itself is lost, cut short, or put back from an older copy.

Noticed, rebuilt, or refused by name.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from protocol.wire.hashing import Kind
from replicator.app.node import open_node
from replicator.core.errors import BlockMissing, CatalogError, ConfigError
from replicator.core.progress import Progress
from replicator.jobs.care import CareJobs
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.jobs.snapshot import SnapshotJobs
from replicator.store.local import LocalStore
from replicator.store.ports import Cause, Fault
from tests.faults.flips import flip_bits
from tests.faults.judge import restore_all
from tests.faults.work import STAYS, drop_ledger, scribble, tree_digest, volume_of
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.nodes import write_state
from tests.support.store import collect, damage, open_store, put, scrub


def test_flipped_bits_are_all_found_and_none_is_served() -> None:
    flipped = flip_bits(flips=200, seed=1)
    assert flipped.problems == []
    assert (flipped.flips, flipped.by_sums) == (200, 100)


class Alone:
    """A node without a network, its source, and what each of its snapshots must restore as."""

    def __init__(self, folder: Path) -> None:
        self.state, self.source = folder / "state", folder / "source"
        self.digests: dict[str, str] = {}
        self._chance = random.Random(1)
        write_state(self.state, "alone")
        scribble(self.source, self._chance, files=8)
        with self.opened() as parts:
            parts.catalog.add_volume(volume_of(parts, self.source))

    @contextmanager
    def opened(self) -> Iterator[Parts]:
        with open_node(self.state) as parts:
            yield parts

    def take(self) -> str:
        scribble(self.source, self._chance, files=8)
        with self.opened() as parts:
            volumes = [parts.catalog.volumes()[0].volume_id.hex()]
            done = self.run(SnapshotJobs(parts).run, volumes=volumes)
        name = str(done["snapshots"][0]["snapshot"])
        self.digests[name] = tree_digest(self.source)
        return name

    def forget(self, name: str) -> None:
        with self.opened() as parts:
            parts.catalog.delete_snapshots([bytes.fromhex(name)])  # type: ignore[list-item]
        del self.digests[name]

    def collect(self) -> None:
        with self.opened() as parts:
            self.run(CollectionJobs(parts).collect, grace_s=0.0, confirmed=True)

    def check(self) -> None:
        """Everything that was promised is listed, and restores byte for byte."""
        with self.opened() as parts:
            listed = {one.snapshot_id.hex() for one in parts.catalog.snapshots()}
            assert listed >= set(self.digests), "a snapshot is not listed any more"
            restore_all(parts, self.digests)

    @staticmethod
    def run(job: Callable[..., object], **args: object) -> dict:  # type: ignore[type-arg]
        context = JobContext(os.urandom(8).hex(), "job", args, Progress(clock=time.monotonic))
        return trio.run(job, context)  # type: ignore[arg-type, no-any-return]


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    return Alone(tmp_path)


def copies_of(state: Path, name: str) -> list[Path]:
    return [state / f"{name}{suffix}" for suffix in ("", "-wal", "-shm") if (state / f"{name}{suffix}").exists()]


def test_an_older_copy_of_the_catalogue_forgets_no_snapshot(alone: Alone, tmp_path: Path) -> None:
    """The snapshots since the copy would be blocks that nothing needs, and the next collection would let them go."""
    first = alone.take()
    kept = tmp_path / "copy"
    shutil.copy(alone.state / "catalog.sqlite", kept)
    alone.take()
    alone.take()
    for path in copies_of(alone.state, "catalog.sqlite"):
        path.unlink()
    shutil.copy(kept, alone.state / "catalog.sqlite")
    for _ in range(2):
        alone.collect()
    alone.check()
    alone.forget(first)
    alone.collect()
    with alone.opened() as parts:
        assert {one.snapshot_id.hex() for one in parts.catalog.snapshots()} == set(alone.digests)
    alone.check()


@pytest.mark.parametrize("bytes_left", [None, 0, 1])
def test_a_catalogue_that_is_gone_is_made_again_from_the_store(alone: Alone, bytes_left: int | None) -> None:
    alone.take()
    alone.take()
    for path in copies_of(alone.state, "catalog.sqlite"):
        path.unlink() if bytes_left is None else os.truncate(path, bytes_left)
    alone.collect()
    alone.check()


@pytest.mark.parametrize("bytes_left", [4096, 20_000])
def test_a_catalogue_that_was_cut_short_is_refused_by_name_and_nothing_is_collected(
    alone: Alone, bytes_left: int
) -> None:
    alone.take()
    whole = (alone.state / "catalog.sqlite").read_bytes()
    os.truncate(alone.state / "catalog.sqlite", bytes_left)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite"):
        alone.collect()
    (alone.state / "catalog.sqlite").write_bytes(whole)
    alone.check()


def test_everything_that_a_store_knows_besides_its_segments_can_be_lost(alone: Alone) -> None:
    for _ in range(3):
        alone.take()
    drop_ledger(alone.state / "store")
    alone.collect()
    alone.check()


def test_a_ledger_cut_short_anywhere_is_noticed_and_made_again(tmp_path: Path) -> None:
    with closing(open_store(tmp_path / "s")) as store:
        blocks = sealed_blocks(*range(40))
        put(store, blocks)
    pristine = tmp_path / "pristine"
    shutil.copytree(tmp_path / "s", pristine)
    files = [
        path for path in pristine.rglob("*") if path.is_file() and path.relative_to(pristine).parts[0] not in STAYS
    ]
    assert files
    for path in files:
        size = path.stat().st_size
        for left in sorted({0, 1, size // 3, size // 2, size - 1} - {size}):
            shutil.rmtree(tmp_path / "s")
            shutil.copytree(pristine, tmp_path / "s")
            os.truncate(tmp_path / "s" / path.relative_to(pristine), max(0, left))
            with closing(open_store(tmp_path / "s")) as store:
                assert store.read(ids_of(blocks)).faults == [], f"{path.name} cut to {left} bytes"
                assert scrub(store) == []


@pytest.mark.parametrize("content", [None, "", "nonsense\n", "-4\n", "0\n"])
def test_without_the_generation_an_older_ledger_is_not_believed(tmp_path: Path, content: str | None) -> None:
    """Swept, copied, rebuilt, relied on again, and the copy put back: it has accounted for bytes that it calls dead."""
    root = tmp_path / "s"
    blocks = sealed_blocks(1)
    with closing(open_store(root)) as store:
        put(store, blocks)
        for _ in range(2):
            collect(store, [])
    kept = tmp_path / "kept"
    shutil.copytree(root, kept, ignore=shutil.ignore_patterns("segments"))
    drop_ledger(root)
    with closing(open_store(root)) as store:
        put(store, blocks)
        assert store.read(ids_of(blocks)).faults == []
    drop_ledger(root)
    for entry in kept.iterdir():
        if entry.name not in STAYS:
            shutil.copytree(entry, root / entry.name) if entry.is_dir() else shutil.copy(entry, root / entry.name)
    (root / "generation").unlink()
    if content is not None:
        (root / "generation").write_text(content)
    with closing(open_store(root)) as store:
        assert store.read(ids_of(blocks)).faults == []


def test_a_format_file_that_is_gone_or_wrong_is_named_and_never_guessed_at(tmp_path: Path) -> None:
    root = tmp_path / "s"
    with closing(open_store(root)) as store:
        put(store, sealed_blocks(1))
    for content in (None, "", "replicator store", "replicator store 9\n"):
        (root / "format").unlink(missing_ok=True)
        if content is not None:
            (root / "format").write_text(content)
        with pytest.raises(ConfigError, match=r"format|reads"):
            open_store(root)
    (root / "format").write_text("replicator store 1\n")
    with closing(open_store(root)) as store:
        assert store.read(ids_of(sealed_blocks(1))).faults == []


@pytest.mark.parametrize("kind", [Kind.NODE, Kind.RECORD, Kind.DATA])
def test_a_damaged_block_of_any_kind_is_named_and_stops_a_collection_rather_than_shrinking_it(
    alone: Alone, kind: Kind
) -> None:
    alone.take()
    last = alone.take()
    with alone.opened() as parts:
        store = parts.store
        assert isinstance(store, LocalStore)
        before = store.statistics().blocks
        record = parts.catalog.snapshot(bytes.fromhex(last))
        victim = record.record.root if kind is Kind.NODE else store.ledger.of_kind(kind)[0]
        damage(store, victim)
        found = alone.run(CareJobs(parts).scrub)
        assert victim.hex() in {fault["block"] for fault in found["faults"]}
        if kind is Kind.NODE:
            with pytest.raises(BlockMissing, match=victim.hex()):
                alone.run(CollectionJobs(parts).collect, grace_s=0.0, confirmed=True)
            others = {name: digest for name, digest in alone.digests.items() if name != last}
            restore_all(parts, others)
        else:
            alone.run(CollectionJobs(parts).collect, grace_s=0.0, confirmed=True)
        assert store.statistics().blocks >= before - 1, "nothing but the broken block is gone"


def test_a_block_that_could_not_be_read_for_a_while_is_back_after_a_restart(tmp_path: Path) -> None:
    """A disk that answered with an error once: without this only a peer could ever bring the block back."""
    with closing(open_store(tmp_path / "s")) as store:
        blocks = sealed_blocks(1, 2, 3)
        put(store, blocks)
        place, kind = store.ledger.places(ids_of(blocks))[blocks[1].header.block_id]
        damage(store, blocks[2].header.block_id)
        store.quarantine([Fault(blocks[1].header.block_id, kind, Cause.UNREADABLE, place), *scrub(store)])
        assert len(store.broken()) == 2
    with closing(open_store(tmp_path / "s")) as store:
        assert [fault.block_id for fault in store.broken()] == [blocks[2].header.block_id]
        assert bytes(store.read(ids_of(blocks[:2])).sound[blocks[1].header.block_id])
