"""Full disks, and flushes that fail (incidents 16, 18, 19)."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol.wire.envelope import HEADER_BYTES, MAGIC
from replicator.core.errors import (
    StoreFull,
    StoreReadOnly,
)
from replicator.store import replay, segments
from replicator.store.config import StoreConfig
from replicator.store.ledger import log
from replicator.store.local import LocalStore
from replicator.store.ports import SealedBlock
from tests.museum.exhibits import all_ids, fail_with
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.store import (
    collect,
    open_store,
    put,
    scrub,
)


def test_a_nearly_full_disk_refuses_writes_before_the_end_and_still_collects(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """restic#1140: with the last byte gone, even deleting fails."""
    store = open_store(root, config=StoreConfig(segment_bytes_max=4096, reserve_bytes_max=1_000_000))
    old = sealed_blocks(1, 3, 5, 7, 9)
    put(store, old)
    room = SimpleNamespace(f_bavail=1000, f_frsize=1000, f_blocks=10**9)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    writer = store.begin("w")
    with pytest.raises(StoreFull):
        store.append(writer, sealed_blocks(11))
    assert store.append(writer, old) == 0  # What is here already needs no room.
    store.commit(writer)
    store.end(writer)
    freed = sum(collect(store, []).bytes_freed for _ in range(2))
    assert freed > 4000
    room.f_bavail = 10**6
    put(store, sealed_blocks(11))


def test_writers_that_come_at_once_do_not_fill_the_reserve_together(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for either of two writes, and not for both: each asks before the other has written, if it can."""
    store = open_store(root, config=StoreConfig(reserve_bytes_max=1_000_000))
    batches = [sealed_blocks(1, 3), sealed_blocks(5, 7)]
    size = sum(len(block.sealed) for block in batches[0])
    both_ask, said = threading.Barrier(2), list[str]()

    def room(_: object) -> SimpleNamespace:
        written = sum(store.files.size(number) for number in store.files.numbers())
        free = 1_000_000 + size * 3 // 2 - written
        with suppress(threading.BrokenBarrierError):
            both_ask.wait(0.5)
        return SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=10**12)

    def write(batch: list[SealedBlock]) -> None:
        writer = store.begin("w")
        try:
            store.append(writer, batch)
            said.append("written")
        except StoreFull:
            said.append("refused")
        store.end(writer)

    monkeypatch.setattr(os, "statvfs", room)
    threads = [threading.Thread(target=write, args=(batch,)) for batch in batches]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(said) == ["refused", "written"]
    store.close()


def test_a_disk_that_fills_up_in_the_middle_of_an_append_loses_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root)
    first, second = sealed_blocks(1, 3), sealed_blocks(5, 7)
    put(store, first)
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda handle, run, offset: real(handle, [memoryview(run[0])[:100]], offset))
    monkeypatch.setattr(segments.os, "pwrite", fail_with(errno.ENOSPC))
    writer = store.begin("w")
    with pytest.raises(StoreFull):
        store.append(writer, second)
    monkeypatch.undo()
    assert store.have(writer, ids_of(second)) == set()
    store.append(writer, second)
    store.commit(writer)
    store.close()
    store = open_store(root)
    assert store.read(ids_of(first + second)).faults == []


def test_a_short_write_is_carried_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    real, real_one = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda handle, run, offset: real(handle, [memoryview(run[0])[:10]], offset))
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: real_one(handle, bytes(data)[:333], offset))
    blocks = sealed_blocks(1, 2, 3)
    put(store, blocks)
    assert store.read(ids_of(blocks)).faults == []


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_a_failed_flush_poisons_the_store_and_is_never_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """PostgreSQL 2018, Syncthing#3711: the kernel marks the pages clean, so a second fsync "succeeds"."""
    store = open_store(root)
    old = sealed_blocks(1)
    put(store, old)
    if call == "fsync":
        store.close()
        store = open_store(root)  # So that the next append makes a new segment, whose name must be durable.
    writer = store.begin("w")
    monkeypatch.setattr(os, call, fail_with(errno.EIO))
    with pytest.raises(StoreReadOnly):
        store.append(writer, sealed_blocks(2))
        store.commit(writer)
    monkeypatch.undo()
    for use in (
        lambda: store.commit(writer),
        lambda: store.append(writer, sealed_blocks(3)),
        store.flush,
    ):
        with pytest.raises(StoreReadOnly):
            use()
    assert store.statistics().read_only
    assert store.read(ids_of(old)).faults == []
    assert scrub(store) == []
    store.close()
    assert open_store(root).read(ids_of(old)).faults == []


def test_a_ledger_that_cannot_be_flushed_poisons_the_store_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    put(store, sealed_blocks(1))
    writer = store.begin("w")
    store.append(writer, sealed_blocks(2))
    monkeypatch.setattr(log.os, "fdatasync", fails_for(store, "ledger", errno.EIO))
    with pytest.raises(StoreReadOnly):
        store.commit(writer)
    monkeypatch.undo()
    with pytest.raises(StoreReadOnly):
        store.commit(writer)


def test_a_full_ledger_is_retried_and_then_commits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    writer = store.begin("w")
    store.append(writer, sealed_blocks(2))
    real = os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".log"):
            real(handle, bytes(data)[:7], offset)  # Some of it still went in.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, offset)

    monkeypatch.setattr(log.os, "pwrite", full)
    with pytest.raises(StoreFull):
        store.commit(writer)
    monkeypatch.undo()
    store.commit(writer)
    assert all_ids(store) == set(ids_of(sealed_blocks(2)))
    store.close()
    assert all_ids(open_store(root)) == set(ids_of(sealed_blocks(2)))


