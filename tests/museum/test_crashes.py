"""Crashes (incident 18), and hands that reach into the store."""

import os
from contextlib import closing
from pathlib import Path

import pytest

from protocol.wire.envelope import HEADER_BYTES, unseal
from replicator.core.errors import (
    LeaseLost,
    SegmentLost,
)
from replicator.store.config import StoreConfig
from replicator.store.local import LocalStore
from tests.museum.exhibits import all_ids
from tests.support.blocks import ids_of, sealed_block, sealed_blocks
from tests.support.store import (
    SMALL_SEGMENTS,
    collect,
    damage,
    open_store,
    put,
    scrub,
    segment_of,
)


@pytest.mark.parametrize("cut", [1, 30, HEADER_BYTES, HEADER_BYTES + 1, 500])
def test_a_torn_tail_was_never_acknowledged_and_is_in_nobodys_way(root: Path, cut: int) -> None:
    store = open_store(root, config=StoreConfig(reserve_bytes_max=0))
    acked, torn = sealed_blocks(1, 2), sealed_block(3)
    put(store, acked)
    path = segment_of(store, acked[0].header.block_id)
    store.close()
    with path.open("ab") as file:
        file.write(bytes(torn.sealed)[:cut])
    before = path.read_bytes()
    store = open_store(root)
    assert (store.replayed.blocks, store.replayed.skipped_bytes) == (0, cut)
    assert all_ids(store) == set(ids_of(acked))
    put(store, [torn, sealed_block(5)])
    assert path.read_bytes() == before  # New blocks go to a new segment.
    store.close()
    store = open_store(root)
    assert (store.replayed.blocks, store.replayed.skipped_bytes) == (0, 0)
    assert store.read(ids_of([*acked, torn, sealed_block(5)])).faults == []


def test_what_was_flushed_and_not_entered_is_found_again(root: Path) -> None:
    """Killed between the flush of the segment and the ledger's commit."""
    store = open_store(root)
    writer = store.begin("w")
    blocks = sealed_blocks(1, 2)
    store.append(writer, blocks)
    store.close()
    store = open_store(root)
    assert store.replayed.blocks == 2
    assert store.read(ids_of(blocks)).faults == []


def test_readers_of_threads_that_have_ended_are_closed(root: Path) -> None:
    """A node lives for months, and its worker threads do not: each left two descriptors behind."""
    import threading

    store = open_store(root, config=SMALL_SEGMENTS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        thread = threading.Thread(target=store.statistics)
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_segment_deleted_under_the_writer_is_never_acknowledged(root: Path) -> None:
    """Flushing a file without a name succeeds, and means nothing: also not to a second writer in the same flush."""
    with closing(LocalStore.open(root)) as store:
        first, second = store.begin("first"), store.begin("second")
        store.append(first, [sealed_block(1)])
        store.append(second, [sealed_block(2)])
        store.files.path(store.files.numbers()[0]).unlink()
        with pytest.raises(SegmentLost):
            store.commit(first)
        with pytest.raises(LeaseLost):
            store.commit(second)
        again = store.begin("again")
        store.append(again, [sealed_block(1), sealed_block(2)])
        store.commit(again)
        ids = [sealed_block(1).header.block_id, sealed_block(2).header.block_id]
        assert set(store.read(ids).sound) == set(ids)


def test_the_totals_are_the_sums_of_the_rows_after_every_kind_of_change(root: Path) -> None:
    """They are kept, not counted; a drift would show a wrong size for ever."""
    with closing(open_store(root, config=SMALL_SEGMENTS)) as store:
        put(store, sealed_blocks(*range(60)))
        put(store, sealed_blocks(*range(30, 90)))
        damage(store, ids_of(sealed_blocks(3))[0])
        store.quarantine(scrub(store))
        put(store, sealed_blocks(3))
        for _ in range(2):
            collect(store, ids_of(sealed_blocks(*range(0, 90, 3))))
        [*ids] = (packed[at : at + 32] for packed in store.ids() for at in range(0, len(packed), 32))
        found = [unseal(run)[0] for block in ids for run in store.read_sealed([block]).runs]
        assert store.ledger.totals() == (len(ids), sum(h.sealed_bytes for h in found), sum(h.body_bytes for h in found))
        assert len(ids) == 30
        live = sum(store.ledger.live_bytes().values())
    with closing(open_store(root, config=SMALL_SEGMENTS)) as again:
        assert again.ledger.totals() == store.ledger.totals()
        assert sum(again.ledger.live_bytes().values()) == live == store.ledger.totals()[1]
