"""Machines of memory break as real ones do: what was committed survives, and nothing else has to."""

import contextlib
import random
from pathlib import Path

import pytest
import trio

from protocol.ids import SiteId
from replicator.core.errors import JobError, StoreFull, Unreachable, Untrusted
from replicator.net.identity import Identity
from replicator.net.ports import Credentials
from replicator.testing import MemoryMesh, run_in_virtual_time
from replicator.testing.databases import MemoryDatabase, MemoryDatabases
from replicator.testing.network import MemoryLine, MemoryNetwork
from replicator.testing.power import Power, PowerCut
from tests.support.blocks import sealed_block

TABLE = ("CREATE TABLE facts (name TEXT)",)


def names(database: MemoryDatabase) -> list[str]:
    return [row[0] for row in database.read().execute("SELECT name FROM facts")]


@pytest.mark.parametrize(("step", "kept"), [(0, ["first"]), (1, ["first", "second"])])
def test_a_cut_before_a_commit_loses_it_and_one_after_it_does_not(step: int, kept: list[str]) -> None:
    disk, power = MemoryDatabases(), Power()
    database = MemoryDatabase(Path("x"), TABLE, kept=disk, power=power)
    with database.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('first')")
    power.cut_at = power.steps + step
    with pytest.raises(PowerCut), database.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('second')")
    with pytest.raises(PowerCut), database.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('from beyond')")
    disk.roll_back()
    assert names(MemoryDatabase(Path("x"), TABLE, kept=disk, power=Power())) == kept
    disk.close()


def test_what_still_runs_of_an_ended_life_finds_no_file_that_was_lost_since() -> None:
    disk = MemoryDatabases()
    database = MemoryDatabase(Path("x"), TABLE, kept=disk, power=Power())
    disk.lose("x")
    with pytest.raises(PowerCut), database.write():
        pass
    with pytest.raises(PowerCut):
        names(database)
    again = MemoryDatabase(Path("x"), TABLE, kept=disk, power=Power())
    with pytest.raises(PowerCut):
        names(database)
    assert names(again) == []
    disk.close()


def test_a_full_disk_takes_no_row_and_loses_none() -> None:
    disk = MemoryDatabases()
    database = MemoryDatabase(Path("x"), TABLE, kept=disk, power=Power())
    disk.is_full = True
    with pytest.raises(StoreFull), database.write() as connection:
        connection.execute("INSERT INTO facts VALUES ('first')")
    assert names(database) == []
    disk.close()


def test_who_was_told_nothing_may_find_something_after_a_crash() -> None:
    async def main() -> tuple[int, int, int]:
        async with MemoryMesh(seed=4) as mesh:
            home = await mesh.add("home")
            store = home.machine.store
            assert store is not None
            lease = store.begin("test")
            store.append(lease, [sealed_block(number, size=500) for number in range(10)])
            store.commit(lease)
            store.append(lease, [sealed_block(number, size=500) for number in range(10, 40)])
            before = len(home.blocks())
            await home.crash()
            with pytest.raises(PowerCut):
                store.commit(lease)
            await home.start()
            return before, len(home.blocks()), 40

    before, after, appended = run_in_virtual_time(main, seed=1)
    assert before == 10 and 10 < after < appended


def test_a_job_that_was_cut_is_carried_on_at_the_next_start() -> None:
    async def main() -> dict[str, bytes] | bytes:
        async with MemoryMesh() as mesh:
            home = await mesh.add("home")
            home.sources["/data"] = {"a": b"1" * 5000}
            home.protect("/data")
            home.machine.power.cut_at = home.machine.power.steps + 7
            with trio.move_on_after(5):
                with contextlib.suppress(PowerCut):
                    await home.snapshot("data")
            await home.down.wait()
            await home.start()
            with trio.fail_after(5):
                while not home.catalog.snapshots():  # noqa: ASYNC110  (a job of an earlier life has no event here)
                    await trio.sleep(0.1)
            return await home.restore("data")

    assert run_in_virtual_time(main, seed=2) == {"a": b"1" * 5000}


def test_a_catalogue_that_is_lost_is_found_again_under_a_new_incarnation() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home = await mesh.add("home")
            home.sources["/data"] = {"a": b"1"}
            home.protect("/data")
            snapshot = await home.snapshot("data")
            before = home.machine.incarnation
            await home.crash()
            home.machine.lose_catalog()
            await home.start()
            assert await home.restore(snapshot) == {"a": b"1"} and home.machine.incarnation != before

    run_in_virtual_time(main, seed=3)