def fails_for(store: LocalStore, part: str, code: int) -> Callable[[int], None]:
    """`fdatasync`, failing for the files of one folder of a store."""
    real = os.fdatasync

    def fdatasync(handle: int) -> None:
        if f"/{part}/" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        real(handle)

    return fdatasync


@pytest.mark.parametrize("way", ["refuses", "falls short"])
def test_what_a_disk_refuses_to_give_during_a_rebuild_is_looked_for_again_at_the_next_start(
    root: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The ledger is gone, and half a segment cannot be read for a while. Not read is not "not there"."""
    config, blocks = StoreConfig(reserve_bytes_max=0), sealed_blocks(*range(40))
    store = open_store(root, config=config)
    put(store, blocks)
    [number] = store.files.numbers()
    middle = store.files.size(number) // 2
    store.close()
    shutil.rmtree(root / "ledger")

    def refuses(handle: int, size: int, offset: int) -> bytes:
        if offset + size > middle and offset < middle + 4096:
            if way == "falls short":
                return real(handle, size // 3, offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, size, offset)

    real = replay.pread_all
    monkeypatch.setattr(replay, "pread_all", refuses)
    store = open_store(root, config=config)
    lost = [fault.block_id for fault in store.read(ids_of(blocks)).faults]
    assert 0 < len(lost) <= 20, "what lies behind the bad place is found all the same"
    put(store, sealed_blocks(100))
    assert collect(store, ids_of(blocks)).segments_removed == 0
    store.close()
    monkeypatch.undo()
    store = open_store(root, config=config)
    assert store.read(ids_of(blocks) + ids_of(sealed_blocks(100))).faults == []
    assert store.replayed.skipped_bytes == 0
    store.close()
    store = open_store(root, config=config)
    assert store.replayed.segments == 0, "all is accounted for now"
    store.close()


@pytest.mark.parametrize("where", ["header", "body"])
def test_a_bit_that_is_wrong_on_its_way_to_a_rebuild_costs_no_block(
    root: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The ledger is gone, and each first look at a window has a wrong byte. What is no block is looked at again."""
    config, blocks = StoreConfig(reserve_bytes_max=0), sealed_blocks(*range(40))
    store = open_store(root, config=config)
    put(store, blocks)
    store.close()
    shutil.rmtree(root / "ledger")
    seen = set[int]()

    def is_wrong_at_first(handle: int, size: int, offset: int) -> bytes:
        data = bytearray(real(handle, size, offset))
        if offset not in seen and data:
            seen.add(offset)
            data[1 if where == "header" else HEADER_BYTES + 1] ^= 0x10
        return bytes(data)

    real = replay.pread_all
    monkeypatch.setattr(replay, "pread_all", is_wrong_at_first)
    store = open_store(root, config=config)
    assert store.read(ids_of(blocks)).faults == []
    assert store.replayed.skipped_bytes == 0
    store.close()


def test_what_is_no_block_is_read_twice_and_not_more(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is full of what looks like the beginning of a block."""
    config, blocks = StoreConfig(reserve_bytes_max=0), sealed_blocks(*range(40))
    store = open_store(root, config=config)
    put(store, blocks)
    [number] = store.files.numbers()
    store.close()
    shutil.rmtree(root / "ledger")
    garbage = MAGIC * 100_000
    with (root / "segments" / f"{number:08d}.seg").open("ab") as file:
        file.write(garbage)
    asked: list[int] = []
    real = replay.pread_all
    monkeypatch.setattr(replay, "pread_all", lambda *what: (asked.append(what[1]), real(*what))[1])
    store = open_store(root, config=config)
    assert store.read(ids_of(blocks)).faults == []
    assert store.replayed.skipped_bytes == len(garbage)
    assert sum(asked) <= 2 * store.files.size(number)
    store.close()


def test_a_flush_that_fails_while_a_fact_is_written_closes_the_store_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours, found by the torture: the start went on without the fact, and nobody was told of the disk."""
    store = open_store(root)
    put(store, sealed_blocks(1))

    def failing(_name: str, _value: int) -> None:
        raise StoreReadOnly("the disk failed to flush it", hint="")

    monkeypatch.setattr(store.ledger, "set_fact", failing)
    with pytest.raises(StoreReadOnly):
        store.set_fact("partner", 1)
    assert store.statistics().read_only
    store.close()
