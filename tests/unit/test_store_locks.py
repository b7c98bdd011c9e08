"""Who may have a store open, and who waits for whom in it."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replicator.core.errors import StoreLocked
from replicator.store import local
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.store import open_store, put


def test_the_lock_names_the_process_that_holds_it_and_nobody_after_it_has_stopped(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    (root / "lock").write_text("123456789012345678901234567890123456789\n")  # Of a process that was killed.
    store = open_store(root)
    assert (root / "lock").read_text().strip() == str(os.getpid())
    with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}\\."):
        open_store(root)
    assert (root / "lock").read_text().strip() == str(os.getpid())
    store.close()
    assert (root / "lock").read_text().strip() == ""


def test_a_disk_without_room_for_the_number_opens_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store := open_store(tmp_path / "store"), sealed_blocks(1))
    store.close()
    real = os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("/lock"):
            raise OSError(28, "No space left on device")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    store = open_store(tmp_path / "store")
    assert store.read(ids_of(sealed_blocks(1))).faults == []
    store.close()


def test_looking_up_and_reading_wait_for_no_writer_and_no_collection(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    blocks = sealed_blocks(1, 2, 3)
    put(store, blocks[:2])
    lease = store.begin("w")
    store.append(lease, blocks[2:])
    got: list[Any] = []

    def look() -> None:
        reader = store.begin("r")
        got.append(store.have(reader, ids_of(blocks)))
        got.append(store.read(ids_of(blocks)).faults)
        got.append(store.read_sealed(ids_of(blocks)).blocks_count)

    # As if somebody wrote, flushed, collected and rebuilt all at once, for ever.
    commits = store.commits
    with commits.append_lock, commits.commit_lock, store.housekeeping, commits._turn:
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(30)
    assert got == [set(ids_of(blocks)), [], 3]
    thread.join()
    store.close()


@pytest.mark.parametrize("verb", ["have", "read"])
def test_a_block_that_is_committed_while_it_is_looked_for_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """From what is pending to the ledger: whoever asks the ledger first and is overtaken sees it in neither."""
    store = open_store(tmp_path / "store")
    lease = store.begin("w")
    store.append(lease, sealed_blocks(1))
    name = ids_of(sealed_blocks(1))

    def overtaken(real: Callable[..., Any]) -> Callable[..., Any]:
        def look(ids: Any) -> Any:
            found = real(ids)
            monkeypatch.undo()
            store.flush()
            return found

        return look

    ledger = store.ledger
    asked = "present" if verb == "have" else "places"
    monkeypatch.setattr(ledger, asked, overtaken(getattr(ledger, asked)))
    found = store.have(lease, name) if verb == "have" else store.read(name).sound.keys()
    assert set(found) == set(name)
    assert store.ledger.present(name) == set(name)
    store.close()


def test_a_writer_of_the_smallest_blocks_has_a_bounded_number_of_them_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It commits by bytes, and 64 MiB are a million of these."""
    monkeypatch.setattr(local, "_PENDING_MAX", 50)
    store = open_store(tmp_path / "store")
    lease = store.begin("w")
    for at in range(0, 300, 10):
        store.append(lease, sealed_blocks(*range(at, at + 10)))
        assert store.commits.pending_count < 50
    assert len(store.ledger.present(ids_of(sealed_blocks(*range(300))))) >= 250
    store.end(lease)
    store.close()
