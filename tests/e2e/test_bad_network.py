"""Real sites with a bad network between them: far, slow, lossy, cut, half-open."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from replicator.catalog.model import Snapshot
from replicator.core.errors import PeerError
from replicator.sync.offer import Offered, offer
from tests.e2e.test_mesh_difference import protect_image
from tests.support.nodes import Site, open_site, running, trust, wait_until
from tests.support.proxy import Proxy, Weather, a_proxy

MIB = 1024 * 1024
LINK = 12_500_000
"""Bytes a second: 100 Mbit/s."""


@asynccontextmanager
async def far_apart(folder: Path, weather: Weather, *, seed: int = 0) -> AsyncIterator[tuple[Site, Site, Proxy]]:
    """Home dials cabin through the weather."""
    with open_site(folder / "home", "home") as home, open_site(folder / "cabin", "cabin") as cabin:
        async with running(home, cabin), a_proxy(lambda: cabin.mesh.address, weather, seed=seed) as proxy:
            trust(home, cabin, address=proxy.address)
            await home.link_to(cabin)
            await cabin.link_to(home)
            yield home, cabin, proxy


def image(path: Path, size: int) -> Path:
    path.write_bytes(random.Random(size).randbytes(size))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("round_trip_s", [0.05, 0.2])
async def test_a_far_and_fat_link_is_filled_to_nine_tenths(tmp_path: Path, round_trip_s: float) -> None:
    weather = Weather(delay_s=round_trip_s / 2, rate_bytes=LINK)
    path = image(tmp_path / "disk", 48 * MIB)
    async with far_apart(tmp_path, weather) as (home, cabin, proxy):
        snapshot = await home.take(protect_image(home, path, block=65536))
        before = await raw_rate(weather)
        done, rate = await send_and_watch(home, cabin, snapshot, proxy)
        assert rate >= 0.9 * min(LINK, before, await raw_rate(weather))
        assert cabin.holds(snapshot)
        assert done.report.blocks_received == 48 * 16


async def raw_rate(weather: Weather) -> float:
    """What the same line carries without us, now: a machine that is busy with other things carries less."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery, a_proxy(lambda: address, weather) as proxy, listener:
        near = await trio.open_tcp_stream("127.0.0.1", int(proxy.address.rpartition(":")[2]))
        far = await listener.accept()

        async def pour() -> None:
            while True:
                await near.send_all(bytes(MIB))

        nursery.start_soon(pour)
        got, began, first = 0, 0.0, 0
        while got < 12 * MIB:
            got += len(await far.receive_some(MIB))
            if not began and got > 4 * MIB:
                began, first = trio.current_time(), got
        rate = (got - first) / (trio.current_time() - began)
        nursery.cancel_scope.cancel()
    return rate


