"""A mesh of memory sites, to be used in a test's `async with`."""

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import trio

from replicator.ingest.config import IngestConfig
from replicator.net.pairing import PairingCode
from replicator.testing.machine import MemoryMachine
from replicator.testing.network import MemoryNetwork
from replicator.testing.site import MemorySite


class MemoryMesh:
    """Sites that reach each other through memory.

    async with MemoryMesh() as mesh:
        home, cabin = await mesh.add("home"), await mesh.add("cabin")
        await mesh.pair(home, cabin)

    Works on Trio's own clock; with `trio.testing.MockClock(autojump_threshold=0)` hours pass in moments.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        ingest: IngestConfig | None = None,
        pause_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.chance = random.Random(seed)
        self.network = MemoryNetwork(random.Random(self.chance.random()))
        self.sites: dict[str, MemorySite] = {}
        self._ingest = ingest or IngestConfig()
        self._pause_s = pause_s
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> "MemoryMesh":
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery is not None and self._manager is not None
        self._nursery.cancel_scope.cancel()
        try:
            return await self._manager.__aexit__(kind, error, trace)
        finally:
            for site in self.sites.values():
                site.machine.databases.close()

    async def add(self, name: str, **settings: Any) -> MemorySite:
        """A new site, up and alone. `settings` are lines of its `config.toml`."""
        assert self._nursery is not None, "use the mesh in an `async with`"
        chance = random.Random(self.chance.random())
        machine = MemoryMachine(
            name,
            network=self.network,
            chance=chance,
            monotonic=trio.lowlevel.current_clock().current_time,
            pause_s=self._pause_s,
            settings=settings,
            ingest=self._ingest,
        )
        site = self.sites[name] = MemorySite(machine, self._nursery)
        await site.start()
        return site

    async def pair(self, inviter: MemorySite, joiner: MemorySite) -> None:
        """Make two sites peers by a pairing code, and wait for their link."""
        code = inviter.view.invite(minutes=10)["code"]
        assert PairingCode.parse(code)
        await joiner.view.join(code)
        for one, other in ((inviter, joiner), (joiner, inviter)):
            await one.node.mesh.wait_link(other.machine.identity.site_id, seconds=30)
