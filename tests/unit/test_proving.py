"""Proving many blocks at once, on a disk with bad moments, bad sectors and bad memory."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.store import reading, verify
from replicator.store.local import LocalStore
from replicator.store.ports import Cause
from tests.support.blocks import flipped, ids_of, sealed_blocks
from tests.support.store import SMALL_SEGMENTS, damage, lose, open_store, put, scrub, segment_of

MANY = range(1, 201, 2)
"""In one segment, and in several runs of it: more than are proven without a second thread."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalStore]:
    monkeypatch.setattr(verify, "BLOCKS_FRAME_GOAL", 8 * 1024)
    store = open_store(tmp_path / "store", config=replace(SMALL_SEGMENTS, segment_bytes_max=1 << 20))
    put(store, sealed_blocks(*MANY))
    yield store
    store.close()


def test_all_that_is_wrong_is_found_and_nothing_else(store: LocalStore) -> None:
    ids = ids_of(sealed_blocks(*MANY))
    damage(store, ids[0])
    damage(store, ids[40])
    lose(store, ids[41])
    os.truncate(segment_of(store, ids[-1]), os.path.getsize(segment_of(store, ids[-1])) - 10)
    found = {fault.block_id: fault.cause for fault in scrub(store)}
    assert found == {ids[0]: Cause.CORRUPT, ids[40]: Cause.CORRUPT, ids[41]: Cause.CORRUPT, ids[-1]: Cause.MISSING}
    os.unlink(segment_of(store, ids[0]))
    assert {fault.cause for fault in scrub(store)} == {Cause.MISSING} and len(scrub(store)) == len(ids)


@pytest.mark.parametrize("mood", ["wrong", "refuses"])
def test_a_bad_moment_in_the_middle_is_counted_once_and_condemns_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, mood: str
) -> None:
    real, calls = os.preadv, 0

    def moody(handle: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        count = real(handle, buffers, offset)
        if calls == 3:
            if mood == "refuses":
                raise OSError(errno.EIO, "a bad moment")
            buffers[0][count - 1] ^= 1
        return count

    monkeypatch.setattr(reading.os, "preadv", moody)
    part = store.verify(after=None, bytes_max=1 << 20)
    assert calls > 5 and (part.blocks, part.faults, part.soft_errors) == (len(MANY), [], 1)
    assert store.statistics().soft_errors == 1


def test_short_reads_are_carried_on(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(reading.os, "preadv", lambda handle, into, at: real(handle, [into[0][:1000]], at))
    assert scrub(store) == []


def test_what_is_wrong_in_memory_only_is_right_when_it_is_read_past_the_page_cache(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """restic#4774: the second look must not be given the same wrong page."""
    block = ids_of(sealed_blocks(*MANY))[7]
    place, _ = store.ledger.places([block])[block]
    at = place.offset + place.length - 1
    is_dropped = False
    pread, preadv, advise = os.pread, os.preadv, os.posix_fadvise

    def cached(handle: int, count: int, offset: int) -> bytes:
        data = pread(handle, count, offset)
        is_there = os.readlink(f"/proc/self/fd/{handle}").endswith(".seg") and offset <= at < offset + len(data)
        return flipped(data, 8 * (at - offset)) if is_there and not is_dropped else data

    def cached_into(handle: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(handle, buffers, offset)
        if offset <= at < offset + count and not is_dropped:
            buffers[0][at - offset] ^= 1
        return count

    def drop(handle: int, offset: int, count: int, advice: int) -> None:
        nonlocal is_dropped
        is_dropped = is_dropped or (advice == os.POSIX_FADV_DONTNEED and offset <= at < offset + count)
        advise(handle, offset, count, advice)

    monkeypatch.setattr(os, "pread", cached)
    monkeypatch.setattr(os, "preadv", cached_into)
    monkeypatch.setattr(os, "posix_fadvise", drop)
    for look in (lambda: scrub(store), lambda: store.read([block]).faults):
        is_dropped = False
        assert look() == []
    assert store.statistics().soft_errors == 2
