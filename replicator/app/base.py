"""What a node stands on: everything of the world that it touches, in one record.

Whoever makes a `Base` decides what the world is. `open_base` makes it of this machine's disk, clock,
threads and sockets; `replicator.testing` makes it of memory. What `app/node.py` puts on top is
the same in both, so what holds in a simulated world was not said of something else.
"""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replicator.app.config import NodeConfig, StateFolder, ingest_config, load_config, store_config
from replicator.app.keys import KeyFolder, KeyPlace, adopt_next_key, recall_successions
from replicator.app.recovery import Facts, bring_together, distrust, is_checked, renew
from replicator.catalog.catalog import Catalog
from replicator.core.ballast import Ballast, NoBallast
from replicator.core.brake import ClockBrake, boot_name, is_set_by_service, lived_s
from replicator.core.errors import CatalogError, ReplicatorError, StoreLocked
from replicator.core.files import write_durably
from replicator.core.ports import Entropy, Offload, SystemClock, SystemEntropy, ThreadOffload, WallClock
from replicator.core.units import parse_size
from replicator.index.shelf import IdSets, Shelf
from replicator.ingest.config import IngestConfig
from replicator.ingest.places import FileSources
from replicator.ingest.sources import Sources
from replicator.jobs.collection import OFF_FACT
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
    keys: KeyPlace
    incarnation: bytes
    store: BlockStore
    collector: Collector
    catalog: Catalog
    ballast: Ballast | NoBallast
    brake: ClockBrake
    keep_free: Callable[[], int]
    """Bytes of the disk that the store leaves free."""
    shelf: IdSets
    open_history: Callable[[], JobHistory]
    sources: Sources
    own_folder: Path | None
    memo_folder: Path | None
    ingest: IngestConfig
    network: Network
    clock: WallClock
    monotonic: Callable[[], float]
    entropy: Entropy
    offload: Offload


_OPEN_FILES: Final = 65_536
"""The deepest path that a manifest takes, several times over, and every link besides."""


def why_off(config: NodeConfig, catalog: Catalog, brake: ClockBrake) -> str:
    """Why nothing may be deleted from the store; empty if it may."""
    return "`gc` is off in config.toml" if config.gc == "off" else catalog.fact(OFF_FACT) or brake.why()


def _raise_open_files() -> None:
    """A walk holds one descriptor for each level of folders, and a login gives a thousand: take what we may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextmanager
def open_base(state: StateFolder) -> Iterator[Base]:
    """This machine. Raises `StoreLocked`, `ConfigError`."""
    _raise_open_files()
    config = load_config(state.config)
    keys = KeyFolder(state)
    keys.load()  # Before anything is opened: a folder without a key is not a node.
    clock, entropy = SystemClock(), SystemEntropy()
    ballast = Ballast(state.ballast, bytes_max=parse_size(config.ballast))
    store = _open_store(state, config, clock, ballast)
    try:
        ballast.give_some_if_full("starting on a full disk")
        try:
            catalog = Catalog(state.catalog, clock=clock)
        except CatalogError:
            distrust(store)
            raise
        try:
            identity = take_up(store, catalog, facts=store, keys=keys, clock=clock, entropy=entropy)
            state.memo.mkdir(exist_ok=True)
            brake = ClockBrake(
                catalog,
                wall=clock,
                lived=lived_s,
                boot=boot_name(),
                is_vouched=is_set_by_service,
                newest_ns=catalog.newest_received_ns(),
                must_live_s=store.config.grace_s,
            )
            yield Base(
                config=config,
                identity=identity,
                keys=keys,
                incarnation=_incarnation(state, entropy),
                store=store,
                collector=Collector(store, clock=clock, why_off=lambda: why_off(config, catalog, brake)),
                catalog=catalog,
                ballast=ballast,
                brake=brake,
                keep_free=store.reserve_bytes,
                shelf=Shelf(state.sets),
                open_history=lambda: JobHistory(state.jobs, clock=clock),
                sources=FileSources(own_folder=state.root),
                own_folder=state.root,
                memo_folder=state.memo,
                ingest=ingest_config(config),
                network=TlsNetwork(),
                clock=clock,
                monotonic=time.monotonic,
                entropy=entropy,
                offload=ThreadOffload(),
            )
            renew(store, catalog, entropy=entropy)
        finally:
            catalog.close()
    finally:
        store.close()


def _open_store(state: StateFolder, config: NodeConfig, clock: WallClock, ballast: Ballast) -> LocalStore:
    """The store; on a full disk with the help of the ballast.

    Not before we know that it is ours: the lock comes first.
    """
    try:
        return LocalStore.open(state.store, store_config(config), clock=clock)
    except StoreLocked:
        raise
    except (ReplicatorError, OSError):
        if not ballast.give_some_if_full("opening the store on a full disk"):
            raise
    return LocalStore.open(state.store, store_config(config), clock=clock)


def take_up(
    store: BlockStore, catalog: Catalog, *, facts: Facts, keys: KeyPlace, clock: WallClock, entropy: Entropy
) -> Identity:
    """What each start does before anything else: see that store, catalogue and key belong together."""
    if not is_checked(catalog):
        recall_successions(keys, catalog)
    bring_together(store, catalog, facts=facts, entropy=entropy)
    return adopt_next_key(keys, catalog, now_ns=clock.now_ns())


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
