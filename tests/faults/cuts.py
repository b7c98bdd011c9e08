"""Real nodes on hosts of their own, and routes between them that die: one way, both ways, or around a whole host.

Three network namespaces, a cable between each two. In a round somebody takes snapshots at two of the sites, routes
die without a word in the middle of that (a blackhole: nobody is told, nothing is refused), now and then a node is
killed on the far side of the cut, and then the routes are there again. From then on nobody helps: every snapshot must
be at both other sites with a receipt, the one from the middle of the cut restores there byte for byte, and no socket
is left over from all the lines that were given up.
"""

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults.points import scratch
from tests.faults.work import tree_digest
from tests.support.namespaces import Host, hosts
from tests.support.nodes import Node, become_peers, eventually, run_cli, started

NAMES = ("home", "cabin", "tower")
HEALED_S_MAX = 120.0
"""A dead peer is noticed within 30 s and called again within as many; the rest is patience for a loaded machine."""
_SOCKETS_MORE_MAX = 4


@dataclass(slots=True)
class Cuts:
    """How it went."""

    rounds: int = 0
    one_way: int = 0
    islands: int = 0
    kills: int = 0
    slowest_s: float = 0.0
    """From the moment in which the routes were back until everything was everywhere."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Site:
    node: Node
    host: Host
    data: Path

    def start(self) -> None:
        self.node.start(prefix=self.host.prefix)


def cut_routes(rounds: int, *, seed: int) -> Cuts:
    done, folder = Cuts(), scratch()
    nodes: list[Node] = []
    try:
        with hosts(len(NAMES)) as machines, started():
            sites = []
            for host, name in zip(machines, NAMES, strict=True):
                node = Node(folder / name, name, listen=f"{host.address}:7421", http="")
                nodes.append(node)
                sites.append(_Site(node, host, folder / f"data-{name}"))
                sites[-1].start()
            try:
                _play(done, sites, rounds, random.Random(f"cuts {seed}"))
            finally:
                for node in nodes:
                    if node.process is not None:
                        node.kill()
    except AssertionError as error:
        done.problem = f"round {done.rounds}: {error}"
    finally:
        for node in nodes:
            node.client.close()
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _play(done: Cuts, sites: list[_Site], rounds: int, chance: random.Random) -> None:
    for number, site in enumerate(sites):
        for other in sites[number + 1 :]:
            become_peers(site.node, other.node)
    for site in sites[:2]:
        site.data.mkdir()
        (site.data / "body").write_bytes(chance.randbytes(100_000))
        site.node.protect(site.data, to=[one.node.name for one in sites if one is not site])
    _wait_for_all(sites)
    before = [open_sockets(site.node) for site in sites]
    for _ in range(rounds):
        _one_round(done, sites, chance)
        for site, usual in zip(sites, before, strict=True):
            eventually(lambda site=site, usual=usual: open_sockets(site.node) <= usual + _SOCKETS_MORE_MAX, seconds=60)  # type: ignore[misc]
        done.rounds += 1


def _one_round(done: Cuts, sites: list[_Site], chance: random.Random) -> None:
    sort = chance.choice(("one way", "both ways", "island"))
    one, other = chance.sample(sites, 2)
    ways = {
        "one way": [(one, other)],
        "both ways": [(one, other), (other, one)],
        "island": [way for each in sites if each is not one for way in ((one, each), (each, one))],
    }[sort]
    done.one_way += sort == "one way"
    done.islands += sort == "island"
    taken: list[tuple[_Site, str, str]] = []
    with _cut(ways):
        for site in sites[:2]:
            taken.append(_take(site, chance))
        # From a hiccup to longer than a dead peer goes unnoticed.
        time.sleep(chance.choice((0.5, 3.0, 8.0, 35.0)))
        if chance.random() < 0.3:
            done.kills += 1
            other.node.kill()
            other.start()
        taken.append(_take(sites[0], chance))
    began = time.monotonic()
    _wait_for_all(sites)
    done.slowest_s = max(done.slowest_s, round(time.monotonic() - began, 1))
    source, snapshot, digest = taken[-1]
    for site in sites:
        if site is not source:
            _restore(site, snapshot, digest)


@contextmanager
def _cut(ways: list[tuple[_Site, _Site]]) -> Iterator[None]:
    for near, far in ways:
        near.host.blackhole(far.host)
    try:
        yield
    finally:
        for near, far in ways:
            near.host.see_again(far.host)


def _take(site: _Site, chance: random.Random) -> tuple[_Site, str, str]:
    (site.data / f"file-{chance.randrange(20)}").write_bytes(chance.randbytes(chance.randrange(1, 200_000)))
    taken: str = site.node.job("snapshot", names=[site.data.name])["snapshots"][0]["snapshot"]
    return site, taken, tree_digest(site.data)


def _wait_for_all(sites: list[_Site]) -> None:
    """Until each snapshot is at both other sites, and its home has their receipts."""

    def lacking() -> list[str]:
        found = []
        for site in sites[:2]:
            others = sorted(one.node.name for one in sites if one is not site)
            for page in site.node.client.get("/v1/snapshots", volume=site.data.name):
                if page["held_by"] != others:
                    found.append(f"{site.node.name}: {page['snapshot'][:8]} is held by {page['held_by']}")
        return found

    deadline = time.monotonic() + HEALED_S_MAX
    while found := lacking():
        assert time.monotonic() < deadline, f"{HEALED_S_MAX:.0f} s after the routes were back: {found[:4]}"
        time.sleep(0.2)


def _restore(site: _Site, snapshot: str, digest: str) -> None:
    target = site.data.parent / f"back-{site.node.name}"
    said = run_cli("restore", snapshot, str(target), state=site.node.root)
    assert said.code == 0, f"{site.node.name} does not restore {snapshot[:8]}: {said.text[-300:]}"
    assert tree_digest(target) == digest, f"{site.node.name} restores something else for {snapshot[:8]}"
    shutil.rmtree(target)


def open_sockets(node: Node) -> int:
    assert node.process is not None
    folder, found = f"/proc/{node.process.pid}/fd", 0
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            found += os.readlink(f"{folder}/{name}").startswith("socket:")
    return found
