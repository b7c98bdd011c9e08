"""Scrubbing by sums: quicker, and it finds the same."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.ids import BlockId
from protocol.wire.envelope import parse_header, unseal
from replicator.core.progress import Progress
from replicator.store import reading, verify
from replicator.store.local import LocalStore
from replicator.store.ports import Cause, Fault, Place
from replicator.store.sums import Stretch, SumFiles
from tests.support.blocks import ids_of, sealed_blocks
from tests.support.clocks import FakeMonotonic
from tests.support.nodes import open_site, write_tree
from tests.support.store import SMALL_SEGMENTS, collect, open_store, put

BLOCKS = sealed_blocks(*range(1, 481, 2), size=8_000)
"""In five segments: four that are full, and one that is written to."""
CONFIG = replace(SMALL_SEGMENTS, segment_bytes_max=400_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = open_store(tmp_path / "store", config=CONFIG)
    for at in range(0, len(BLOCKS), 16):
        put(store, BLOCKS[at : at + 16])
    yield store
    store.close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[BlockId]:
    """The ids of the blocks that were opened."""
    found: list[BlockId] = []

    def noticed(data: memoryview) -> object:
        found.append(parse_header(data).block_id)
        return unseal(data)

    monkeypatch.setattr(verify, "unseal", noticed)
    return found


def scrub(store: LocalStore, *, by_sums: bool = True) -> tuple[list[Fault], int]:
    faults: list[Fault] = []
    cursor, soft = None, 0
    while True:
        part = store.verify(after=cursor, bytes_max=1 << 20, by_sums=by_sums)
        faults += part.faults
        soft += part.soft_errors
        cursor = part.cursor
        if cursor is None:
            return sorted(faults), soft


def places(store: LocalStore) -> dict[BlockId, Place]:
    return {block: place for block, (place, _) in store.ledger.places(ids_of(BLOCKS)).items()}


def flip(store: LocalStore, place: Place, at: int, bit: int = 1) -> None:
    with store.files.path(place.segment).open("r+b") as file:
        file.seek(place.offset + at)
        byte = file.read(1)[0]
        file.seek(place.offset + at)
        file.write(bytes([byte ^ bit]))


def test_what_was_written_at_once_is_not_opened_again(store: LocalStore, opened: list[BlockId]) -> None:
    assert scrub(store) == ([], 0)
    # A run is cut where a segment is full, and what is written to has its sums in memory only.
    full = [block for block in opened if places(store)[block].segment != store.files.active]
    assert len(full) < 8 * 4


def test_what_is_proven_has_sums_from_then_on(store: LocalStore, opened: list[BlockId]) -> None:
    for path in (store.files._folder.parent / "sums").iterdir():
        path.unlink()
    assert scrub(store) == ([], 0) and len(opened) == len(BLOCKS)
    opened.clear()
    assert scrub(store) == ([], 0) and opened == []
    assert scrub(store, by_sums=False) == ([], 0) and len(opened) == len(BLOCKS)


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_anywhere_is_found(store: LocalStore, seed: int) -> None:
    scrub(store)
    chance = random.Random(seed)
    where = places(store)
    block = chance.choice(sorted(where))
    at = chance.choice([chance.randrange(56), chance.randrange(56, where[block].length)])
    flip(store, where[block], at, 1 << chance.randrange(8))
    faults, _ = scrub(store)
    assert [fault.block_id for fault in faults] == [block] and faults[0].cause is Cause.CORRUPT
    assert scrub(store) == (faults, 0), "and it is found again"
    assert scrub(store, by_sums=False) == (faults, 0)


def test_only_what_lies_in_the_stretch_is_opened_then(store: LocalStore, opened: list[BlockId]) -> None:
    scrub(store)
    opened.clear()
    flip(store, places(store)[BLOCKS[0].header.block_id], 100)
    scrub(store)
    assert 0 < len(set(opened)) < 50 < len(BLOCKS)


@pytest.mark.parametrize("harm", ["short", "flipped", "empty", "of another", "of the past"])
def test_sums_that_are_not_right_only_cost_time(store: LocalStore, harm: str) -> None:
    scrub(store)
    sums = sorted((store.files._folder.parent / "sums").iterdir())
    match harm:
        case "short":
            sums[0].write_bytes(sums[0].read_bytes()[:-1])
        case "flipped":
            data = bytearray(sums[0].read_bytes())
            data[30] ^= 1
            sums[0].write_bytes(data)
        case "empty":
            sums[0].write_bytes(b"")
        case "of another":
            sums[0].write_bytes(sums[1].read_bytes())
        case _:
            kept = store.files.sums.load(1)
            store.files.sums.save(1, [one._replace(digest=bytes(32)) for one in kept])
    assert (store.files.sums.load(1) != []) is (harm == "of the past")
    assert scrub(store) == ([], 0)
    victim = places(store)[BLOCKS[0].header.block_id]
    flip(store, victim, 300)
    assert [fault.block_id for fault in scrub(store)[0]] == [BLOCKS[0].header.block_id]


def test_a_row_that_points_to_something_else_is_found_though_the_bytes_are_right(store: LocalStore) -> None:
    scrub(store)
    where = places(store)
    one, other = sorted(where)[:2]
    header = next(block.header for block in BLOCKS if block.header.block_id == one)
    store.ledger.insert([(header, where[other]._replace(length=header.sealed_bytes))], replace=True)
    assert one in [fault.block_id for fault in scrub(store)[0]]


@pytest.mark.parametrize("mood", ["wrong", "refuses"])
def test_a_bad_moment_is_counted_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch, mood: str) -> None:
    scrub(store)
    real, left = os.preadv, [mood]

    def moody(handle: int, buffers: list[memoryview], offset: int) -> int:
        count = real(handle, buffers, offset)
        if left:
            left.pop()
            if mood == "refuses":
                raise OSError(5, "a bad moment")
            buffers[0][count // 2] ^= 1
        return count

    monkeypatch.setattr(reading.os, "preadv", moody)
    assert scrub(store) == ([], 1)
    assert scrub(store) == ([], 0)


def test_a_segment_that_is_gone_takes_its_sums_along(store: LocalStore) -> None:
    scrub(store)
    folder = store.files._folder.parent / "sums"
    before = {path.stem for path in folder.iterdir()}
    for _ in range(2):
        collect(store, [])
    left = {path.stem for path in folder.iterdir()}
    assert len(before) == 5 and len(left) <= 1 and left <= {path.stem for path in store.files._folder.iterdir()}
    assert scrub(store) == ([], 0)


def test_what_was_moved_away_is_not_looked_for_where_it_was(store: LocalStore) -> None:
    scrub(store)
    collect(store, ids_of(BLOCKS)[::7])
    assert scrub(store) == ([], 0)


def test_a_missing_end_is_missing(store: LocalStore) -> None:
    scrub(store)
    last = max(places(store).values(), key=lambda place: (place.segment == 1, place.offset))
    os.truncate(store.files.path(1), last.offset + 10)
    assert {fault.cause for fault in scrub(store)[0]} == {Cause.MISSING}


def test_a_disk_that_takes_no_sums_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = SumFiles(tmp_path / "nowhere")
    sums.save(1, [Stretch(64, 100, bytes(32))])
    sums.remove([1])
    assert sums.load(1) == []


async def test_every_fourth_pass_opens_everything(tmp_path: Path, opened: list[BlockId]) -> None:
    with open_site(tmp_path / "home", "home") as home:
        await home.take(home.protect(write_tree(tmp_path / "data", files=80, size=5_000)))
        scrubber, many = home.parts.scrubber, []

        async def one_pass(*, is_deep: bool = False) -> int:
            opened.clear()
            report = await scrubber.run(Progress(clock=FakeMonotonic()), from_start=True, is_deep=is_deep)
            assert not report.faults
            return len(opened)

        await one_pass()
        for _ in range(8):
            many.append(await one_pass())
        most = max(many)
        assert [count == most for count in many] == [False, False, True, False, False, False, True, False]
        assert await one_pass(is_deep=True) == most
