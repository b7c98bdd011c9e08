"""The composition root: every part of a node is made and joined here, and nowhere else.

`open_node` gives an offline node: a store with its catalogue, for commands on a node that is
down. `run_node` gives the living one: the mesh, the workers, the jobs and the API in one
nursery, until it is told to stop.
"""

import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.blocks import WantBlocks
from protocol.messages.repair import RepairBlocks
from protocol.messages.session import PairJoin
from protocol.messages.snapshots import ListSnapshots, OfferSnapshot, WantDiff
from protocol.messages.summary import SummaryOpen
from protocol.wire.hashing import Kind
from replicator import __version__
from replicator.api.server import ApiServer
from replicator.api.views import NodeView
from replicator.app.config import NodeConfig, StateFolder, ingest_config, load_config, mesh_config, store_config
from replicator.app.upkeep import Ballasting, Collecting, Mending, Recovering, Scrubbing
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Snapshot
from replicator.catalog.records import verify_signature
from replicator.core.ballast import Ballast
from replicator.core.errors import NotFound, ReplicatorError, StoreLocked, Untrusted
from replicator.core.files import write_durably
from replicator.core.logging import get_logger
from replicator.core.memory import keep_freed_memory
from replicator.core.ports import Offload, SystemClock, SystemEntropy, ThreadOffload, WallClock
from replicator.core.units import parse_size, parse_span
from replicator.core.workers import Worker, WorkerRunner
from replicator.jobs.history import JobHistory
from replicator.jobs.kinds import job_kinds
from replicator.jobs.parts import Parts
from replicator.jobs.recovery import recover_snapshots
from replicator.jobs.runner import JobRunner
from replicator.jobs.scheduler import Scheduler
from replicator.jobs.snapshot import prune_volume
from replicator.monitor.status import StatusSources
from replicator.net.identity import Identity
from replicator.net.mesh import Mesh
from replicator.repair.ask import Healer
from replicator.repair.guardian import Guardian
from replicator.repair.reader import HealingReader
from replicator.repair.scrub import Scrubber
from replicator.store.collect import Collector
from replicator.store.local import LocalStore
from replicator.store.ports import Fault
from replicator.sync.audit import Auditor
from replicator.sync.receive import Receiver, ReceiverPorts
from replicator.sync.serve import Server


class CataloguedPeers:
    """The mesh's `PeerBook`, from the catalogue. Kept in memory: it is asked at every handshake and dial."""

    def __init__(self, catalog: Catalog, *, site_id: SiteId) -> None:
        self._catalog = catalog
        self._site_id = site_id

    def peer_ids(self) -> Sequence[SiteId]:
        return [peer.site_id for peer in self._catalog.peers.all()]

    def invite_ids(self) -> Sequence[bytes]:
        return self._catalog.peers.invites()

    def addresses_of(self, site_id: SiteId) -> Sequence[str]:
        try:
            return self._catalog.peers.get(site_id).addresses
        except NotFound:
            return ()

    def name_of(self, site_id: SiteId) -> str:
        return self._catalog.peers.name_of(site_id)

    def note_seen(self, site_id: SiteId) -> None:
        self._catalog.peers.note_seen(site_id)

    def note_incarnation(self, site_id: SiteId, incarnation: bytes) -> None:
        if self._catalog.peers.note_incarnation(site_id, incarnation):
            forgotten = self._catalog.forget_receipts(site_id)
            get_logger().warning("peer.reborn", peer=self.name_of(site_id), receipts_forgotten=forgotten)

    def admit(self, request: PairJoin, proof: bytes) -> ErrorCode:
        try:
            verify_signature(request.site_id, proof, request.proof)
        except Untrusted:
            return ErrorCode.FORBIDDEN
        if request.site_id == self._site_id:
            return ErrorCode.FORBIDDEN
        verdict = self._catalog.peers.redeem(request.invite_id, request.secret, by=request.site_id)
        if verdict is ErrorCode.OK:
            self._catalog.peers.add(request.site_id, name=request.name[:63], addresses=request.addresses[:8])
        return verdict


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


_WHOLE = "catalogue.whole"
"""Set once a catalogue has been checked against the store: a new one, and one that was lost, are not."""