async def send_and_watch(home: Site, cabin: Site, snapshot: Snapshot, proxy: Proxy) -> tuple[Offered, float]:
    """Send, and measure bytes a second from when bulk has begun until it is nearly over."""
    rates: list[float] = []
    whole = snapshot.record.size_bytes

    async def watch() -> None:
        before = proxy.bytes_passed
        await wait_until(lambda: proxy.bytes_passed - before > 0.2 * whole)
        began, first = trio.current_time(), proxy.bytes_passed
        await wait_until(lambda: proxy.bytes_passed - before > 0.85 * whole)
        rates.append((proxy.bytes_passed - first) / (trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        done = await home.send(snapshot, cabin)
    return done, rates[0]


async def send_through_cuts(home: Site, cabin: Site, snapshot: Snapshot, *, most: int = 60) -> Offered:
    """Offer until it is signed for, as the sync job does."""
    for _ in range(most):
        try:
            link = await home.mesh.wait_link(cabin.parts.site_id, seconds=20)
            return await offer(link, snapshot, every_s=0, job="test", on_progress=lambda _: None)
        except PeerError as error:
            assert error.retryable, error
            await trio.sleep(0.05)
    raise AssertionError("never signed for")


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_sync_that_is_cut_again_and_again_sends_at_most_eight_mebibytes_twice_a_cut(
    tmp_path: Path, seed: int
) -> None:
    size = 40 * MIB
    path = image(tmp_path / "disk", size)
    async with far_apart(tmp_path, Weather(), seed=seed) as (home, cabin, proxy):
        snapshot = await home.take(protect_image(home, path, block=65536))
        rnd, cuts = random.Random(seed), 0

        async def cut() -> None:
            nonlocal cuts
            while True:
                target = proxy.bytes_passed + rnd.randrange(1, 14 * MIB)
                await wait_until(lambda target=target: proxy.bytes_passed >= target, seconds=60)  # type: ignore[misc]
                proxy.cut()
                cuts += 1

        async with trio.open_nursery() as nursery:
            before = proxy.bytes_passed
            nursery.start_soon(cut)
            done = await send_through_cuts(home, cabin, snapshot)
            nursery.cancel_scope.cancel()
        again = proxy.bytes_passed - before - size
        assert cuts >= 2
        assert again <= cuts * 2 * MIB, (again / MIB, cuts)  # Eight are promised.
        assert done.report.blocks_received_twice == 0
        assert cabin.holds(snapshot)


async def test_loss_costs_time_and_nothing_else(tmp_path: Path) -> None:
    path = image(tmp_path / "disk", 8 * MIB)
    weather = Weather(delay_s=0.005, stall_every_bytes=MIB, stall_s=0.05)
    async with far_apart(tmp_path, weather) as (home, cabin, _):
        snapshot = await home.take(protect_image(home, path, block=65536))
        report = (await home.send(snapshot, cabin)).report
        assert (report.blocks_received, report.blocks_received_twice) == (128, 0)


@pytest.mark.slow
async def test_a_peer_that_cannot_be_heard_or_cannot_hear_is_noticed_within_thirty_seconds(tmp_path: Path) -> None:
    """One that does not answer, one behind a dead route, and one behind a tunnel that is narrower than it says.

    There greetings and heartbeats pass, and a block and all after it do not.
    """
    async with AsyncExitStack() as stack:
        home, *others = (stack.enter_context(open_site(tmp_path / name, name)) for name in ("home", "a", "b", "c"))
        await stack.enter_async_context(running(home, *others))
        proxies: list[Proxy] = []
        for other in others:
            proxy = await stack.enter_async_context(a_proxy(lambda other=other: other.mesh.address, Weather()))  # type: ignore[misc]
            trust(home, other, address=proxy.address)
            proxies.append(proxy)
        links = [await home.link_to(other) for other in others]
        links += [await others[0].link_to(home), await others[2].link_to(home)]
        snapshot = await home.take(protect_image(home, image(tmp_path / "disk", MIB), block=65536))
        sockets = in_use()[1]
        proxies[0].weather = Weather(lets_back=False)
        proxies[1].weather = Weather(lets_out=False, lets_back=False)
        proxies[2].weather = Weather(carries_bytes=1400)
        began = trio.current_time()
        with trio.fail_after(30):
            with pytest.raises(PeerError):
                await home.send(snapshot, others[2])
            for link in links:
                await link.closed.wait()
        assert trio.current_time() - began > 5, "noticed by silence, not by a reset"
        for proxy in proxies:
            proxy.weather = Weather()
            proxy.cut()
        for other in others:
            await home.link_to(other)
        done = await send_through_cuts(home, others[2], snapshot)
        assert done.report.blocks_received == 16
        await wait_until(lambda: in_use()[1] <= sockets)


@pytest.mark.slow
async def test_a_peer_on_a_modem_costs_the_others_nothing_to_speak_of(tmp_path: Path) -> None:
    with (
        open_site(tmp_path / "home", "home") as home,
        open_site(tmp_path / "cabin", "cabin") as cabin,
        open_site(tmp_path / "tower", "tower") as tower,
    ):
        async with (
            running(home, cabin, tower),
            a_proxy(lambda: cabin.mesh.address, Weather(rate_bytes=LINK)) as good,
            a_proxy(lambda: tower.mesh.address, Weather(delay_s=0.1, rate_bytes=8000)) as bad,
        ):
            trust(home, cabin, address=good.address)
            trust(home, tower, address=bad.address)
            await home.link_to(tower)
            snapshot = await home.take(protect_image(home, image(tmp_path / "disk", 32 * MIB), block=65536))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(home.send, snapshot, tower)
                await wait_until(lambda: bad.bytes_passed > 20_000)
                before = await raw_rate(good.weather)
                _, rate = await send_and_watch(home, cabin, snapshot, good)
                assert rate >= 0.9 * min(LINK, before, await raw_rate(good.weather))
                nursery.cancel_scope.cancel()
            assert bad.bytes_passed < 2 * MIB


async def test_a_half_open_connection_is_given_up_and_the_next_one_tried(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin), a_proxy(lambda: cabin.mesh.address, Weather(accepts=False)) as proxy:
            trust(home, cabin, address=proxy.address)
            await wait_until(lambda: proxy.connections_count > 0)
            proxy.weather = Weather()
            await home.link_to(cabin)
            assert proxy.connections_count >= 2


def in_use() -> tuple[int, int]:
    """Tasks of this loop, and sockets of this process. (Other files a store opens as it grows.)"""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return trio.lowlevel.current_statistics().tasks_living, found


async def test_a_storm_of_resets_costs_its_time_and_leaves_no_task_and_no_socket_behind(tmp_path: Path) -> None:
    size = 24 * MIB
    async with far_apart(tmp_path, Weather()) as (home, cabin, proxy):
        first = await home.take(protect_image(home, image(tmp_path / "small", MIB), block=65536))
        await home.send(first, cabin)
        await wait_until(lambda: not cabin.store.leases.holders())
        before = in_use()
        snapshot = await home.take(protect_image(home, image(tmp_path / "disk", size), block=65536))

        async def storm() -> None:
            for _ in range(40):
                await trio.sleep(0.02)
                proxy.cut()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm)
            await send_through_cuts(home, cabin, snapshot, most=500)
        assert cabin.holds(snapshot)
        await home.link_to(cabin)
        await cabin.link_to(home)

        def is_as_before() -> bool:
            tasks, sockets = in_use()
            return tasks <= before[0] and sockets <= before[1]

        await wait_until(is_as_before)
        assert cabin.store.leases.holders() == home.store.leases.holders() == []
