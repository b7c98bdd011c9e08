"""A machine of memory: what a site still has after it was switched off.

Blocks, databases, the site's key, and the number of its incarnation. A node is started on it and
goes; the machine stays. Losing a part of it is a fault like any other, and is done by hand.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from replicator.app.base import Base, take_up, why_off
from replicator.app.config import parse_config, store_config
from replicator.app.recovery import renew
from replicator.catalog.catalog import Catalog
from replicator.core.ballast import NoBallast
from replicator.core.brake import ClockBrake
from replicator.core.ports import Offload
from replicator.ingest.config import IngestConfig
from replicator.jobs.history import JobHistory
from replicator.net.identity import Identity
from replicator.store.collect import Collector
from replicator.testing.blocks import MachineDisk, MachineStore
from replicator.testing.chance import InlineOffload, MemoryClock, SeededEntropy
from replicator.testing.databases import MemoryDatabase, MemoryDatabases
from replicator.testing.keys import MemoryKeys
from replicator.testing.network import MemoryNetwork
from replicator.testing.power import Power
from replicator.testing.sets import MemorySets
from replicator.testing.sources import MemorySources

CATALOG, JOBS = Path("catalog.sqlite"), Path("jobs.sqlite")


class MemoryMachine:
    """One site's hardware."""

    def __init__(
        self,
        name: str,
        *,
        network: MemoryNetwork,
        chance: random.Random,
        monotonic: Callable[[], float],
        pause_s: Callable[[], float],
        settings: dict[str, Any],
        ingest: IngestConfig,
    ) -> None:
        self.name = name
        self._network = network
        self._chance = chance
        self._monotonic = monotonic
        self._entropy = SeededEntropy(chance)
        self._offload: Offload = InlineOffload(pause_s)
        self._settings = {"name": name, "listen": f"{name}:7421", "http": "", **settings}
        self._ingest = ingest
        self.keys = MemoryKeys(self._entropy)
        self.incarnation = self._entropy.token(16)
        self.clock = MemoryClock(monotonic)
        self.disk = MachineDisk()
        self.sets = MemorySets()
        self.databases = MemoryDatabases()
        self.sources = MemorySources()
        self.power = Power()
        self.store: MachineStore | None = None

    def configure(self, **settings: Any) -> None:
        """Change lines of the `config.toml`. The next start reads it."""
        self._settings |= settings

    @property
    def identity(self) -> Identity:
        return self.keys.load()

    @contextmanager
    def switched_on(self, *, on_cut: Callable[[], None]) -> Iterator[Base]:
        """A new life: what it stands on. `on_cut` is told when it ends by a power cut."""
        self.power = power = Power()

        def go_dark() -> None:
            self._network.abandon(self.name)
            store.crash(self._chance)
            on_cut()

        power.on_cut = go_dark
        self.databases.roll_back()
        self._network.reject_strays(self.name)
        open_database = partial(MemoryDatabase, kept=self.databases, power=power)
        config = parse_config(self._settings, where=self.name)
        store = MachineStore(self.disk, store_config(config), power=power, clock=self.clock, monotonic=self._monotonic)
        self.store = store
        catalog = Catalog(CATALOG, clock=self.clock, open_database=open_database)
        identity = take_up(store, catalog, facts=self.disk, keys=self.keys, clock=self.clock, entropy=self._entropy)
        brake = ClockBrake(
            catalog,
            wall=self.clock,
            lived=self._monotonic,
            boot=self.name,  # The time of the mesh goes on while a machine is off: it is all one boot.
            newest_ns=catalog.newest_received_ns(),
            must_live_s=store.config.grace_s,
        )
        yield Base(
            config=config,
            identity=identity,
            keys=self.keys,
            incarnation=self.incarnation,
            store=store,
            collector=Collector(store, clock=self.clock, why_off=lambda: why_off(config, catalog, brake)),
            catalog=catalog,
            ballast=NoBallast(),
            brake=brake,
            keep_free=lambda: 0,
            shelf=self.sets,
            open_history=lambda: JobHistory(JOBS, clock=self.clock, open_database=open_database),
            sources=self.sources,
            own_folder=None,
            memo_folder=None,
            ingest=self._ingest,
            network=self._network.at(self.name),
            clock=self.clock,
            monotonic=self._monotonic,
            entropy=self._entropy,
            offload=self._offload,
        )
        if power.is_on:
            renew(self.disk, catalog, entropy=self._entropy)

    def burn(self) -> None:
        """All that was on the machine is gone, its key too: what starts here next is a new site of the same name."""
        self.keys = MemoryKeys(self._entropy)
        self.incarnation = self._entropy.token(16)
        self.disk = MachineDisk()
        self.sets = MemorySets()
        self.databases.close()
        self.sources.clear()

    def lose_catalog(self) -> None:
        """The catalogue's file is gone. The site comes back under a new incarnation, since it has lost state."""
        self.databases.lose(CATALOG.name)
        self.incarnation = self._entropy.token(16)
