"""Asking again for what is broken: nothing waits behind what nobody can mend."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from protocol.ids import BlockId, SiteId
from replicator.app import upkeep
from replicator.app.upkeep import Mending
from replicator.core.workers import Busy, Idle
from replicator.repair.ask import Healed
from replicator.store.ports import Cause, Fault
from replicator.testing import MemoryMesh, run_in_virtual_time

PEER = SimpleNamespace(peer=SiteId(b"p" * 32))


def fault(number: int) -> Fault:
    return Fault(BlockId(number.to_bytes(32, "big")), 0, Cause.CORRUPT, None)


class Sick:
    """A store with broken blocks, and a healer that can mend some of them."""

    def __init__(self, count: int, *, mendable: set[int]) -> None:
        self.faults = [fault(number) for number in range(count)]
        self.mendable = {fault(number).block_id for number in mendable}
        self.asked: list[int] = []

    def broken(self) -> list[Fault]:
        return list(self.faults)

    is_awaited = False

    async def finish_rest(self) -> None:
        """Its audit has all its lines."""

    async def heal(self, faults: Sequence[Fault]) -> Healed:
        self.asked += [int.from_bytes(one.block_id, "big") for one in faults]
        healed = [one for one in faults if one.block_id in self.mendable]
        self.faults = [one for one in self.faults if one not in healed]
        return Healed(healed, [one for one in faults if one not in healed])


async def nothing() -> None:
    """No snapshot is missing."""


def worker(sick: Any, peers: list[Any]) -> Mending:
    return Mending(sick, sick, lambda: peers, enter=nothing)


async def test_blocks_behind_a_hundred_thousand_that_nobody_has_are_mended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_MEND_BATCH", 10)
    sick = Sick(95, mendable={94})
    mending = worker(sick, [PEER])
    steps = [type(await mending.step()) for _ in range(10)]
    assert steps == [Busy] * 9 + [Idle]
    assert sorted(sick.asked) == list(range(95)) and len(sick.faults) == 94


async def test_a_reader_that_waits_for_blocks_goes_first() -> None:
    sick = Sick(3, mendable={0, 1, 2})
    mending = worker(sick, [PEER])
    sick.is_awaited = True
    assert isinstance(await mending.step(), Idle) and sick.asked == []
    sick.is_awaited = False
    await mending.step()
    assert sick.asked == [0, 1, 2]


def hours_pass(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_round_is_bounded_and_the_next_one_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_MEND_BATCH", 10)
    monkeypatch.setattr(upkeep, "_MEND_BATCHES_MAX", 2)

    async def scenario() -> None:
        sick = Sick(35, mendable=set())
        mending = worker(sick, [PEER])
        for _ in range(2):
            await mending.step()
        assert sick.asked == list(range(20))
        assert isinstance(await mending.step(), Idle) and len(sick.asked) == 20, "not before the pause is over"
        await trio.sleep(3600)
        for _ in range(2):
            await mending.step()
        assert sick.asked == list(range(35))

    hours_pass(scenario)


def test_a_peer_that_comes_back_is_asked_at_once_and_pauses_grow_while_nobody_helps() -> None:
    async def scenario() -> None:
        sick = Sick(3, mendable=set())
        peers: list[Any] = []
        mending = worker(sick, peers)
        await mending.step()
        assert sick.asked == [], "there is nobody to ask"
        peers.append(PEER)
        asked_at = []
        for _ in range(5000):
            before = len(sick.asked)
            outcome = await mending.step()
            if len(sick.asked) > before:
                asked_at.append(trio.current_time())
            assert isinstance(outcome, Idle)
            await trio.sleep(10)
        pauses = [late - early for early, late in pairwise(asked_at)]
        assert pauses == sorted(pauses) and pauses[0] < 60 < 3600 < pauses[-1]
        peers.append(SimpleNamespace(peer=SiteId(b"q" * 32)))
        sick.mendable = {one.block_id for one in sick.faults}
        await mending.step()
        assert sick.faults == []

    hours_pass(scenario)


def test_a_snapshot_whose_record_was_broken_when_the_catalogue_was_lost_comes_back_without_anybody_asking() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            home.sources["/srv/data"] = {"a": b"dear reader"}
            home.protect("/srv/data", to=["cabin"])
            snapshot = await home.snapshot("data")
            await home.wait_held(snapshot, by=cabin)
            home.rot(home.catalog.find_snapshot(snapshot).record_block)
            await home.crash()
            home.machine.lose_catalog()
            await home.start()
            assert home.catalog.snapshots() == [] and len(home.catalog.lost.unread()) == 1
            await mesh.pair(cabin, home)
            await trio.sleep(60)
            assert home.catalog.lost.unread() == []
            assert await home.restore(snapshot) == {"a": b"dear reader"}

    run_in_virtual_time(main, seed=3)
