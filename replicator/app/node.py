"""The composition root: every part of a node is made and joined here, and nowhere else.

`open_node` gives an offline node: a store with its catalogue, for commands on a node that is
down. `run_node` gives the living one: the mesh, the workers, the jobs and the API in one
nursery, until it is told to stop.
"""

import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from protocol.errors import ErrorCode
from protocol.ids import SiteId, VolumeId
from replicator import __version__
from replicator.api.mesh_views import MeshViews
from replicator.api.server import ApiServer
from replicator.api.sync_views import SyncViews
from replicator.api.views import NodeView
from replicator.app.config import (
    NodeConfig,
    StateFolder,
    ingest_config,
    load_config,
    mesh_config,
    scrub_promise,
    store_config,
)
from replicator.app.keys import KeyKeeping, adopt_next_key, describe_keys, recall_successions, rotate
from replicator.app.peers import CataloguedPeers
from replicator.app.recovery import bring_together, distrust, is_checked, renew
from replicator.app.relations import Pacekeeping, load_rules, make_relations
from replicator.app.upkeep import Ballasting, Collecting, Comparing, Mending, Scrubbing
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Snapshot
from replicator.core.ballast import Ballast
from replicator.core.errors import CatalogError, ReplicatorError, StoreError, StoreLocked
from replicator.core.files import write_durably
from replicator.core.logging import get_logger
from replicator.core.memory import keep_freed_memory
from replicator.core.ports import Offload, SystemClock, SystemEntropy, ThreadOffload, WallClock
from replicator.core.units import parse_size
from replicator.core.workers import Worker, WorkerRunner
from replicator.index.shelf import Shelf
from replicator.jobs.collection import OFF_FACT
from replicator.jobs.history import JobHistory
from replicator.jobs.kinds import job_kinds
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobRunner
from replicator.jobs.scheduler import Scheduler
from replicator.jobs.snapshot import prune_volume
from replicator.monitor.status import StatusSources
from replicator.net.identity import Identity
from replicator.net.link import Link
from replicator.net.mesh import Mesh
from replicator.repair.ask import Healer
from replicator.repair.reader import HealingReader
from replicator.repair.scrub import Scrubber
from replicator.store.collect import Collector
from replicator.store.local import LocalStore
from replicator.store.ports import Fault
from replicator.sync.audit import Auditor
from replicator.sync.standing import Standing

_OPEN_FILES: Final = 65_536
"""The deepest path that a manifest takes, several times over, and every link besides."""


@dataclass(frozen=True, slots=True)
class _Base:
    """What an offline node and a living one share."""

    config: NodeConfig
    state: StateFolder
    identity: Identity
    store: LocalStore
    catalog: Catalog
    offload: Offload
    ballast: Ballast


