"""Memory and disks that lie (incidents 9, 14, 15)."""

import errno
import os
from pathlib import Path

import lz4.block
import pytest

from protocol.errors import BadBlock
from protocol.wire.envelope import HEADER_BYTES, seal
from protocol.wire.hashing import Kind
from replicator.store import verify
from replicator.store.ports import Cause
from tests.museum.exhibits import all_ids
from tests.support.blocks import body_of, flipped, ids_of, sealed_blocks
from tests.support.store import (
    open_store,
    put,
    replace_ledger,
    scrub,
)


def test_a_bit_that_flips_between_hash_and_pack_is_caught_before_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """restic#4523: the compressor, or the memory under it, made other bytes than it was given."""
    body = body_of(2, 4000)
    real = lz4.block.compress
    caught = 0
    packed = real(body, store_size=False)
    for bit in range(0, len(packed) * 8, 7):
        monkeypatch.setattr(lz4.block, "compress", lambda *_, bit=bit, **__: flipped(packed, bit))
        try:
            sealed = seal(Kind.DATA, body)
        except BadBlock:
            caught += 1
        else:
            assert lz4.block.decompress(sealed[HEADER_BYTES:], uncompressed_size=len(body)) == body
    assert caught > 40


def test_a_soft_read_error_condemns_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """restic#4774: the check fails once and passes on the second read."""
    store = open_store(root)
    blocks = sealed_blocks(1, 2, 3)
    put(store, blocks)
    real = os.pread
    moods = iter(["wrong", *["right"] * 1000])

    def flaky(handle: int, count: int, offset: int) -> bytes:
        data = real(handle, count, offset)
        return flipped(data, 500) if next(moods) == "wrong" else data

    monkeypatch.setattr(verify.os, "pread", flaky)
    assert scrub(store) == []
    moods = iter(["wrong", *["right"] * 1000])
    assert store.read(ids_of(blocks)).faults == []


def test_one_unreadable_sector_does_not_condemn_its_neighbours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(root)
    blocks = sealed_blocks(1, 3, 5)
    put(store, blocks)
    bad, _ = store.ledger.places(ids_of(blocks))[blocks[1].header.block_id]
    real = os.pread

    def bad_sector(handle: int, count: int, offset: int) -> bytes:
        if offset <= bad.offset + 100 < offset + count:
            raise OSError(errno.EIO, "bad sector")
        return real(handle, count, offset)

    monkeypatch.setattr(verify.os, "pread", bad_sector)
    faults = store.read(ids_of(blocks)).faults
    assert [(fault.block_id, fault.cause) for fault in faults] == [(blocks[1].header.block_id, Cause.UNREADABLE)]
    # The same in a rebuild: what can be read around it is found.
    store.close()
    replace_ledger(root, None)
    whole_reads_fail = iter([True, *[False] * 10**6])

    def bad_sector_4k(handle: int, count: int, offset: int) -> bytes:
        if next(whole_reads_fail):
            raise OSError(errno.EIO, "bad sector")
        return real(handle, count, offset)

    monkeypatch.setattr(verify.os, "pread", bad_sector_4k)
    store = open_store(root)
    assert all_ids(store) == set(ids_of(blocks))
