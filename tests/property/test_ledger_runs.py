"""Runs and their merging, on random rows, with stretches so short that every border is crossed."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import BlockId, split_ids
from replicator.core.errors import StoreFull
from replicator.store.ledger import merge, run
from replicator.store.ledger.errors import LedgerDamaged
from replicator.store.ledger.merge import HEAD_END, merged, part_bounds
from replicator.store.ledger.rows import (
    GONE_RECORD,
    heads_of,
    id_of,
    ids_of,
    is_gone,
    pack_record,
    sort_rows,
    unpack_record,
)
from replicator.store.ledger.run import Run, write_run
from replicator.store.ports import Place

IDS = st.builds(
    lambda head, tail: BlockId(head.to_bytes(8, "big") + bytes([tail]) * 24),
    st.one_of(st.integers(0, 6), st.sampled_from([2**63, 2**64 - 1, 2**64 - 2])),
    st.integers(0, 5),
)
RECORDS = st.one_of(
    st.just(GONE_RECORD),
    st.builds(
        lambda s, o, n, k, b: pack_record(Place(s, o, n), kind=k, body_bytes=b),
        st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**22 + 56), st.integers(0, 255),
        st.integers(0, 2**22),
    ),
)  # fmt: skip
TABLES = st.lists(st.dictionaries(IDS, RECORDS, max_size=60), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STRETCH_ROWS", 4)
    monkeypatch.setattr(merge, "STRETCH_ROWS", 4)


def written(folder: Path, table: dict[BlockId, bytes], *, name: int = 1) -> Run:
    path = folder / f"{name:08d}.run"
    heads = heads_of(b"".join(table))
    rests = np.frombuffer(b"".join(block[8:] + record for block, record in table.items()), np.uint8).reshape(-1, 40)
    write_run(path, [sort_rows(heads, rests)])
    return Run(path, level=0)


def rows_in(pieces: object) -> dict[BlockId, bytes]:
    """Rows as a dictionary; fails unless they come in the order of their ids."""
    found: dict[BlockId, bytes] = {}
    for heads, rests in pieces:  # type: ignore[attr-defined]
        for block, rest in zip(split_ids(ids_of(heads, rests)), rests, strict=True):
            assert not found or max(found) < block
            found[block] = rest[24:].tobytes()
    return found


@given(tables=TABLES, drop_gone=st.booleans(), cut=st.sampled_from([0, 3, 2**63, 2**64 - 1, HEAD_END]))
def test_a_merge_has_the_newest_row_of_each_id_in_order(
    tmp_path_factory: pytest.TempPathFactory, tables: list[dict[BlockId, bytes]], drop_gone: bool, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    runs = [written(folder, table, name=number) for number, table in enumerate(tables)]
    wanted: dict[BlockId, bytes] = {}
    for table in reversed(tables):
        wanted |= table
    wanted = {block: record for block, record in wanted.items() if not (drop_gone and is_gone(record))}
    below = rows_in(merged(runs, first=0, end=cut, drop_gone=drop_gone, go_on=lambda: None))
    above = rows_in(merged(runs, first=cut, end=HEAD_END, drop_gone=drop_gone, go_on=lambda: None))
    assert below | above == wanted
    assert all(int.from_bytes(block[:8], "big") < cut for block in below)


@given(table=st.dictionaries(IDS, RECORDS, min_size=1, max_size=60), rows_max=st.integers(1, 10))
def test_parts_cover_every_head_once(
    tmp_path_factory: pytest.TempPathFactory, table: dict[BlockId, bytes], rows_max: int
) -> None:
    runs = [written(tmp_path_factory.mktemp("runs"), table)]
    bounds = part_bounds(runs, first=0, end=HEAD_END, rows_max=rows_max)
    assert bounds[0][0] == 0 and bounds[-1][1] == HEAD_END
    assert all(end == first for (_, end), (first, _) in pairwise(bounds))


@given(table=st.dictionaries(IDS, RECORDS, min_size=1, max_size=40), data=st.data())
def test_every_flipped_bit_of_a_run_is_found(
    tmp_path_factory: pytest.TempPathFactory, table: dict[BlockId, bytes], data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("runs"), table).path
    content = bytearray(path.read_bytes())
    at = data.draw(st.one_of(st.integers(0, 63), st.integers(4096, len(content) - 1)))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(LedgerDamaged):
        damaged = Run(path, level=0)
        for number in range(damaged.stretches_count):
            damaged.stretch(number)


@given(place=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**22 + 56)))
def test_a_record_comes_back_as_it_was(place: tuple[int, int, int]) -> None:
    entry = unpack_record(pack_record(Place(*place), kind=7, body_bytes=2**22))
    assert entry == (Place(*place), 7, 2**22)
    assert unpack_record(GONE_RECORD) is None and is_gone(GONE_RECORD)


def test_an_id_is_put_together_from_head_and_tail() -> None:
    block = BlockId(bytes(range(32)))
    assert id_of(int(heads_of(block)[0]), block[8:]) == block


def test_a_run_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(run.os, "pwrite", full)
    with pytest.raises(StoreFull):
        written(tmp_path, {BlockId(bytes(32)): GONE_RECORD})
    assert list(tmp_path.iterdir()) == []
