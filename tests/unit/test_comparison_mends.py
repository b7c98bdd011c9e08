"""A comparison does not only count what is lacking: each side asks for it at once, beside the talk."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from bench.derived import DerivedSet, random_heads
from protocol.ids import BlockId, split_ids
from protocol.machines.reconcile import Reconciliation
from protocol.merkle.cells import U64
from protocol.messages.registry import Message
from protocol.messages.repair import RepairBlocks
from replicator.catalog.model import Snapshot
from replicator.core.errors import StoreFull
from replicator.index.tokens import TokenKey
from replicator.index.view import FrozenSet
from replicator.net.link import Stream
from replicator.store.ports import Fault
from replicator.sync import audit
from tests.support.nodes import PATIENCE_S, Site, a_pair, open_site, running, trust, wait_until, write_tree
from tests.support.proxy import a_proxy

KIB = 1024


class Questions:
    """What a site is asked to give for repair, and a place to wait for the first time."""

    def __init__(self, site: Site) -> None:
        self.blocks: list[BlockId] = []
        self.first = trio.Event()
        self._answer = site.mesh.handlers[RepairBlocks]
        site.mesh.handlers[RepairBlocks] = self._asked

    async def _asked(self, stream: Stream, request: Message) -> None:
        assert isinstance(request, RepairBlocks)
        self.blocks += split_ids(request.ids)
        self.first.set()
        await self._answer(stream, request)


class Holding:
    """An `Offload` that does some kind of work of a site's comparisons only after something has happened."""

    def __init__(self, site: Site, event: trio.Event, *, is_held: Callable[[Any], bool]) -> None:
        self._real, self._event, self._is_held = site.parts.offload, event, is_held
        site.parts.auditor._offload = self  # type: ignore[assignment]

    async def run(self, work: Any, *given: Any) -> Any:
        if self._is_held(work):
            with trio.fail_after(PATIENCE_S):
                await self._event.wait()
        return await self._real.run(work, *given)


def looks_at_summaries(work: Any) -> bool:
    return getattr(work, "__func__", None) is Reconciliation.receive


def sums(work: Any) -> bool:
    return work is FrozenSet


def lose_all_trace(site: Site, blocks: Sequence[BlockId]) -> None:
    """By the only verbs that take rows away: sentenced, and swept."""
    site.store.ledger.revive(blocks)
    site.store.ledger.condemn(blocks, epoch=0, now_ns=0)
    site.store.ledger.sweep(blocks, epoch_below=1)
    assert not set(blocks) & site.block_ids() and not site.store.broken()


async def copied(home: Site, cabin: Site, folder: Path) -> tuple[Snapshot, list[BlockId]]:
    """A snapshot that both hold, and its blocks."""
    snapshot = await home.take(home.protect(write_tree(folder / "data", files=40, size=KIB)))
    await home.send(snapshot, cabin)
    await home.parts.auditor.compare(await home.link_to(cabin), snapshot.record, fresh=True)
    shelf = home.parts.auditor._shelf.get(snapshot.record.root)
    assert shelf is not None
    return snapshot, split_ids(bytes(shelf))


@pytest.mark.parametrize("who_lacks", ["the one who asks", "the one who is asked"])
async def test_what_is_lacking_is_asked_for_within_the_first_round_trip(tmp_path: Path, who_lacks: str) -> None:
    """Until then the one who lacks has not even summed, and the other says nothing to what it hears of summaries."""
    async with a_pair(tmp_path) as (home, cabin):
        snapshot, blocks = await copied(home, cabin, tmp_path)
        whole = cabin.block_ids()
        lacking, giving = (home, cabin) if who_lacks == "the one who asks" else (cabin, home)
        lost = blocks[:7]
        lose_all_trace(lacking, lost)
        questions = Questions(giving)
        Holding(giving, questions.first, is_held=looks_at_summaries)
        Holding(lacking, questions.first, is_held=sums)
        done = await home.parts.auditor.compare(await home.link_to(cabin), snapshot.record, fresh=True)
        if lacking is home:
            assert (done.we_lack, done.mended, done.peer_lacks) == (7, 7, [])
        else:
            assert (done.we_lack, done.mended, done.peer_lacks) == (0, 0, sorted(lost))
        await wait_until(lambda: whole <= lacking.block_ids())
        assert sorted(questions.blocks) == sorted(lost), "each once, and nothing that was there"


