"""The index is a cache, and copies of it come back (incidents 9, 10, 20)."""

import os
import sqlite3
from pathlib import Path

import pytest

from replicator.core.errors import (
    ConfigError,
    StoreError,
    StoreLocked,
)
from tests.museum.exhibits import all_ids
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.store import (
    collect,
    copy_ledger,
    damage,
    open_store,
    put,
    replace_ledger,
    scrub,
)


@pytest.mark.parametrize("way", ["deleted", "scribbled", "truncated", "empty"])
@pytest.mark.parametrize("which", ["all", "manifest", "notes.sqlite", "*.run", "*.log"])
def test_a_ledger_that_is_lost_or_damaged_is_rebuilt_from_the_segments(root: Path, which: str, way: str) -> None:
    """borg#4829: a bug corrupted the index. It can be thrown away, as a whole or any file of it."""
    store = open_store(root)
    blocks = sealed_blocks(*range(200))
    for at in range(0, 200, 10):
        put(store, blocks[at : at + 10])
    store.ledger.wait_merged()
    store.close()
    for path in sorted((root / "ledger").glob("*" if which == "all" else which)):
        content = path.read_bytes()
        match way:
            case "deleted":
                path.unlink()
            case "scribbled":
                path.write_bytes(os.urandom(len(content)))
            case "truncated":
                path.write_bytes(content[: len(content) // 2])
            case "empty":
                path.write_bytes(b"")
    store = open_store(root)
    assert all_ids(store) == set(ids_of(blocks))
    assert store.read(ids_of(blocks)).faults == []
    assert store.statistics().blocks == 200


def test_a_full_disk_is_not_taken_for_a_damaged_ledger(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    blocks = sealed_blocks(1)
    put(store, blocks)
    damage(store, blocks[0].header.block_id)
    store.quarantine(scrub(store))
    store.close()

    def full(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("replicator.core.database.sqlite3.connect", full)
    with pytest.raises(StoreError):
        open_store(root)
    monkeypatch.undo()
    assert len(open_store(root).broken()) == 1


def test_an_older_ledger_finds_what_has_moved_and_does_not_promise_what_is_gone(root: Path, tmp_path: Path) -> None:
    """The ledger comes back from last night's copy; since then segments were emptied and removed."""
    store = open_store(root)
    blocks = sealed_blocks(*range(1, 41, 2))
    put(store, blocks)
    store.close()
    copy = copy_ledger(root, tmp_path / "copy")
    kept, dropped = ids_of(blocks[::4]), ids_of(blocks)[1:]
    store = open_store(root)
    for _ in range(2):
        collect(store, kept)
    store.close()
    replace_ledger(root, copy)
    store = open_store(root)
    assert store.read(kept).faults == []
    writer = store.begin("w")
    told = store.have(writer, dropped)
    assert {fault.block_id for fault in store.read(sorted(told)).faults} == set()


def test_an_older_ledger_finds_the_healed_copy_and_not_the_broken_one(root: Path, tmp_path: Path) -> None:
    store = open_store(root)
    blocks = sealed_blocks(1, 3, 5)
    put(store, blocks)
    store.close()
    copy = copy_ledger(root, tmp_path / "copy")
    store = open_store(root)
    damage(store, blocks[1].header.block_id)
    store.quarantine(scrub(store))
    put(store, blocks)
    store.close()
    replace_ledger(root, copy)
    store = open_store(root)
    assert store.read(ids_of(blocks)).faults == []


def test_an_older_ledger_learns_of_a_block_that_a_rebuild_brought_back(root: Path, tmp_path: Path) -> None:
    """Found by the state machine: swept, copied, rebuilt, relied on again, and the copy put back."""
    store = open_store(root)
    blocks = sealed_blocks(1)
    put(store, blocks)
    for _ in range(2):
        collect(store, [])
    store.close()
    copy = copy_ledger(root, tmp_path / "copy")
    replace_ledger(root, None)
    store = open_store(root)
    put(store, blocks)
    store.close()
    replace_ledger(root, copy)
    assert open_store(root).read(ids_of(blocks)).faults == []


def test_a_store_of_a_newer_release_is_refused(root: Path) -> None:
    open_store(root).close()
    (root / "format").write_text("replicator store 2\n")
    with pytest.raises(ConfigError):
        open_store(root)


def test_two_processes_cannot_have_one_store(root: Path) -> None:
    store = open_store(root)
    with pytest.raises(StoreLocked):
        open_store(root)
    store.close()
    open_store(root).close()
