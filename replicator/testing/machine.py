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

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from replicator.app.base import Base, make_whole
from replicator.app.config import parse_config
from replicator.catalog.catalog import Catalog
from replicator.core.ports import Offload
from replicator.ingest.config import IngestConfig
from replicator.jobs.history import JobHistory
from replicator.net.identity import Identity
from replicator.testing.blocks import MachineDisk, MachineStore, MemoryCollector
from replicator.testing.chance import InlineOffload, MemoryClock, SeededEntropy
from replicator.testing.databases import MemoryDatabase, MemoryDatabases
from replicator.testing.network import MemoryNetwork
from replicator.testing.power import Power
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
        self.identity = Identity(Ed25519PrivateKey.from_private_bytes(self._entropy.token(32)))
        self.incarnation = self._entropy.token(16)
        self.clock = MemoryClock(monotonic)
        self.disk = MachineDisk()
        self.databases = MemoryDatabases()
        self.sources = MemorySources()
        self.power = Power()
        self.store: MachineStore | None = None

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
        store = MachineStore(self.disk, power=power, clock=self.clock, monotonic=self._monotonic)
        self.store = store
        catalog = Catalog(CATALOG, clock=self.clock, open_database=open_database)
        make_whole(catalog, store, store.records)
        yield Base(
            config=parse_config(self._settings, where=self.name),
            identity=self.identity,
            incarnation=self.incarnation,
            store=store,
            collector=MemoryCollector(store, clock=self.clock),
            catalog=catalog,
            open_history=lambda: JobHistory(JOBS, clock=self.clock, open_database=open_database),
            sources=self.sources,
            memo_folder=None,
            ingest=self._ingest,
            network=self._network.at(self.name),
            clock=self.clock,
            monotonic=self._monotonic,
            entropy=self._entropy,
            offload=self._offload,
        )

    def lose_catalog(self) -> None:
        """The catalogue's file is gone. The site comes back under a new incarnation, since it has lost state."""
        self.databases.lose(CATALOG.name)
        self.incarnation = self._entropy.token(16)