@contextmanager
def _open_base(root: Path) -> Iterator[_Base]:
    state = StateFolder(root)
    config = load_config(state.config)
    identity = Identity.load(state.identity)
    clock = SystemClock()
    ballast = Ballast(state.ballast, bytes_max=parse_size(config.ballast))
    store = _open_store(state, config, clock, ballast)
    try:
        ballast.give_some_if_full("starting on a full disk")
        catalog = Catalog(state.catalog, clock=clock)
        try:
            if catalog.fact(_WHOLE) is None:
                recover_snapshots(store, catalog, store.ledger.of_kind(Kind.RECORD))
                catalog.set_fact(_WHOLE, "yes")
            state.memo.mkdir(exist_ok=True)
            yield _Base(config, state, identity, store, catalog, ThreadOffload(), ballast)
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


def _parts(base: _Base, *, mesh: Mesh | None, wake: Callable[[], None]) -> Parts:
    clock = SystemClock()
    healer = None
    if mesh is not None:
        healer = Healer(store=base.store, catalog=base.catalog, offload=base.offload, clock=clock, links=mesh.connected)
    reader = HealingReader(base.store, offload=base.offload, healer=healer)
    return Parts(
        store=base.store,
        collector=Collector(base.store, clock=clock),
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
            heal=healer.heal if healer is not None else None,
        ),
        healer=healer,
        mesh=mesh,
        auditor=Auditor(
            store=base.store, catalog=base.catalog, reader=reader, offload=base.offload, entropy=SystemEntropy()
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
    with _open_base(root) as base:
        await _Living(base).run(on_ready)


class _Living:
    """A node in motion."""

    def __init__(self, base: _Base) -> None:
        self._base = base
        self._stop = trio.Event()
        config, catalog = base.config, base.catalog
        self._mesh = Mesh(
            mesh_config(config),
            identity=base.identity,
            name=config.name,
            incarnation=_incarnation(base),
            book=CataloguedPeers(catalog, site_id=base.identity.site_id),
            monotonic=time.monotonic,
        )
        self._parts = parts = _parts(base, mesh=self._mesh, wake=self._wake_scheduler)
        self._history = JobHistory(base.state.jobs, clock=parts.clock)
        self._jobs = JobRunner(self._history, job_kinds(parts), clock=time.monotonic)
        healer = parts.healer
        assert healer is not None
        workers: list[Worker] = [
            Scheduler(catalog=catalog, jobs=self._jobs, clock=parts.clock),
            Scrubbing(parts.scrubber, parts.store, every_s=parse_span(config.scrub_every)),
            Collecting(self._jobs, clock=parts.clock),
            Mending(healer, parts.store, self._mesh.connected),
            Recovering(parts),
            Ballasting(parts.ballast, parts.offload, keep_free=base.store.reserve_bytes),
        ]
        self._workers = WorkerRunner(workers)
        self._answer_peers()
        sources = StatusSources(
            parts=parts,
            mesh=self._mesh,
            jobs=self._jobs,
            workers=self._workers,
            started_ns=parts.clock.now_ns(),
            version=__version__,
        )
        view = NodeView(sources, wake=self._wake_scheduler)
        self._api = ApiServer(view, socket_path=base.state.socket, http=config.http)

    def _answer_peers(self) -> None:
        """Which questions of peers are answered, and by whom. What is not here is refused."""
        parts, base = self._parts, self._base
        receiver = Receiver(
            ReceiverPorts(
                store=parts.store,
                catalog=parts.catalog,
                reader=parts.reader,
                offload=parts.offload,
                clock=parts.clock,
                site_id=parts.site_id,
                sign=parts.sign,
                on_received=self._received,
            )
        )
        server = Server(
            store=parts.store, catalog=parts.catalog, reader=parts.reader, offload=parts.offload, heal=self._heal
        )
        guardian = Guardian(store=parts.store, catalog=parts.catalog, offload=base.offload, clock=parts.clock)
        self._mesh.handlers.update(
            {
                OfferSnapshot: receiver.offered,
                WantDiff: server.want_diff,
                WantBlocks: server.want_blocks,
                ListSnapshots: server.list_snapshots,
                RepairBlocks: guardian.repair_blocks,
                SummaryOpen: parts.auditor.asked,
            }
        )

    async def _heal(self, faults: Sequence[Fault]) -> None:
        assert self._parts.healer is not None
        await self._parts.healer.heal(faults)

    def _received(self, snapshot: Snapshot, peer: SiteId) -> None:
        """A snapshot has become ours: let onward syncs start, and our own keep rule look at it."""
        del peer
        prune_volume(self._parts, self._parts.catalog.volume(snapshot.record.volume_id))
        self._wake_scheduler()

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