def _raise_open_files() -> None:
    """A walk holds one descriptor for each level of folders, and a login gives a thousand: take what we may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextmanager
def _open_base(root: Path) -> Iterator[_Base]:
    _raise_open_files()
    state = StateFolder(root)
    config = load_config(state.config)
    clock = SystemClock()
    ballast = Ballast(state.ballast, bytes_max=parse_size(config.ballast))
    Identity.load(state.identity)  # Before anything is opened: a folder without a key is not a node.
    store = _open_store(state, config, clock, ballast)
    try:
        ballast.give_some_if_full("starting on a full disk")
        try:
            catalog = Catalog(state.catalog, clock=clock)
        except CatalogError:
            distrust(store)
            raise
        try:
            if not is_checked(catalog):
                recall_successions(state, catalog)
            bring_together(store, catalog, entropy=SystemEntropy())
            state.memo.mkdir(exist_ok=True)
            adopt_next_key(state, catalog, now_ns=clock.now_ns())
            yield _Base(config, state, Identity.load(state.identity), store, catalog, ThreadOffload(), ballast)
            _part(store, catalog)
        finally:
            catalog.close()
    finally:
        store.close()


def _part(store: LocalStore, catalog: Catalog) -> None:
    """A clean closing. Where the disk is full, or has failed, it is like one after a crash, and no error."""
    try:
        renew(store, catalog, entropy=SystemEntropy())
    except StoreError as error:
        get_logger().warning("catalogue.not_renewed", error=error.message)


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


def _why_off(base: _Base) -> str:
    """Why nothing may be deleted from the store; empty if it may."""
    return "`gc` is off in config.toml" if base.config.gc == "off" else base.catalog.fact(OFF_FACT) or ""


def _parts(base: _Base, *, mesh: Mesh | None, wake: Callable[[], None]) -> Parts:
    clock = SystemClock()
    healer = None
    if mesh is not None:
        healer = Healer(store=base.store, catalog=base.catalog, offload=base.offload, clock=clock, links=mesh.connected)
    reader = HealingReader(base.store, offload=base.offload, healer=healer)
    return Parts(
        store=base.store,
        collector=Collector(base.store, clock=clock, why_off=lambda: _why_off(base)),
        catalog=base.catalog,
        reader=reader,
        offload=base.offload,
        clock=clock,
        entropy=SystemEntropy(),
        site_id=base.identity.site_id,
        site_name=base.config.name,
        sign=base.identity.sign,
        scrubber=Scrubber(
            store=base.store,
            catalog=base.catalog,
            reader=reader,
            offload=base.offload,
            clock=clock,
            heal=healer.heal if healer is not None else None,
        ),
        scrub_promise=scrub_promise(base.config),
        healer=healer,
        mesh=mesh,
        auditor=Auditor(
            store=base.store,
            catalog=base.catalog,
            reader=reader,
            offload=base.offload,
            entropy=SystemEntropy(),
            shelf=Shelf(base.state.sets),
        ),
        ingest=ingest_config(base.config),
        memo_folder=base.state.memo,
        grace_s=store_config(base.config).grace_s,
        ballast=base.ballast,
        wake_scheduler=wake,
    )


@contextmanager
def open_node(root: Path) -> Iterator[Parts]:
    """The parts of a node that is down. Raises `StoreLocked` if it is up, `ConfigError` if there is none."""
    with _open_base(root) as base:
        yield _parts(base, mesh=None, wake=lambda: None)


async def run_node(root: Path, *, on_ready: Callable[[str, str], None]) -> None:
    """Run the node until SIGINT or SIGTERM. `on_ready` is told the mesh's and the HTTP address once both are open.

    Raises `ConfigError`, `StoreLocked`, and whatever else keeps it from starting.
    """
    keep_freed_memory()
    is_reborn = False
    while True:
        with _open_base(root) as base:
            living = _Living(base)
            await living.run(on_ready if not is_reborn else lambda mesh, http: None)
        if not living.has_new_key:
            return
        is_reborn = True


class _Living:
    """A node in motion."""

    def __init__(self, base: _Base) -> None:
        self._base = base
        self._stop = trio.Event()
        self.has_new_key = False
        """It has stopped to be put together anew, with another key."""
        config, catalog = base.config, base.catalog
        book = CataloguedPeers(catalog, site_id=base.identity.site_id)
        self._mesh = Mesh(
            mesh_config(config),
            identity=base.identity,
            name=config.name,
            incarnation=_incarnation(base),
            book=book,
            monotonic=time.monotonic,
        )
        self._parts = parts = _parts(base, mesh=self._mesh, wake=self._wake_scheduler)
        self._standing = Standing(site_id=parts.site_id, catalog=catalog, store=parts.store, links=self._mesh.connected)
        self._relations = relations = make_relations(
            parts,
            self._mesh,
            standing=self._standing,
            heal=self._heal,
            holders=self._holders,
            on_received=self._received,
            on_settled=self._settled,
        )
        book.on_proven = relations.neighbours.recognise
        self._history = JobHistory(base.state.jobs, clock=parts.clock)
        self._jobs = JobRunner(self._history, job_kinds(parts, relations.syncs), clock=time.monotonic)
        healer = parts.healer
        assert healer is not None
        keys = KeyKeeping(
            relations.neighbours,
            catalog=catalog,
            links=self._mesh.connected,
            clock=parts.clock,
            trust_changed=self._mesh.trust_changed,
            on_time=self._take_new_key,
        )
        workers: list[Worker] = [
            Scheduler(catalog=catalog, jobs=self._jobs, clock=parts.clock, has_remote=relations.pulls.has_pending),
            Scrubbing(parts.scrubber, promise=parts.scrub_promise, clock=parts.clock, is_busy=self._is_busy),
            Collecting(self._jobs, clock=parts.clock, why_off=parts.collector.why_off),
            Mending(healer, parts.store, self._mesh.connected),
            Pacekeeping(relations.pace),
            relations.pulls,
            keys,
            self._standing,
            Comparing(self._standing, site_id=parts.site_id, catalog=catalog, jobs=self._jobs, clock=parts.clock),
            Ballasting(parts.ballast, parts.offload, keep_free=base.store.reserve_bytes),
        ]
        self._workers = WorkerRunner(workers)
        sources = StatusSources(
            parts=parts,
            mesh=self._mesh,
            jobs=self._jobs,
            workers=self._workers,
            started_ns=parts.clock.now_ns(),
            version=__version__,
            pulls=relations.pulls,
        )
        view = NodeView(
            sources,
            wake=self._wake_scheduler,
            mesh_views=MeshViews(
                parts,
                self._mesh,
                neighbours=relations.neighbours,
                load_rules=lambda: load_rules(parts, self._mesh),
                keys=lambda: describe_keys(
                    relations.neighbours, catalog, site_id=parts.site_id, name=config.name, now_ns=parts.clock.now_ns()
                ),
                rotate=self._rotate,
            ),
            sync_views=SyncViews(
                parts, self._mesh, self._jobs, relations.syncs, relations.pulls, wake=self._wake_scheduler
            ),
        )
        self._api = ApiServer(view, socket_path=base.state.socket, http=config.http)

    def _rotate(self, overlap_s: float) -> None:
        parts = self._parts
        rotate(
            self._base.state,
            self._relations.neighbours,
            parts.catalog,
            overlap_s=overlap_s,
            now_ns=parts.clock.now_ns(),
        )
        self._workers.wake("keys")

    def _take_new_key(self) -> None:
        self.has_new_key = True
        self._stop.set()

    def _settled(self, volume_id: bytes) -> None:
        """A copy has come and been signed for: let our own rule look at its volume."""
        prune_volume(self._parts, self._parts.catalog.volume(volume_id))

    async def _heal(self, faults: Sequence[Fault]) -> None:
        assert self._parts.healer is not None
        await self._parts.healer.heal(faults)

    def _holders(self, volume: VolumeId) -> list[Link]:
        links = [self._mesh.link_to(site) for site in self._standing.holders_of(volume)]
        return [link for link in links if link is not None]

    def _received(self, snapshot: Snapshot, peer: SiteId) -> None:
        """A snapshot has become ours: let onward syncs start."""
        del snapshot, peer
        self._wake_scheduler()

    def _is_busy(self) -> bool:
        """Whether somebody works whom a scrub would be in the way of: jobs, writers, readers under a pin."""
        holders = self._base.store.holders()
        return bool(self._jobs.running()) or any(holder not in ("scrub", "repair") for holder in holders)

    def _wake_scheduler(self) -> None:
        self._workers.wake("scheduler")

    async def run(self, on_ready: Callable[[str, str], None]) -> None:
        listeners = await self._mesh.listen()
        self._api.bind()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                started = trio.Event()
                nursery.start_soon(self._run_jobs, started)
                await started.wait()
                assert self._parts.healer is not None
                await self._parts.healer.finish_audit()
                nursery.start_soon(self._workers.run)
                nursery.start_soon(self._mesh.run, listeners)
                nursery.start_soon(self._serve_api)
                get_logger().info("node.up", site=self._base.config.name, address=self._mesh.address)
                notify_systemd("READY=1")
                on_ready(self._mesh.address, self._api.http_address)
                await self._stop.wait()
                notify_systemd("STOPPING=1")
                self._say_goodbye()
                await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
        finally:
            self._api.close()
            self._history.close()
        get_logger().info("node.down", site=self._base.config.name)

    async def _run_jobs(self, started: trio.Event) -> None:
        await self._jobs.run(started=started)

    async def _serve_api(self) -> None:
        stop: Callable[[], Awaitable[None]] = self._stop.wait
        await self._api.run(shutdown=stop)

    def _say_goodbye(self) -> None:
        for link in self._mesh.connected():
            link.close(ErrorCode.STOPPING, "this node is stopping")

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                self._stop.set()
                return


def _incarnation(base: _Base) -> bytes:
    """16 random bytes that are renewed whenever this site may have lost state: here, when the file is lost."""
    path = base.state.incarnation
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        kept = b""
    if len(kept) != 16:
        kept = SystemEntropy().token(16)
        write_durably(path, kept)
    return kept


def notify_systemd(state: str) -> None:
    """Tell systemd how we are, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
