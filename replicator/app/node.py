"""The composition root: every part of a node is made and joined here, and nowhere else.

`open_node` gives an offline node: a store with its catalogue, for commands on a node that is
down. `LivingNode` is the living one: the mesh, the workers and the jobs in one nursery.
`run_node` runs it as a process, with its API and its signals, until it is told to stop.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from protocol.messages.blocks import WantBlocks
from protocol.messages.repair import RepairBlocks
from protocol.messages.snapshots import ListSnapshots, OfferSnapshot, WantDiff
from protocol.messages.summary import SummaryOpen
from replicator import __version__
from replicator.api.server import ApiServer
from replicator.api.views import NodeView
from replicator.app.base import Base, open_base
from replicator.app.config import StateFolder, mesh_config, store_config
from replicator.app.peerbook import CataloguedPeers
from replicator.app.upkeep import Collecting, Mending, Scrubbing
from replicator.catalog.model import Snapshot
from replicator.core.logging import get_logger
from replicator.core.memory import keep_freed_memory
from replicator.core.units import parse_span
from replicator.core.workers import Worker, WorkerRunner
from replicator.jobs.kinds import job_kinds
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobRunner
from replicator.jobs.scheduler import Scheduler
from replicator.jobs.snapshot import prune_volume
from replicator.monitor.status import StatusSources
from replicator.net.mesh import Mesh
from replicator.net.ports import Listener
from replicator.repair.ask import Healer
from replicator.repair.guardian import Guardian
from replicator.repair.reader import HealingReader
from replicator.repair.scrub import Scrubber
from replicator.store.ports import Fault
from replicator.sync.audit import Auditor
from replicator.sync.receive import Receiver, ReceiverPorts
from replicator.sync.serve import Server


def _parts(base: Base, *, mesh: Mesh | None, wake: Callable[[], None]) -> Parts:
    store, catalog, offload, clock = base.store, base.catalog, base.offload, base.clock
    healer = None
    if mesh is not None:
        healer = Healer(
            store=store, catalog=catalog, offload=offload, clock=clock, entropy=base.entropy, links=mesh.connected
        )
    reader = HealingReader(store, offload=offload, healer=healer)
    heal = healer.heal if healer is not None else None
    return Parts(
        store=store,
        collector=base.collector,
        catalog=catalog,
        reader=reader,
        offload=offload,
        clock=clock,
        entropy=base.entropy,
        site_id=base.identity.site_id,
        site_name=base.config.name,
        sign=base.identity.sign,
        scrubber=Scrubber(store=store, catalog=catalog, reader=reader, offload=offload, heal=heal),
        healer=healer,
        mesh=mesh,
        auditor=Auditor(store=store, catalog=catalog, reader=reader, offload=offload, entropy=base.entropy),
        ingest=base.ingest,
        sources=base.sources,
        memo_folder=base.memo_folder,
        grace_s=store_config(base.config).grace_s,
        wake_scheduler=wake,
    )


@contextmanager
def open_node(root: Path) -> Iterator[Parts]:
    """The parts of a node that is down. Raises `StoreLocked` if it is up, `ConfigError` if there is none."""
    with open_base(StateFolder(root)) as base:
        yield _parts(base, mesh=None, wake=lambda: None)


async def run_node(root: Path, *, on_ready: Callable[[str, str], None]) -> None:
    """Run the node until SIGINT or SIGTERM. `on_ready` is told the mesh's and the HTTP address once both are open.

    Raises `ConfigError`, `StoreLocked`, and whatever else keeps it from starting.
    """
    keep_freed_memory()
    state = StateFolder(root)
    with open_base(state) as base:
        with LivingNode(base) as node:
            await _run_process(node, ApiServer(node.view, socket_path=state.socket, http=base.config.http), on_ready)
        get_logger().info("node.down", site=base.config.name)


async def _run_process(node: "LivingNode", api: ApiServer, on_ready: Callable[[str, str], None]) -> None:
    """What surrounds a node that is a process: its doors, its signals, and whoever supervises it."""
    stop = trio.Event()
    listener = await node.mesh.listen()
    api.bind()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch_signals, stop)
            await nursery.start(node.serve, listener)
            nursery.start_soon(partial(api.run, shutdown=stop.wait))
            get_logger().info("node.up", site=node.parts.site_name, address=node.mesh.address)
            notify_systemd("READY=1")
            on_ready(node.mesh.address, api.http_address)
            await stop.wait()
            notify_systemd("STOPPING=1")
            await node.say_goodbye()
            nursery.cancel_scope.cancel()
    finally:
        api.close()


async def _watch_signals(stop: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            stop.set()
            return


class LivingNode:
    """A node in motion: its mesh, its workers and its jobs. Closing it lets go of the table of jobs."""

    def __init__(self, base: Base) -> None:
        self._base = base
        config, catalog = base.config, base.catalog
        self.mesh = Mesh(
            mesh_config(config),
            identity=base.identity,
            name=config.name,
            incarnation=base.incarnation,
            book=CataloguedPeers(catalog, site_id=base.identity.site_id),
            monotonic=base.monotonic,
            network=base.network,
            entropy=base.entropy,
        )
        self.parts = parts = _parts(base, mesh=self.mesh, wake=self._wake_scheduler)
        self.history = base.open_history()
        self.jobs = JobRunner(self.history, job_kinds(parts), clock=base.monotonic)
        healer = parts.healer
        assert healer is not None
        workers: list[Worker] = [
            Scheduler(catalog=catalog, jobs=self.jobs, clock=parts.clock),
            Scrubbing(parts.scrubber, parts.store, every_s=parse_span(config.scrub_every)),
            Collecting(self.jobs, clock=parts.clock),
            Mending(healer, parts.store, self.mesh.connected),
        ]
        self.workers = WorkerRunner(workers)
        self._answer_peers()
        sources = StatusSources(
            parts=parts,
            mesh=self.mesh,
            jobs=self.jobs,
            workers=self.workers,
            started_ns=parts.clock.now_ns(),
            version=__version__,
        )
        self.view = NodeView(sources, wake=self._wake_scheduler)

    def __enter__(self) -> "LivingNode":
        return self

    def __exit__(self, *_: object) -> None:
        self.history.close()

    def _answer_peers(self) -> None:
        """Which questions of peers are answered, and by whom. What is not here is refused."""
        parts, base = self.parts, self._base
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
        self.mesh.handlers.update(
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
        assert self.parts.healer is not None
        await self.parts.healer.heal(faults)

    def _received(self, snapshot: Snapshot, peer: SiteId) -> None:
        """A snapshot has become ours: let onward syncs start, and our own keep rule look at it."""
        del peer
        prune_volume(self.parts, self.parts.catalog.volume(snapshot.record.volume_id))
        self._wake_scheduler()

    def _wake_scheduler(self) -> None:
        self.workers.wake("scheduler")

    async def serve(self, listener: Listener, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what was left unfinished, then work, answer and dial until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                started = trio.Event()
                nursery.start_soon(self.run_jobs, started)
                await started.wait()
                assert self.parts.healer is not None
                await self.parts.healer.finish_audit()
                nursery.start_soon(self.workers.run)
                nursery.start_soon(self.mesh.run, listener)
                task_status.started()
        finally:
            listener.close()

    async def run_jobs(self, started: trio.Event) -> None:
        await self.jobs.run(started=started)

    async def say_goodbye(self) -> None:
        """Tell the peers that this is no accident, and give it a moment to reach them."""
        for link in self.mesh.connected():
            link.close(ErrorCode.STOPPING, "this node is stopping")
        await trio.sleep(0.1)


def notify_systemd(state: str) -> None:
    """Tell systemd how we are, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
