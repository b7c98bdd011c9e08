"""A snapshot whose blocks come from several sites at once."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from replicator.catalog.model import Snapshot
from replicator.sync.offer import Offered
from replicator.sync.sources import Batch, Sources
from tests.e2e.test_mesh_difference import protect_image
from tests.support.nodes import Site, open_site, running, trust, wait_until
from tests.support.proxy import Proxy, Weather, a_proxy

MIB = 1024 * 1024
RATE = 4_000_000


@asynccontextmanager
async def mesh(folder: Path, size: int) -> AsyncIterator[tuple[dict[str, Site], dict[str, Proxy], Snapshot]]:
    """Home and two others hold a snapshot; `new` has nothing, and a slow line to each of the three."""
    names = ("home", "one", "two", "new")
    async with AsyncExitStack() as stack:
        sites = {name: stack.enter_context(open_site(folder / name, name)) for name in names}
        await stack.enter_async_context(running(*sites.values()))
        path = folder / "disk"
        path.write_bytes(random.Random(1).randbytes(size))
        home, new = sites["home"], sites["new"]
        snapshot = await home.take(protect_image(home, path, block=65536))
        for name in ("one", "two"):
            trust(home, sites[name])
            await home.link_to(sites[name])
            await home.send(snapshot, sites[name])
        proxies = {}
        for name in ("home", "one", "two"):
            weather = Weather(rate_bytes=RATE)
            proxies[name] = await stack.enter_async_context(a_proxy(lambda n=name: sites[n].mesh.address, weather))  # type: ignore[misc]
            trust(new, sites[name], address=proxies[name].address)
            await new.link_to(sites[name])
            await sites[name].link_to(new)
        for site in sites.values():
            await site.living._standing.step()
        assert len(new.living._standing.holders_of(snapshot.record.volume_id)) == 3
        yield sites, proxies, snapshot


def brought(proxies: dict[str, Proxy], before: dict[str, int]) -> dict[str, int]:
    return {name: proxy.bytes_passed - before[name] for name, proxy in proxies.items()}


@pytest.mark.slow
async def test_three_sources_are_faster_than_the_best_one_and_no_block_comes_twice(tmp_path: Path) -> None:
    size = 24 * MIB
    async with mesh(tmp_path, size) as (sites, proxies, snapshot):
        before = {name: proxy.bytes_passed for name, proxy in proxies.items()}
        began = trio.current_time()
        done = await sites["home"].send(snapshot, sites["new"])
        took = trio.current_time() - began
        shares = brought(proxies, before)
        assert min(shares.values()) > size / 6, "each brought a good part"
        assert took < 0.7 * size / RATE, "one alone takes longer than the whole of that"
        assert (done.report.blocks_received, done.report.blocks_received_twice) == (size // 65536, 0)
        assert sites["new"].holds(snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "silent", "slow"])
async def test_a_source_that_dies_or_dawdles_is_replaced(tmp_path: Path, how: str) -> None:
    size = 24 * MIB
    async with mesh(tmp_path, size) as (sites, proxies, snapshot):
        before = {name: proxy.bytes_passed for name, proxy in proxies.items()}
        bad = proxies["one"]
        if how == "slow":
            bad.weather = replace(bad.weather, rate_bytes=40_000)

        async def spoil() -> None:
            await wait_until(lambda: bad.bytes_passed - before["one"] > MIB)
            if how == "cut":
                bad.weather = replace(bad.weather, accepts=False)
                bad.cut()
            else:
                bad.weather = replace(bad.weather, lets_out=False, lets_back=False)

        done: list[Offered] = []
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            if how != "slow":
                nursery.start_soon(spoil)
            done.append(await sites["home"].send(snapshot, sites["new"]))
        took = trio.current_time() - began
        assert sites["new"].holds(snapshot)
        assert done[0].report.blocks_received_twice == 0
        assert took < 0.5 * size / RATE + 6, "about what two take, and a moment to notice"


@pytest.mark.slow
async def test_what_other_sources_lack_comes_from_the_sender_and_first(tmp_path: Path) -> None:
    async with mesh(tmp_path, 6 * MIB) as (sites, _, snapshot):
        home, new = sites["home"], sites["new"]
        path = tmp_path / "disk"
        with path.open("r+b") as file:
            file.write(random.Random(9).randbytes(3 * MIB))
        second = await home.take(home.catalog.volume(snapshot.record.volume_id))
        done = await home.send(second, new)
        assert (done.report.blocks_received, done.report.blocks_received_twice) == (96, 0)
        assert new.holds(second)


async def test_the_sender_takes_the_rarest_and_the_others_the_commonest() -> None:
    class FakeLink:
        is_paced = False

        def __init__(self, name: bytes) -> None:
            self.peer = name

    links = [FakeLink(bytes([n]) * 32) for n in range(3)]
    sources = Sources(links[0], links[1:])  # type: ignore[arg-type]
    sender, one, two = sources.all
    common, rare = Batch([b"c"]), Batch([b"r"], frozenset({one.site}))  # type: ignore[list-item]
    for batch in (common, rare, Batch([])):
        sources.put(batch)
    assert sources.queued_count == 2
    assert sources.next_for(sender) is rare
    sources.put(rare)
    assert sources.next_for(two) is common
    assert sources.next_for(one) is None, "it has said that it lacks that one"
    one.lacked, one.blocks = 300, 100
    assert one.lacks_most() and not sender.lacks_most()


async def test_a_slow_source_that_was_taken_over_from_still_brings_what_nobody_else_has() -> None:
    class FakeLink:
        is_paced = False

        def __init__(self, name: bytes) -> None:
            self.peer = name

    sources = Sources(FakeLink(b"s"), [FakeLink(b"o")])  # type: ignore[arg-type, list-item]
    sender, other = sources.all
    sender.is_passed = True
    common, rare = Batch([b"c"]), Batch([b"r"], frozenset({other.site}))  # type: ignore[list-item]
    sources.put(common)
    assert sources.next_for(sender) is None, "the other is faster"
    sources.put(rare)
    assert sources.next_for(sender) is rare
    assert sources.next_for(other) is common


async def test_without_a_sender_what_all_lack_is_given_up_and_nobody_is_dismissed_for_lacking_much() -> None:
    class FakeLink:
        is_paced = False

        def __init__(self, name: bytes) -> None:
            self.peer = name

    sources = Sources(None, [FakeLink(b"1"), FakeLink(b"2")])  # type: ignore[list-item]
    one, two = sources.all
    lost = Batch([b"l"], frozenset({one.site, two.site}))  # type: ignore[list-item, arg-type]
    half = Batch([b"h"], frozenset({one.site}))  # type: ignore[list-item, arg-type]
    sources.put(lost)
    sources.put(half)
    one.lacked = 10_000
    sources.retire_if_useless(one)
    assert sources.hopeless() == [lost] and not one.is_over
    two.is_over = True
    assert sources.hopeless() == [half], "whoever might have had it is gone"
