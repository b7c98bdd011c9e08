"""Blocks that rot at one site and come back from another, and peers that lie about them."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from protocol.ids import BlockId, split_ids
from protocol.messages.blocks import BlocksSent
from protocol.messages.registry import Message
from protocol.messages.repair import RepairBlocks
from protocol.wire.envelope import parse_header, walk
from protocol.wire.frames import Lane
from replicator.catalog.model import Snapshot
from replicator.core.errors import BlockMissing
from replicator.core.progress import Progress
from replicator.net.link import Stream
from replicator.repair import ask, peers
from replicator.store.ports import Fault, SealedBlock
from tests.support.blocks import from_body
from tests.support.nodes import Site, a_pair, open_site, running, trust, write_tree
from tests.support.store import damage

Answer = Callable[[Stream, RepairBlocks], Awaitable[None]]


async def shared_snapshot(tmp_path: Path, home: Site, *others: Site, files: int = 12) -> Snapshot:
    snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=files, size=20_000)))
    for other in others:
        await home.send(snapshot, other)
    return snapshot


def ruin(site: Site, count: int) -> list[BlockId]:
    """Flip a bit in so many of the site's blocks."""
    ruined = sorted(site.block_ids())[:count]
    for block in ruined:
        damage(site.store, block)
    return ruined


async def found_faults(site: Site, ids: list[BlockId]) -> list[Fault]:
    return site.store.read(ids).faults


