"""The ledger when its disk fails, fills up, or forgets; each guard was seen red once, taken out."""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from replicator.core.errors import StoreFull
from replicator.store.config import StoreConfig
from replicator.store.ledger import Ledger, run
from replicator.store.ledger.rows import REST_BYTES
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.store import SMALL_SEGMENTS, collect, damage, open_store, put, scrub


def full_for(suffix: str) -> Callable[[int, bytes, int], int]:
    """`pwrite` on a disk that has no room for one kind of file."""
    real = os.pwrite

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(suffix):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, offset)

    return pwrite


def test_a_disk_without_room_for_a_run_still_takes_rows_and_makes_the_run_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(tmp_path / "store")) as store:
        monkeypatch.setattr(run.os, "pwrite", full_for(".run.new"))
        blocks = sealed_blocks(*range(40))
        for block in blocks[:36]:
            put(store, [block])
        assert store.ledger._table.runs == ()
        monkeypatch.undo()
        put(store, blocks[36:])
        assert len(store.ledger._table.runs) > 0
        assert store.ledger.present(ids_of(blocks)) == set(ids_of(blocks))
    with closing(open_store(tmp_path / "store")) as store:
        assert store.read(ids_of(blocks)).faults == []


def test_rows_do_not_pile_up_in_memory_for_ever_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_store(tmp_path / "store")) as store:
        monkeypatch.setattr(run.os, "pwrite", full_for(".run.new"))
        with pytest.raises(StoreFull):
            for block in sealed_blocks(*range(200)):
                put(store, [block])
        assert len(store.ledger._table.fresh_rows()) <= 4 * SMALL_SEGMENTS.ledger_fresh_rows_max


def scribble_over_rows(ledger: Ledger) -> None:
    """Of every run, the record of the first row."""
    ledger.wait_merged()
    for one in ledger._table.runs:
        with one.path.open("r+b") as file:
            file.seek(4096 + REST_BYTES - 16)
            file.write(os.urandom(16))


def test_a_row_that_is_not_as_written_is_found_and_the_ledger_made_anew(tmp_path: Path) -> None:
    with closing(open_store(tmp_path / "store")) as store:
        blocks = sealed_blocks(*range(100))
        put(store, blocks)
        broken, condemned = ids_of(blocks)[7], set(ids_of(blocks)[50:])
        damage(store, broken)
        store.quarantine(scrub(store))
        collect(store, ids_of(blocks)[:50], grace_s=3600)
        assert list(filter(None, store.ledger.check_rows())) == []
        scribble_over_rows(store.ledger)
        [*wrong] = filter(None, store.ledger.check_rows())
        assert wrong
        store.rebuild_ledger(wrong[0])
        assert list(filter(None, store.ledger.check_rows())) == []
        sound = [block for block in ids_of(blocks) if block != broken]
        assert store.read(sound).faults == []
        assert [fault.block_id for fault in store.broken()] == [broken]
        assert store.ledger.condemned_among(ids_of(blocks)) == condemned
        put(store, sealed_blocks(200))
    with closing(open_store(tmp_path / "store")) as store:
        assert store.replayed.blocks == 0
        assert store.read(sound).faults == []
        assert store.statistics().blocks == 100


def test_a_merge_that_meets_a_damaged_row_copies_nothing_of_it(tmp_path: Path) -> None:
    """kopia#5371, kopia#563: compaction of the index that drops entries, or brings wrong ones back."""
    config = StoreConfig(segment_bytes_max=4096, reserve_bytes_max=0, ledger_fresh_rows_max=8, ledger_runs_max=50)
    blocks = sealed_blocks(*range(60))
    with closing(open_store(tmp_path / "store", config=config)) as store:
        for at in range(0, 60, 10):
            put(store, blocks[at : at + 10])
        scribble_over_rows(store.ledger)
    merging = StoreConfig(segment_bytes_max=4096, reserve_bytes_max=0, ledger_fresh_rows_max=8, ledger_runs_max=2)
    with closing(open_store(tmp_path / "store", config=merging)) as store:
        store.ledger.wait_merged()
        if wrong := store.ledger.check():
            assert "damaged rows" in wrong
            store.rebuild_ledger(wrong)
        # (A merge that was quicker than the end of the opening had it made anew already then.)
        assert (tmp_path / "store" / "ledger.damaged").exists()
        store.ledger.wait_merged()
        assert store.ledger.check() == ""
        assert store.read(ids_of(blocks)).faults == []


def test_readers_see_every_row_while_runs_are_written_and_merged(tmp_path: Path) -> None:
    """A look-up asks dictionary and runs as they were at one moment, also when they are just being replaced."""
    ids = ids_of(sealed_blocks(*range(30)))
    blocks = sealed_blocks(*range(400))
    with closing(open_store(tmp_path / "store")) as store:
        put(store, blocks[:30])
        lost: list[int] = []
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                missing = len(ids) - len(store.ledger.present(ids))
                listed = set().union(*({p[at : at + 32] for at in range(0, len(p), 32)} for p in store.ids()))
                if missing or not listed.issuperset(ids):
                    lost.append(missing)

        readers = [threading.Thread(target=look) for _ in range(2)]
        for reader in readers:
            reader.start()
        for at in range(30, 400, 5):
            put(store, blocks[at : at + 5])
        done.set()
        for reader in readers:
            reader.join()
        assert lost == []


def test_many_starts_do_not_leave_many_logs(tmp_path: Path) -> None:
    for number in range(30):
        with closing(open_store(tmp_path / "store", config=StoreConfig(reserve_bytes_max=0))) as store:
            put(store, sealed_blocks(number))
    assert len(list((tmp_path / "store" / "ledger").glob("*.log"))) < 12
    with closing(open_store(tmp_path / "store")) as store:
        assert store.statistics().blocks == 30


def test_one_of_its_two_parts_put_back_from_a_copy_makes_the_whole_an_old_one(tmp_path: Path) -> None:
    root = tmp_path / "store"
    blocks = sealed_blocks(*range(40))
    with closing(open_store(root)) as store:
        put(store, blocks[:20])
    manifest = (root / "ledger" / "manifest").read_bytes()
    notes = (root / "ledger" / "notes.sqlite").read_bytes()
    with closing(open_store(root)) as store:
        put(store, blocks[20:])
    for name, old in (("notes.sqlite", notes), ("manifest", manifest)):
        (root / "ledger" / name).write_bytes(old)
        with closing(open_store(root)) as store:
            assert store.read(ids_of(blocks)).faults == []
            assert store.statistics().blocks == 40
