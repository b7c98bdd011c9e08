"""What a node stands on: everything of the world that it touches, in one record.

Whoever makes a `Base` decides what the world is. `open_base` makes it of this machine's disk, clock,
threads and sockets; `replicator.testing` makes it of memory. What `app/node.py` puts on top is
the same in both, so what holds in a simulated world was not said of something else.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.ids import BlockId
from protocol.wire.hashing import Kind
from replicator.app.config import NodeConfig, StateFolder, ingest_config, load_config, store_config
from replicator.app.recovery import recover_snapshots
from replicator.catalog.catalog import Catalog
from replicator.core.files import write_durably
from replicator.core.ports import Entropy, Offload, SystemClock, SystemEntropy, ThreadOffload, WallClock
from replicator.ingest.config import IngestConfig
from replicator.ingest.places import FileSources
from replicator.ingest.sources import Sources
from replicator.jobs.history import JobHistory
from replicator.net.identity import Identity
from replicator.net.ports import Network
from replicator.net.tls import TlsNetwork
from replicator.store.collect import Collector
from replicator.store.local import LocalStore
from replicator.store.ports import BlockStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The world, as one node sees it."""

    config: NodeConfig
    identity: Identity
    incarnation: bytes
    store: BlockStore
    collector: Collector
    catalog: Catalog
    open_history: Callable[[], JobHistory]
    sources: Sources
    memo_folder: Path | None
    ingest: IngestConfig
    network: Network
    clock: WallClock
    monotonic: Callable[[], float]
    entropy: Entropy
    offload: Offload


_WHOLE = "catalogue.whole"
"""Set once a catalogue has been checked against the store: a new one, and one that was lost, are not."""


def make_whole(catalog: Catalog, store: BlockStore, records: Callable[[], Sequence[BlockId]]) -> None:
    """Find the snapshots of a catalogue again that was lost. `records` names the record blocks of the store."""
    if catalog.fact(_WHOLE) is None:
        recover_snapshots(store, catalog, records())
        catalog.set_fact(_WHOLE, "yes")


@contextmanager
def open_base(state: StateFolder) -> Iterator[Base]:
    """This machine. Raises `StoreLocked`, `ConfigError`."""
    config = load_config(state.config)
    identity = Identity.load(state.identity)
    clock, entropy = SystemClock(), SystemEntropy()
    store = LocalStore.open(state.store, store_config(config), clock=clock)
    try:
        catalog = Catalog(state.catalog, clock=clock)
        try:
            make_whole(catalog, store, lambda: store.ledger.of_kind(Kind.RECORD))
            state.memo.mkdir(exist_ok=True)
            yield Base(
                config=config,
                identity=identity,
                incarnation=_incarnation(state, entropy),
                store=store,
                collector=Collector(store, clock=clock),
                catalog=catalog,
                open_history=lambda: JobHistory(state.jobs, clock=clock),
                sources=FileSources(own_folder=state.root),
                memo_folder=state.memo,
                ingest=ingest_config(config),
                network=TlsNetwork(),
                clock=clock,
                monotonic=time.monotonic,
                entropy=entropy,
                offload=ThreadOffload(),
            )
        finally:
            catalog.close()
    finally:
        store.close()


def _incarnation(state: StateFolder, entropy: Entropy) -> bytes:
    """16 random bytes that are renewed whenever this site may have lost state: here, when the file is lost."""
    path = state.incarnation
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        kept = b""
    if len(kept) != 16:
        kept = entropy.token(16)
        write_durably(path, kept)
    return kept
