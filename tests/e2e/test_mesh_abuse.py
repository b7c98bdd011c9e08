"""Strangers who only waste our time: thousands of them, slow ones, and a process that runs out of files."""

import contextlib
import multiprocessing
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest
import trio
import trio.testing

from replicator.net.address import split_address
from replicator.net.greeting import GREETING_MAX, PER_ADDRESS_MAX, Greeting
from tests.support.nodes import Node, become_peers, eventually, started, write_tree


def stranger(address: str, number: int) -> socket.socket:
    """A connection from an address of its own."""
    one = socket.socket()
    one.bind((f"127.{1 + number // 60000 % 200}.{number // 250 % 240}.{1 + number % 250}", 0))
    one.settimeout(5)
    one.connect(split_address(address))
    return one


def press(address: str, size: "Synchronized[int]") -> None:
    """In a process of its own: always more of them, and each sends a byte a second of what could be a TLS hello."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    crowd: list[socket.socket] = []
    for number in count():
        if len(crowd) < 2000:
            with contextlib.suppress(OSError):
                crowd.append(stranger(address, number))
            size.value = len(crowd)
        if len(crowd) >= 2000 or number % 500 == 499:
            for one in crowd:
                with contextlib.suppress(OSError):
                    one.send(b"\x16")
            time.sleep(1.0 if len(crowd) >= 2000 else 0.01)


@contextmanager
def a_crowd(address: str) -> Iterator[Callable[[], int]]:
    spawn = multiprocessing.get_context("spawn")
    size = spawn.Value("i", 0)
    process = spawn.Process(target=press, args=(address, size), daemon=True)
    process.start()
    try:
        yield lambda: size.value
    finally:
        process.kill()
        process.join()


def is_cut(one: socket.socket) -> bool:
    one.settimeout(0.01)
    try:
        return one.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.slow
def test_two_thousand_idle_strangers_and_few_files_do_not_keep_a_peer_out_nor_stop_the_listener(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data = write_tree(tmp_path / "data", files=3, size=1000)
    with started(cabin):
        try:
            home.start(prefix=("prlimit", "--nofile=256:256"))
            become_peers(home, cabin)
            home.cli("protect", str(data), "--to", "cabin")
            with a_crowd(home.address) as size:
                eventually(lambda: size() >= 1000)
                # The peer comes back in the middle of it.
                cabin.stop()
                cabin.start()
                began = time.monotonic()
                eventually(lambda: cabin.status()["peers"][0]["linked"])
                took_s = time.monotonic() - began
                home.job("snapshot", names=["data"])
                eventually(lambda: cabin.client.get("/v1/snapshots"))
                assert took_s < 6, "its own pause before it dials is up to 1.5 s"
                eventually(lambda: size() >= 2000)
            assert home.process is not None and home.process.poll() is None
            with stranger(home.address, 1):
                pass  # The listener still takes what comes.
        finally:
            if home.process is not None:
                home.kill()
            home.client.close()


@pytest.mark.slow
def test_a_hello_of_one_byte_a_second_is_cut_after_ten_seconds_and_so_is_silence(tmp_path: Path) -> None:
    home = Node(tmp_path / "home", "home")
    with started(home):
        slow, silent, half = (stranger(home.address, number) for number in range(3))
        half.shutdown(socket.SHUT_WR)
        began, cut = time.monotonic(), {}
        while len(cut) < 3 and time.monotonic() - began < 15:
            for name, one in (("slow", slow), ("silent", silent), ("half", half)):
                if name not in cut and is_cut(one):
                    cut[name] = time.monotonic() - began
            if "slow" not in cut:
                try:
                    slow.send(b"\x16")
                except OSError:
                    cut.setdefault("slow", time.monotonic() - began)
            time.sleep(0.5)
        assert cut.keys() == {"slow", "silent", "half"}
        assert 8 <= cut["silent"] <= 12 and cut["slow"] <= 12 and cut["half"] <= 12
        for one in (slow, silent, half):
            one.close()


def test_of_one_address_only_some_greet_at_once_and_the_longest_is_cut_first() -> None:
    async def scenario() -> None:
        greeting, cut = Greeting(), []

        async def one(number: int, address: str) -> None:
            with greeting.greet(address) as scope:
                await trio.sleep_forever()
            if trio.current_time() < 5:
                cut.append(number)
            assert scope.cancelled_caught

        async with trio.open_nursery() as nursery:
            for number in range(PER_ADDRESS_MAX + 3):
                nursery.start_soon(one, number, "192.0.2.1")
                await trio.sleep(0.001)
            nursery.start_soon(one, 99, "192.0.2.2")
            await trio.sleep(1)
            assert cut == [0, 1, 2] and len(greeting) == PER_ADDRESS_MAX + 1
            await trio.sleep(10)
            assert len(greeting) == 0, "ten seconds in all"

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_of_all_addresses_together_no_more_than_a_part_of_the_files() -> None:
    async def scenario() -> None:
        greeting = Greeting()
        assert PER_ADDRESS_MAX <= greeting.most <= GREETING_MAX

        async def one(address: str) -> None:
            with greeting.greet(address):
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for number in range(greeting.most + 50):
                nursery.start_soon(one, f"192.0.{number}.1")
                await trio.lowlevel.checkpoint()
            await trio.sleep(1)
            assert len(greeting) == greeting.most and greeting.cut_count == 50

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