async def test_both_sides_mend_at_once_and_the_next_comparison_finds_nothing(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        snapshot, blocks = await copied(home, cabin, tmp_path)
        whole = cabin.block_ids()
        lose_all_trace(home, blocks[:5])
        lose_all_trace(cabin, blocks[5:9])
        link = await home.link_to(cabin)
        done = await home.parts.auditor.compare(link, snapshot.record, fresh=True)
        assert (done.we_lack, done.mended, done.peer_lacks) == (5, 5, sorted(blocks[5:9]))
        await wait_until(lambda: whole <= cabin.block_ids())
        again = await home.parts.auditor.compare(link, snapshot.record, fresh=False)
        assert (again.we_lack, again.mended, again.peer_lacks, again.shared) == (0, 0, [], len(blocks))


async def test_what_nobody_has_is_not_asked_for_as_often_as_a_peer_likes(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        snapshot, blocks = await copied(home, cabin, tmp_path)
        for site in (home, cabin):
            lose_all_trace(site, blocks[:2])
        link, asked = await home.link_to(cabin), Questions(home)
        for _ in range(3):
            done = await home.parts.auditor.compare(link, snapshot.record, fresh=True)
            assert (done.we_lack, done.mended) == (2, 0)
            await wait_until(lambda: cabin.parts.auditor._mend_from > 0)
        assert len(asked.blocks) == 2, "cabin, once"
        assert cabin.catalog.repair_counts()["asked", "nobody has it"] == 2


async def test_the_bytes_that_a_comparison_says_it_took_are_those_that_passed_the_wire(tmp_path: Path) -> None:
    """Counted by what lies between them. Only the sets are made up: of 100,000 blocks 1,000 differ."""
    async with AsyncExitStack() as stack:
        home, cabin = (stack.enter_context(open_site(tmp_path / name, name)) for name in ("home", "cabin"))
        await stack.enter_async_context(running(home, cabin))
        proxy = await stack.enter_async_context(a_proxy(lambda: cabin.mesh.address))
        trust(home, cabin, address=proxy.address)
        link = await home.link_to(cabin)
        snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=1, size=KIB)))
        await home.send(snapshot, cabin)
        rng = np.random.default_rng(1)
        heads = random_heads(rng, 100_000)
        rows = rng.choice(len(heads), 1000, replace=False)
        for site, without in ((home, rows[:500]), (cabin, rows[500:])):
            site.parts.auditor._view = made_up(np.delete(heads, without), snapshot)  # type: ignore[method-assign]
        await wait_until(lambda: link.round_trip_s)
        before = proxy.bytes_passed
        done = await home.parts.auditor.compare(link, snapshot.record, fresh=True)
        # What ends the stream may still be on its way; a record of TLS takes 22 bytes, a ping and its answer 84.
        passed = proxy.bytes_passed - before
        assert len(done.peer_lacks) == 500 and done.round_trips == 3
        print(f"{done.summary_bytes:,} bytes said, {passed:,} passed")
        assert done.summary_bytes < passed < 1.05 * done.summary_bytes + 500


def made_up(heads: U64, snapshot: Snapshot) -> Any:
    async def view(_: Any, nonce: bytes, **__: Any) -> audit._View:
        key = TokenKey(snapshot_id=snapshot.snapshot_id, nonce=nonce)
        return audit._View(DerivedSet(heads, key), len(heads), 0, frozenset())

    return view


async def test_a_full_disk_leaves_the_comparison_its_answer(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        snapshot, blocks = await copied(home, cabin, tmp_path)
        lose_all_trace(home, blocks[:3])

        async def full(_: Sequence[Fault]) -> int:
            raise StoreFull("no room")

        home.parts.auditor._mend = full
        done = await home.parts.auditor.compare(await home.link_to(cabin), snapshot.record, fresh=True)
        assert (done.we_lack, done.mended, done.shared) == (3, 0, len(blocks) - 3)