def lying(site: Site, make: Callable[[Site, RepairBlocks], list[bytes]]) -> list[int]:
    """Let a site answer repairs with what `make` makes up. Returns a list that grows by one with each question."""
    asked: list[int] = []

    async def answer(stream: Stream, request: Message) -> None:
        assert isinstance(request, RepairBlocks)
        asked.append(len(request.ids) // 32)
        for run in make(site, request):
            await stream.send_blocks([run])
        await stream.send(BlocksSent(missing=b""), end=True)

    site.mesh.handlers[RepairBlocks] = answer
    return asked


def the_true_ones(site: Site, request: RepairBlocks) -> list[bytes]:
    return [bytes(run) for run in site.store.read_sealed(split_ids(request.ids)).runs]


def another_block(site: Site, request: RepairBlocks) -> list[bytes]:
    return [bytes(from_body(b"something else").sealed)]


def a_flipped_bit(site: Site, request: RepairBlocks) -> list[bytes]:
    return [run[:-1] + bytes([run[-1] ^ 1]) for run in the_true_ones(site, request)]


def cut_short(site: Site, request: RepairBlocks) -> list[bytes]:
    return [run[:-5] for run in the_true_ones(site, request)]


def the_same_for_ever(site: Site, request: RepairBlocks) -> list[bytes]:
    return the_true_ones(site, request) * 200


def garbage(site: Site, request: RepairBlocks) -> list[bytes]:
    return [b"\0" * 1000]


async def test_a_read_that_meets_a_rotten_block_waits_a_moment_and_is_answered(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        await shared_snapshot(tmp_path, home, cabin)
        ruined = ruin(home, 5)
        truth = cabin.store.read(ruined).sound
        answer = await home.parts.reader.read(ruined)
        assert {block: bytes(body) for block, body in answer.items()} == {b: bytes(body) for b, body in truth.items()}
        assert home.store.read(ruined).faults == [] and home.store.broken() == []
        lines = {(line.role, line.outcome) for line in home.catalog.repairs(limit=100)}
        assert lines == {("asked", "healed")}
        assert {(line.role, line.peer) for line in cabin.catalog.repairs(limit=100)} == {("served", "home")}


async def test_a_scrub_finds_every_rotten_block_and_a_second_one_finds_none(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        await shared_snapshot(tmp_path, home, cabin)
        ruined = ruin(home, 7)
        scrubber = home.parts.scrubber
        first = await scrubber.run(Progress(clock=trio.current_time), from_start=True)
        assert {fault.block_id for fault in first.faults} == set(ruined)
        assert (first.healed, first.unhealed) == (7, [])
        second = await scrubber.run(Progress(clock=trio.current_time), from_start=True)
        assert second.faults == []


async def test_what_nobody_has_is_named_and_stays_in_quarantine(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        await shared_snapshot(tmp_path, home)
        ruined = ruin(home, 1)
        with pytest.raises(BlockMissing, match=ruined[0].hex()):
            await home.parts.reader.read(ruined)
        assert [fault.block_id for fault in home.store.broken()] == ruined
        assert cabin.block_ids() == set()


@pytest.mark.parametrize("make", [another_block, a_flipped_bit, cut_short, the_same_for_ever, garbage])
async def test_a_peer_that_lies_is_asked_no_more_after_three_lies_and_the_next_one_heals(
    tmp_path: Path, make: Callable[[Site, RepairBlocks], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "fraction", lambda _: 1.0)  # No turning the order around.
    async with a_pair(tmp_path) as (home, cabin):
        await shared_snapshot(tmp_path, home, cabin)
        ruined = ruin(home, 4)
        asked = lying(cabin, make)
        healer = home.parts.healer
        assert healer is not None
        for _ in range(5):
            answer = await healer.heal(await found_faults(home, ruined))
            assert answer.healed == [], "a lie was believed"
        assert len(asked) == 3
        assert set(home.store.read(ruined).sound) == set()
        outcomes = {line.outcome for line in home.catalog.repairs(limit=100)}
        assert outcomes == {"a lie", "nobody has it"}
        with open_site(tmp_path / "tower", "tower") as tower:
            async with running(tower):
                trust(home, tower)
                # (The tower has them from another site.)
                lease = tower.store.begin("test")
                sealed = cabin.store.read_sealed(ruined)

                for run in sealed.runs:
                    for at, header in walk(run):
                        piece = memoryview(run)[at : at + header.sealed_bytes]
                        tower.store.append(lease, [SealedBlock(parse_header(piece), piece)])
                tower.store.commit(lease)
                tower.store.end(lease)
                await home.link_to(tower)
                began = trio.current_time()
                assert len((await healer.heal(await found_faults(home, ruined))).healed) == 4
                assert trio.current_time() - began < 30
        assert len(asked) == 3


async def test_a_peer_that_never_answers_costs_its_patience_once_and_is_asked_last_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "PATIENCE_S", 1.0)
    monkeypatch.setattr(peers, "fraction", lambda _: 1.0)
    with open_site(tmp_path / "tower", "tower") as tower:
        async with a_pair(tmp_path) as (home, cabin), running(tower):
            trust(home, tower)
            await home.link_to(tower)
            await shared_snapshot(tmp_path, home, cabin, tower)

            async def never(stream: Stream, request: Message) -> None:
                await trio.sleep_forever()

            cabin.mesh.handlers[RepairBlocks] = never
            times = []
            for round_number in range(3):
                ruined = sorted(home.block_ids())[round_number * 2 : round_number * 2 + 2]
                for block in ruined:
                    damage(home.store, block)
                began = trio.current_time()
                await home.parts.reader.read(ruined)
                times.append(trio.current_time() - began)
            assert sum(1 for took in times if took > 0.9) <= 1
            assert "no answer" not in {line.outcome for line in home.catalog.repairs(limit=4)}


async def test_a_rotten_block_at_the_sender_is_healed_in_the_middle_of_a_sync(tmp_path: Path) -> None:
    with open_site(tmp_path / "tower", "tower") as tower:
        async with a_pair(tmp_path) as (home, cabin), running(tower):
            trust(home, tower)
            snapshot = await shared_snapshot(tmp_path, home, cabin)
            ruin(home, 6)
            await home.send(snapshot, tower)
            assert tower.holds(snapshot)
            assert tower.store.read(sorted(tower.block_ids())).faults == []


async def test_a_question_for_thousands_of_blocks_is_served_without_holding_them_all(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        await shared_snapshot(tmp_path, home, cabin, files=150)
        most = 0
        original = cabin.store.read_sealed

        def watched(ids: list[BlockId]) -> object:
            nonlocal most
            most = max(most, len(ids))
            return original(ids)

        cabin.store.read_sealed = watched  # type: ignore[method-assign,assignment]
        link = await home.link_to(cabin)
        ids = sorted(home.block_ids())
        got = 0

        async with link.open(RepairBlocks(ids=b"".join(ids), cause="corrupt"), lane=Lane.REPAIR) as stream:
            while (item := await stream.receive()) is not None:
                got += len(list(walk(item))) if isinstance(item, bytes) else 0
        assert got == len(ids) > 150
        assert most <= 64
