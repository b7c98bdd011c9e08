"""A scrub finds damage in everything that is kept, mends what it can, and says the rest by name."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.ids import BlockId, split_ids
from protocol.wire.hashing import Kind
from replicator.catalog.audit import buried
from replicator.catalog.manifest.nodes import Shape, encode_node, number_key
from replicator.catalog.manifest.walk import closure
from replicator.catalog.model import Snapshot
from replicator.catalog.records import sign_record
from replicator.core.errors import CatalogError
from replicator.core.progress import Progress
from replicator.jobs.care import CareJobs
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.runner import JobContext
from replicator.monitor.alerts import find_alerts
from replicator.repair.records import RecordCheck
from replicator.repair.scrub import Scrubber
from replicator.sync.publish import store_record
from tests.support.blocks import from_body
from tests.support.clocks import FakeMonotonic
from tests.support.nodes import Site, open_site, write_tree
from tests.support.store import damage, put


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path / "home", "home") as site:
        yield site


@pytest.fixture
async def snapshot(home: Site, tmp_path: Path) -> Snapshot:
    return await home.take(home.protect(write_tree(tmp_path / "data", files=8, size=70_000)))


async def scrub(site: Site) -> dict[str, Any]:
    context = JobContext("scrub", "scrub", {"from_start": True}, Progress(clock=FakeMonotonic()))
    return await CareJobs(site.parts).scrub(context)


def sql(site: Site, text: str, *values: object) -> None:
    with site.catalog.db.write() as connection:
        connection.execute(text, values)
    site.catalog._records.clear()


async def test_a_sound_node_gives_a_scrub_nothing_to_say(home: Site, snapshot: Snapshot) -> None:
    found = await scrub(home)
    assert (found["verdicts"], found["damaged"], found["soft_errors"]) == ([], 0, 0)
    assert found["blocks"] == home.store.statistics().blocks
    assert home.parts.scrubber.is_between_passes


# -- catalogue and records --------------------------------------------------------------------


async def test_a_row_whose_record_has_rotted_is_mended_from_the_block(home: Site, snapshot: Snapshot) -> None:
    rotten = bytearray(snapshot.signed)
    rotten[40] ^= 1
    sql(home, "UPDATE snapshots SET record = ?", bytes(rotten))
    home.catalog.hold(snapshot.snapshot_id, "ours")
    with pytest.raises(CatalogError, match="replicator scrub"):
        home.catalog.snapshots()
    found = await scrub(home)
    [verdict] = found["verdicts"]
    assert (verdict["what"], verdict["is_mended"], verdict["subject"]) == (
        "catalogue", True, snapshot.snapshot_id.hex(),
    )  # fmt: skip
    [again] = home.catalog.snapshots()
    assert (again.signed, again.received_ns, again.held) == (snapshot.signed, snapshot.received_ns, "ours")
    assert (await scrub(home))["verdicts"] == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("root", bytes(32)), ("sequence", 77), ("volume_id", bytes(16)), ("system_id", bytes(16)),
     ("record_block", bytes(32)), ("snapshot_id", bytes(16))],
)  # fmt: skip
async def test_a_column_that_says_something_else_than_the_signature_is_mended(
    home: Site, snapshot: Snapshot, column: str, value: object
) -> None:
    sql(home, "PRAGMA foreign_keys = OFF")
    sql(home, f"UPDATE snapshots SET {column} = ?", value)
    found = await scrub(home)
    assert [(one["what"], one["is_mended"]) for one in found["verdicts"]] == [("catalogue", True)]
    [again] = home.catalog.snapshots(snapshot.record.volume_id)
    assert (again.snapshot_id, again.record_block) == (snapshot.snapshot_id, snapshot.record_block)
    assert (await scrub(home))["verdicts"] == []


async def test_a_row_that_vanished_is_entered_again_and_a_deleted_one_is_not(
    home: Site, snapshot: Snapshot, tmp_path: Path
) -> None:
    deleted = await home.take(home.catalog.volume(snapshot.record.volume_id))
    home.catalog.delete_snapshots([deleted.snapshot_id])
    sql(home, "DELETE FROM snapshots")
    found = await scrub(home)
    assert [(one["subject"], one["is_mended"]) for one in found["verdicts"]] == [(snapshot.snapshot_id.hex(), True)]
    assert [one.snapshot_id for one in home.catalog.snapshots()] == [snapshot.snapshot_id]
    assert (await scrub(home))["verdicts"] == []


async def test_a_record_whose_writer_is_still_at_work_is_left_for_the_next_time(home: Site, snapshot: Snapshot) -> None:
    sql(home, "DELETE FROM snapshots")
    writer = home.store.begin("receive")
    assert (await scrub(home))["verdicts"] == []
    home.store.end(writer)
    assert len((await scrub(home))["verdicts"]) == 1


async def test_what_a_record_without_a_row_needs_is_spared_by_a_collection_while_a_writer_is_at_work(
    home: Site, snapshot: Snapshot
) -> None:
    sql(home, "DELETE FROM snapshots")
    writer = home.store.begin("receive")
    jobs = CollectionJobs(home.parts)
    for grace_s in (3600, 0, 0):
        args = {"grace_s": grace_s, "confirmed": True}
        done = await jobs.collect(JobContext("gc", "gc", args, Progress(clock=FakeMonotonic())))
        assert (done["blocks_condemned"], done["blocks_swept"]) == (0, 0)
    assert home.catalog.snapshots() == []
    home.store.end(writer)
    await jobs.collect(JobContext("gc", "gc", {}, Progress(clock=FakeMonotonic())))
    assert [one.snapshot_id for one in home.catalog.snapshots()] == [snapshot.snapshot_id]


async def test_a_record_without_a_row_is_entered_again_also_on_a_node_on_which_a_writer_is_always_at_work(
    home: Site, snapshot: Snapshot
) -> None:
    sql(home, "DELETE FROM snapshots")
    writer = home.store.begin("receive")
    parts = home.parts
    check = RecordCheck(
        store=parts.store, catalog=parts.catalog, reader=parts.reader, offload=parts.offload, clock=parts.clock
    )
    seen: dict[BlockId, float] = {BlockId(b"o" * 32): 0.0}
    assert len((await check.take_back_lost(seen))[1]) == 1
    assert list(seen) == [snapshot.record_block]
    seen[snapshot.record_block] -= writer.lasts_s
    home.store.renew(writer)
    [verdict], waiting = await check.take_back_lost(seen)
    assert verdict.is_mended and not waiting
    assert [one.snapshot_id for one in home.catalog.snapshots()] == [snapshot.snapshot_id]


async def test_a_vanished_row_whose_blocks_are_gone_is_refused_by_name(home: Site, snapshot: Snapshot) -> None:
    sql(home, "DELETE FROM snapshots")
    home.store.ledger.condemn([snapshot.record.root], epoch=0, now_ns=0)
    home.store.ledger.sweep([snapshot.record.root], epoch_below=1)
    found = await scrub(home)
    [verdict] = found["verdicts"]
    assert not verdict["is_mended"] and verdict["done"].startswith("refused")
    assert home.catalog.snapshots() == []
    assert found["metadata_unmended"] == 1
    alerts = find_alerts(home.parts, home.mesh, started_ns=home.parts.clock.now_ns())
    assert [alert.kind for alert in alerts] == ["metadata_damaged"]


async def test_deletions_from_before_they_were_noted_are_believed_once(home: Site, snapshot: Snapshot) -> None:
    sql(home, "DELETE FROM facts WHERE name = 'deletions.noted'")
    sql(home, "DELETE FROM snapshots")
    assert (await scrub(home))["verdicts"] == []
    assert set(buried(home.catalog.db)) == {snapshot.snapshot_id}
    assert home.catalog.snapshots() == []


async def test_a_record_whose_block_is_gone_is_written_again_from_the_row(home: Site, snapshot: Snapshot) -> None:
    home.store.ledger.condemn([snapshot.record_block], epoch=0, now_ns=0)
    home.store.ledger.sweep([snapshot.record_block], epoch_below=1)
    found = await scrub(home)
    assert [(one["what"], one["is_mended"]) for one in found["verdicts"]] == [("record", True)]
    assert home.store.read([snapshot.record_block]).faults == []
    assert (await scrub(home))["verdicts"] == []


async def test_a_record_that_has_rotted_in_the_store_is_written_again_as_well(home: Site, snapshot: Snapshot) -> None:
    damage(home.store, snapshot.record_block)
    first = await scrub(home)
    assert not all(one["is_mended"] for one in first["verdicts"]) or first["healed"]
    assert (await scrub(home))["verdicts"] == [] or home.store.read([snapshot.record_block]).faults == []


async def test_neither_row_nor_block_sound_is_said_and_other_snapshots_are_still_checked(
    home: Site, snapshot: Snapshot, tmp_path: Path
) -> None:
    other = await home.take(home.protect(write_tree(tmp_path / "other", files=3, size=50_000, seed=5)))
    sql(home, "UPDATE snapshots SET record = ? WHERE snapshot_id = ?", b"x" * 200, snapshot.snapshot_id)
    home.store.ledger.condemn([snapshot.record_block], epoch=0, now_ns=0)
    home.store.ledger.sweep([snapshot.record_block], epoch_below=1)
    damage(home.store, other.record.root)
    found = await scrub(home)
    assert {(one["what"], one["is_mended"]) for one in found["verdicts"]} == {("catalogue", False), ("manifest", False)}
    with pytest.raises(CatalogError):
        home.catalog.snapshots()  # And so no collection can take its blocks.


async def test_a_damaged_file_of_the_catalogue_is_named(home: Site, snapshot: Snapshot) -> None:
    sql(home, "PRAGMA writable_schema = ON")
    sql(home, "UPDATE sqlite_master SET rootpage = 3 WHERE name = 'snapshots_by_volume'")
    sql(home, "PRAGMA writable_schema = RESET")
    look_afresh(home)
    [verdict] = (await scrub(home))["verdicts"]
    assert verdict["subject"] == "catalog.sqlite" and not verdict["is_mended"]


def look_afresh(site: Site) -> None:
    """Let go of the connections that know the file as it was."""
    for reader in list(site.catalog.db._readers):
        reader.connection.close()
    site.catalog.db._readers.clear()
    del site.catalog.db._local.reader


# -- index and manifests ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.NODE])
async def test_what_the_index_lost_comes_back_from_its_segment_without_any_peer(
    home: Site, snapshot: Snapshot, kind: Kind
) -> None:
    lost = home.store.of_kind(kind)[:2]
    home.store.ledger.condemn(lost, epoch=0, now_ns=0)
    home.store.ledger.sweep(lost, epoch_below=1)
    found = await scrub(home)
    assert {one["subject"] for one in found["verdicts"]} == {block.hex() for block in lost}
    assert {(one["what"], one["is_mended"]) for one in found["verdicts"]} == {("index", True)}
    assert home.store.read(lost).faults == []
    assert (await scrub(home))["verdicts"] == []


async def test_a_damaged_index_is_made_anew_while_the_node_runs(home: Site, snapshot: Snapshot) -> None:
    """One flipped bit in a run of the ledger: what it says is proven when it is read, but not when it says "here"."""
    before, ledger = home.block_ids(), home.store.ledger
    home.store.ledger.check_rows = lambda: iter(["", "a run has a row that is not as it was written"])  # type: ignore[method-assign]
    found = await scrub(home)
    assert [(one["what"], one["is_mended"], one["done"]) for one in found["verdicts"]] == [
        ("index", True, "made anew from the segments")
    ]
    assert home.store.ledger is not ledger
    assert home.block_ids() == before
    assert (await scrub(home))["verdicts"] == []


async def test_a_block_that_nobody_has_names_the_files_that_need_it(home: Site, snapshot: Snapshot) -> None:
    bad = home.store.of_kind(Kind.DATA)[0]
    damage(home.store, bad)
    found = await scrub(home)
    [verdict] = found["verdicts"]
    assert (verdict["what"], verdict["cause"], verdict["subject"]) == ("block", "corrupt", bad.hex())
    assert verdict["place"].startswith("segment ")
    assert next(touched["where"] for touched in verdict["touches"]).startswith("file-")
    assert json.loads(home.catalog.fact("scrub.findings") or "")[0]["subject"] == bad.hex()


async def test_a_map_that_was_signed_and_makes_no_sense_is_refused_by_name(home: Site, snapshot: Snapshot) -> None:
    """Its blocks are sound, so no peer has better ones: only walking finds it."""
    node = from_body(encode_node(Shape.NUMBERS, 0, [number_key(1)], [bytes(range(32))]), kind=Kind.NODE)
    put(home.store, [node])
    await publish_root(home, snapshot, node.header.block_id)
    found = await scrub(home)
    assert [(one["what"], one["is_mended"]) for one in found["verdicts"]] == [("manifest", False)]
    assert found["damaged"] == 0


async def publish_root(home: Site, like: Snapshot, root: bytes) -> None:
    record = replace(like.record, snapshot_id=b"s" * 16, root=root, sequence=99)  # type: ignore[arg-type]
    signed = sign_record(record, home.parts.sign)
    lease = home.store.begin("t")
    home.catalog.add_snapshot(signed, store_record(home.store, lease, signed))
    home.store.end(lease)


async def test_a_walk_that_failed_does_not_hide_what_others_share_with_it(
    home: Site, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes met by a walk that fails were stepped over by the next one, with all that lies below them."""
    volume = home.catalog.volume(snapshot.record.volume_id)
    home.catalog.delete_snapshots([snapshot.snapshot_id])
    write_tree(tmp_path / "data", files=400, size=3000, seed=1)
    first = await home.take(volume)
    (tmp_path / "data" / "file-0001").write_bytes(b"changed")
    second = await home.take(volume)
    nodes, needed = [await nodes_of(home, one) for one in (first, second)], set(home.store.of_kind(Kind.DATA))
    [leaf] = nodes[0] - nodes[1] - {first.record.root}
    damage(home.store, leaf)
    records = [first.record, second.record]  # The one that fails comes first.
    monkeypatch.setattr("replicator.repair.needs.sound_records", lambda _: records)
    shared = sorted(await data_of(home, second) & needed)[:3]
    home.store.ledger.condemn(shared, epoch=0, now_ns=0)
    home.store.ledger.sweep(shared, epoch_below=1)
    found = await scrub(home)
    assert {one["subject"] for one in found["verdicts"] if one["what"] == "index"} == {one.hex() for one in shared}
    assert [one["subject"] for one in found["verdicts"] if not one["is_mended"]] == [leaf.hex()]


