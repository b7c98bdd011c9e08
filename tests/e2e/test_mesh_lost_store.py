"""A site that lost its blocks reads on: they come from the peers, several questions at once, and stay."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol.ids import BlockId, split_ids
from protocol.messages.blocks import BlocksSent
from protocol.messages.registry import Message
from protocol.messages.repair import RepairBlocks
from replicator.core.errors import StoreFull
from replicator.core.progress import Progress
from replicator.jobs.care import CareJobs
from replicator.jobs.restoration import RestoreJobs
from replicator.jobs.runner import JobContext
from replicator.net.link import Stream
from replicator.repair import ask, peers
from replicator.repair.ask import Healer
from replicator.store.ports import Bodies, Cause, Fault, Lease
from tests.support.nodes import Site, a_pair, open_site, running, trust, write_tree
from tests.support.store import damage

Answer = Callable[[Stream, RepairBlocks], Awaitable[None]]


async def hold_both(tmp_path: Path, home: Site, *others: Site, files: int = 24) -> list[BlockId]:
    """One snapshot at all of them. Returns the blocks of `home`."""
    snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=files, size=20_000)))
    for other in others:
        await home.send(snapshot, other)
    return sorted(home.block_ids())


def lose_everything(site: Site) -> None:
    """As a store finds itself when it is opened after all of its segments have gone."""
    lying, _ = site.store.wanted(sorted(site.block_ids()))
    site.store.quarantine([Fault(block, kind, Cause.MISSING, place) for block, place, kind in lying])
    for path in site.store._layout.segments.iterdir():
        path.unlink()


@asynccontextmanager
async def a_loss(tmp_path: Path) -> AsyncIterator[tuple[Site, Site, list[BlockId]]]:
    """Two sites, and the blocks of one snapshot that both held: the first has just lost them."""
    async with a_pair(tmp_path) as (home, cabin):
        ids = await hold_both(tmp_path, home, cabin)
        lose_everything(home)
        yield home, cabin, ids


async def read_and_be_cut_off(site: Site, ids: list[BlockId]) -> None:
    """A long read that ends before what it has mended is flushed."""
    with trio.CancelScope() as scope:
        async with healer_of(site).reading():
            await site.parts.reader.read(ids)
            scope.cancel()
            await trio.sleep_forever()


def healer_of(site: Site) -> Healer:
    assert site.parts.healer is not None
    return site.parts.healer


def watched(site: Site, before: Answer) -> list[list[BlockId]]:
    """Let `before` happen before a site answers a repair. Returns what was asked for, a list a question."""
    asked: list[list[BlockId]] = []
    original = site.mesh.handlers[RepairBlocks]

    async def answer(stream: Stream, request: Message) -> None:
        assert isinstance(request, RepairBlocks)
        asked.append(split_ids(request.ids))
        await before(stream, request)
        await original(stream, request)

    site.mesh.handlers[RepairBlocks] = answer
    return asked


async def at_once(stream: Stream, request: RepairBlocks) -> None:
    """Nothing before the answer."""


def outcomes(site: Site) -> set[str]:
    return {line.outcome for line in site.catalog.repairs(limit=1000) if line.role == "asked"}


def context(**args: Any) -> JobContext:
    return JobContext(os.urandom(8).hex(), "job", args, Progress(clock=trio.current_time))


async def test_an_image_whose_every_block_is_lost_comes_back_and_the_store_is_whole_again(tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    chance = os.urandom(64 * 1024)
    content = b"".join(bytes([n % 251]) + chance[1:] for n in range(300)) + bytes(1 << 20) + chance
    source.write_bytes(content + content[: 1 << 20])
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(source, kind="image"))
        await home.send(snapshot, cabin)
        everything = sorted(home.block_ids())
        lose_everything(home)
        target = tmp_path / "restored.img"
        done = await RestoreJobs(home.parts).run(context(snapshot=snapshot.snapshot_id.hex(), target=str(target)))
        assert target.read_bytes() == source.read_bytes() and done["problems_count"] == 0
        await CareJobs(home.parts).repair(context())  # What no reader needs: the record.
        await home.parts.reader.read(everything)
        assert home.store.broken() == [] and home.store.read(everything).faults == []
        assert outcomes(home) == {"healed"}


async def test_a_block_that_two_want_at_once_is_asked_for_once(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        ids = await hold_both(tmp_path, home, cabin)
        truth = {block: bytes(body) for block, body in home.store.read(ids).sound.items()}
        lose_everything(home)
        both_want = trio.Event()

        async def wait(stream: Stream, request: RepairBlocks) -> None:
            await both_want.wait()

        asked = watched(cabin, wait)
        answers: list[dict[BlockId, bytes]] = []

        async def read() -> None:
            found = await home.parts.reader.read(ids)
            answers.append({block: bytes(body) for block, body in found.items()})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
            await trio.sleep(0.3)
            both_want.set()
        assert answers == [truth, truth]
        assert sorted(block for one in asked for block in one) == ids


async def test_several_questions_are_on_their_way_at_once_and_no_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "_ASK_BLOCKS_MAX", 2)
    async with a_loss(tmp_path) as (home, cabin, ids):
        under_way = most = 0
        enough = trio.Event()

        async def count(stream: Stream, request: RepairBlocks) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if under_way == ask._QUESTIONS_MAX:
                enough.set()
            with trio.move_on_after(10):
                await enough.wait()
            await trio.sleep(0.05)  # For one more than there may be, if there were.
            under_way -= 1

        watched(cabin, count)
        faults = home.store.read(ids).faults
        assert len((await healer_of(home).heal(faults)).healed) == len(ids)
        assert most == ask._QUESTIONS_MAX


async def test_what_came_for_a_reader_is_handed_on_without_reading_it_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_loss(tmp_path) as (home, _, ids):
        read: list[int] = []
        original = home.store.read

        def counted(wanted: Sequence[BlockId]) -> Bodies:
            read.append(len(wanted))
            return original(wanted)

        monkeypatch.setattr(home.store, "read", counted)
        assert set(await home.parts.reader.read(ids)) == set(ids)
        assert read == [len(ids)]


async def test_where_bytes_had_gone_bad_their_new_copy_is_read_back_before_it_is_called_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        ids = (await hold_both(tmp_path, home, cabin))[:4]
        for block in ids:
            damage(home.store, block)
        faults = home.store.read(ids).faults
        assert {fault.cause for fault in faults} == {Cause.CORRUPT}
        original = home.store.commit

        def commit(lease: Lease, *, keep_cached: bool = True) -> None:
            original(lease, keep_cached=keep_cached)
            damage(home.store, ids[0])  # This disk does it again.

        monkeypatch.setattr(home.store, "commit", commit)
        answer = await healer_of(home).heal(faults)
        assert [fault.block_id for fault in answer.unhealed] == [ids[0]]
        assert outcomes(home) == {"healed", "not readable again"}
        assert [fault.block_id for fault in home.store.broken()] == [ids[0]]


async def test_what_a_long_read_mends_shares_one_flush_and_is_durable_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_loss(tmp_path) as (home, _, ids):
        commits = 0
        original = home.store.commit

        def commit(lease: Lease, *, keep_cached: bool = True) -> None:
            nonlocal commits
            commits += 1
            original(lease, keep_cached=keep_cached)

        monkeypatch.setattr(home.store, "commit", commit)
        async with healer_of(home).reading():
            for at in range(0, len(ids), 3):
                await home.parts.reader.read(ids[at : at + 3])
            assert commits == 0 and outcomes(home) == {"asking"}
        assert commits == 1 and outcomes(home) == {"healed"}
        assert home.store.broken() == []


async def test_a_long_read_flushes_when_much_is_unflushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "SETTLE_BYTES", 100_000)
    async with a_loss(tmp_path) as (home, _, ids), healer_of(home).reading():
        for at in range(0, len(ids), 3):
            await home.parts.reader.read(ids[at : at + 3])
        assert "healed" in outcomes(home)


async def test_a_reader_that_is_cut_off_leaves_nothing_that_is_lost_or_without_its_line(tmp_path: Path) -> None:
    async with a_loss(tmp_path) as (home, _, ids):
        await read_and_be_cut_off(home, ids)
        assert outcomes(home) == {"asking"}
        await healer_of(home).finish_rest()
        assert outcomes(home) == {"healed"} and home.store.broken() == []


async def test_a_node_that_dies_before_the_flush_finds_what_came_and_ends_its_lines(tmp_path: Path) -> None:
    async with a_loss(tmp_path) as (home, _, ids):
        await read_and_be_cut_off(home, ids)
    with open_site(tmp_path / "home", "home") as again:
        await healer_of(again).finish_audit()
        assert outcomes(again) == {"healed before a restart"}
        assert again.store.read(ids).faults == [] and again.store.broken() == []


@pytest.mark.parametrize("what", ["store", "catalogue"])
async def test_a_full_disk_costs_no_reader_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*args: object, **more: object) -> int:
        raise StoreFull("There is no room.", hint="Make some.")

    async with a_pair(tmp_path) as (home, cabin):
        ids = await hold_both(tmp_path, home, cabin)
        truth = {block: bytes(body) for block, body in home.store.read(ids).sound.items()}
        lose_everything(home)
        faults = home.store.read(ids).faults
        if what == "store":
            monkeypatch.setattr(home.store, "append", full)
        else:
            monkeypatch.setattr(home.catalog, "begin_repairs", full)
        found = await home.parts.reader.read(ids)
        assert {block: bytes(body) for block, body in found.items()} == truth
        assert outcomes(home) <= {"could not be kept"} and len(home.store.broken()) == len(ids)
        with pytest.raises(StoreFull):
            await healer_of(home).heal(faults)


async def test_what_a_peer_brought_before_it_fell_silent_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "PATIENCE_S", 1.0)
    async with a_pair(tmp_path) as (home, cabin):
        ids = await hold_both(tmp_path, home, cabin)
        truth = {block: bytes(body) for block, body in home.store.read(ids).sound.items()}
        lose_everything(home)
        asked: list[list[BlockId]] = []

        async def slow(stream: Stream, request: Message) -> None:
            """A third of what is asked for, and no more."""
            assert isinstance(request, RepairBlocks)
            wanted = split_ids(request.ids)
            asked.append(wanted)
            some = wanted[: max(8, len(wanted) // 3)]
            for run in cabin.store.read_sealed(some).runs:
                await stream.send_blocks([run])
            if len(some) < len(wanted):
                await trio.sleep_forever()
            await stream.send(BlocksSent(missing=b""), end=True)

        cabin.mesh.handlers[RepairBlocks] = slow
        found = await home.parts.reader.read(ids)
        assert {block: bytes(body) for block, body in found.items()} == truth
        assert len(asked) > 2 and len(asked[0]) == len(ids)
        brought: set[BlockId] = set()
        for one in asked:
            assert brought.isdisjoint(one), "what had come was asked for again"
            brought.update(one[: max(8, len(one) // 3)])


async def test_a_lost_store_is_rebuilt_from_all_peers_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "_ASK_BLOCKS_MAX", 2)
    monkeypatch.setattr(peers, "fraction", lambda _: 1.0)
    with open_site(tmp_path / "tower", "tower") as tower:
        async with a_pair(tmp_path) as (home, cabin), running(tower):
            trust(home, tower)
            await home.link_to(tower)
            ids = await hold_both(tmp_path, home, cabin, tower)
            lose_everything(home)
            asked = [watched(site, at_once) for site in (cabin, tower)]
            done = await CareJobs(home.parts).repair(context())
            assert done["healed"] == done["damaged"] == len(ids)
            counts = [sum(map(len, one)) for one in asked]
            assert sum(counts) == len(ids) and min(counts) > 0


async def test_a_rebuild_asks_in_the_order_in_which_the_blocks_lay(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        ids = await hold_both(tmp_path, home, cabin)
        places = {block: place for block, place, _ in home.store.wanted(ids)[0]}
        lose_everything(home)
        asked = watched(cabin, at_once)
        await CareJobs(home.parts).repair(context())
        in_order = [(places[block].segment, places[block].offset) for one in asked for block in one]
        assert in_order == sorted(in_order) and len(in_order) == len(ids)


async def test_small_blocks_do_not_make_the_next_question_one_for_gigabytes(tmp_path: Path) -> None:
    async with a_loss(tmp_path) as (home, _, ids):
        healer = healer_of(home)
        healer._block_bytes = 100_000
        await home.parts.reader.read(ids[:3])
        assert healer._block_bytes >= 75_000