def test_a_job_that_fails_says_so_to_the_test() -> None:
    async def main() -> None:
        async with MemoryMesh() as mesh:
            home = await mesh.add("home")
            with pytest.raises(JobError, match="Nothing is protected"):
                await home.job("snapshot")
            await home.stop()
            with pytest.raises(Unreachable, match="home is down"):
                home.protect("/data")

    run_in_virtual_time(main, seed=4)


# -- the network ------------------------------------------------------------------------------


async def a_line(network: MemoryNetwork, *, pin: SiteId | None = None) -> tuple[MemoryLine, MemoryLine]:
    """A line from a to b, with keys shown."""
    a, b = Identity.generate(), Identity.generate()
    listener = await network.at("b").listen("b:1")
    answered: list[MemoryLine] = []
    async with trio.open_nursery() as nursery:

        async def accept(line: MemoryLine) -> None:
            await line.handshake()
            answered.append(line)
            nursery.cancel_scope.cancel()

        credentials = Credentials(b, (pin or a.site_id,), is_server=True)
        nursery.start_soon(listener.serve, accept, lambda: credentials)  # type: ignore[arg-type]
        line = await network.at("a").dial("b:1", Credentials(a, (b.site_id,), is_server=False))
        assert isinstance(line, MemoryLine)
        assert await line.handshake() == b.site_id
        await trio.sleep_forever()
    listener.close()
    return line, answered[0]


def test_bytes_arrive_in_order_and_late_as_the_path_says() -> None:
    async def main() -> float:
        network = MemoryNetwork(random.Random(1))
        network.fragment = True
        here, there = await a_line(network)
        network.path("a", "b").delay_s = 2.0
        began, data = trio.current_time(), random.Random(2).randbytes(100_000)
        await here.send([data[:40_000], data[40_000:]])
        got = b""
        while len(got) < len(data):
            got += await there.receive()
        assert got == data
        return trio.current_time() - began

    assert run_in_virtual_time(main, seed=1) == pytest.approx(2.0)


def test_a_one_way_cut_stops_one_direction_and_loses_nothing() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(1))
        here, there = await a_line(network)
        network.path("a", "b").is_blocked = True
        await here.send([b"later"])
        await there.send([b"at once"])
        assert await here.receive() == b"at once"
        with trio.move_on_after(100) as patience:
            await there.receive()
        assert patience.cancelled_caught
        network.path("a", "b").is_blocked = False
        network.changed()
        assert await there.receive() == b"later"

    run_in_virtual_time(main, seed=1)


def test_a_reset_is_felt_at_both_ends_and_a_power_cut_at_none() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(1))
        here, there = await a_line(network)
        network.break_lines("a", "b")
        for end in (here, there):
            with pytest.raises(Unreachable):
                await end.receive()
        here, there = await a_line(network)
        network.abandon("a")
        with trio.move_on_after(1000) as silence:
            await there.receive()
        assert silence.cancelled_caught
        network.reject_strays("a")
        with pytest.raises(Unreachable):
            await there.send([b"are you there?"])

    run_in_virtual_time(main, seed=1)


def test_a_key_that_is_not_pinned_is_turned_away() -> None:
    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:
            await a_line(MemoryNetwork(random.Random(1)), pin=SiteId(bytes(32)))
        assert caught.group_contains(Untrusted)

    run_in_virtual_time(main, seed=1)


def test_a_sender_waits_while_nobody_reads() -> None:
    async def main() -> None:
        network = MemoryNetwork(random.Random(1))
        here, there = await a_line(network)
        sent = 0
        with trio.move_on_after(10):
            while True:
                await here.send([bytes(64 * 1024)])
                sent += 1
        assert sent == 4, "a socket's buffers, and no more"
        await there.receive()
        with trio.fail_after(10):
            await here.send([b"there is room again"])

    run_in_virtual_time(main, seed=1)


def test_a_site_that_changes_its_key_goes_on_under_the_new_one_and_its_peer_knows_it() -> None:
    async def main() -> tuple[bytes, bytes, set[bytes]]:
        async with MemoryMesh(seed=9) as mesh:
            home, cabin = await mesh.add("home"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            before = home.machine.identity.site_id
            home.sources["/data"] = {"a": b"1" * 5000}
            volume = home.protect("/data", to=["cabin"])
            await home.wait_held(await home.snapshot(volume), by=cabin)
            home.view.mesh.rotate_key(3600.0)
            await trio.sleep(4000)
            await home.wait_held(await home.snapshot(volume), by=cabin)
            return before, home.machine.identity.site_id, {one.site_id for one in cabin.catalog.peers.all()}

    before, after, known = run_in_virtual_time(main, seed=3)
    assert after != before
    assert known == {after}