async def nodes_of(site: Site, snapshot: Snapshot) -> set[BlockId]:
    record = snapshot.record
    runs = [run async for run in closure(site.parts.reader, record.root, record.shape)]
    return {block for kind, packed in runs if kind is Kind.NODE for block in split_ids(packed)}


async def data_of(site: Site, snapshot: Snapshot) -> set[BlockId]:
    record = snapshot.record
    runs = [run async for run in closure(site.parts.reader, record.root, record.shape)]
    return {block for kind, packed in runs if kind is Kind.DATA for block in split_ids(packed)}


# -- cursor and background --------------------------------------------------------------------


async def test_a_pass_goes_on_after_a_restart_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.repair.scrub.PART_BYTES", 100_000)
    with open_site(tmp_path / "home", "home") as site:
        await site.take(site.protect(write_tree(tmp_path / "data", files=30, size=70_000)))
        for _ in range(4):
            await site.parts.scrubber.step()
        before = site.parts.scrubber.pass_now
        assert before.stage == "segments" and before.read_bytes > 200_000
    with open_site(tmp_path / "home", "home") as site:
        scrubber = site.parts.scrubber
        assert scrubber.pass_now == before
        read, total = before.read_bytes, site.store.statistics().sealed_bytes
        while not (stepped := await scrubber.step()).is_complete:
            read += stepped.read_bytes
        assert read == total
        assert scrubber.pass_now.started_ns == before.started_ns and scrubber.pass_now.ended_ns


async def test_a_scrub_that_is_cancelled_in_its_walk_is_not_complete(
    home: Site, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrubber: Scrubber = home.parts.scrubber
    with trio.move_on_after(0) as scope:
        scope.cancel()
        await scrubber.run(Progress(clock=FakeMonotonic()), from_start=True)
    while scrubber.pass_now.stage != "manifests":
        await scrubber.step()
    scope = trio.CancelScope()

    async def cut(ids: object) -> None:
        scope.cancel()
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(home.parts.reader, "read", cut)
    with scope:
        await scrubber.step()
    monkeypatch.undo()
    assert scope.cancelled_caught
    damage(home.store, snapshot.record.root)  # Only a walk from the beginning meets it.
    while not (await scrubber.step()).is_complete:
        pass
    assert [one["subject"] for one in scrubber.findings] == [snapshot.record.root.hex()]
