"""The composition root: every part of a node is made and joined here, and nowhere else.

`open_node` gives an offline node: a store with its catalogue, for commands on a node that is
down. `LivingNode` is the living one: the mesh, the workers and the jobs in one nursery.
`run_node` runs it as a process, with its API and its signals, until it is told to stop.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from protocol.errors import ErrorCode
from protocol.ids import SiteId, VolumeId
from replicator import __version__
from replicator.api.mesh_views import MeshViews
from replicator.api.server import ApiServer
from replicator.api.sync_views import SyncViews
from replicator.api.views import NodeView
from replicator.app.base import Base, open_base
from replicator.app.config import StateFolder, mesh_config, scrub_promise, store_config
from replicator.app.keys import KeyKeeping, describe_keys, rotate
from replicator.app.peers import CataloguedPeers
from replicator.app.relations import Pacekeeping, load_rules, make_relations
from replicator.app.upkeep import Ballasting, Collecting, Comparing, Mending, Scrubbing, WatchingClock
from replicator.catalog.model import Snapshot
from replicator.core.logging import get_logger
from replicator.core.memory import keep_freed_memory, settle_heap
from replicator.core.throttle import BURST_S, TokenBucket
from replicator.core.units import parse_rate
from replicator.core.workers import Worker, WorkerRunner
from replicator.jobs.kinds import job_kinds
from replicator.jobs.parts import Parts
from replicator.jobs.pruning import prune_volume
from replicator.jobs.runner import JobRunner
from replicator.jobs.scheduler import Scheduler
from replicator.monitor.status import StatusSources
from replicator.net.link import Link
from replicator.net.mesh import Mesh
from replicator.net.ports import Listener
from replicator.repair.ask import Healer
from replicator.repair.reader import HealingReader
from replicator.repair.scrub import Scrubber
from replicator.repair.unread import RecordsUnread, account_for_records
from replicator.store.ports import Fault
from replicator.sync.audit import Auditor
from replicator.sync.standing import Standing


def _parts(base: Base, *, mesh: Mesh | None, wake: Callable[[], None]) -> Parts:
    store, catalog, offload, clock = base.store, base.catalog, base.offload, base.clock
    healer = None
    if mesh is not None:
        healer = Healer(
            store=store,
            catalog=catalog,
            offload=offload,
            clock=clock,
            entropy=base.entropy,
            links=mesh.connected,
            leisure=TokenBucket(parse_rate(base.config.repair_rate), clock=base.monotonic, burst_s=BURST_S),
        )
    reader = HealingReader(store, offload=offload, healer=healer)
    heal = healer.heal if healer is not None else None

    async def mend(faults: Sequence[Fault]) -> int:
        return 0 if healer is None else len((await healer.heal(faults)).healed)

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
        scrubber=Scrubber(store=store, catalog=catalog, reader=reader, offload=offload, clock=clock, heal=heal),
        scrub_promise=scrub_promise(base.config),
        healer=healer,
        mesh=mesh,
        auditor=Auditor(
            store=store,
            catalog=catalog,
            reader=reader,
            offload=offload,
            entropy=base.entropy,
            shelf=base.shelf,
            mend=mend,
        ),
        ingest=base.ingest,
        sources=base.sources,
        own_folder=base.own_folder,
        memo_folder=base.memo_folder,
        grace_s=store_config(base.config).grace_s,
        ballast=base.ballast,
        brake=base.brake,
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
    is_reborn = False
    state = StateFolder(root)
    while True:
        with open_base(state) as base:
            with LivingNode(base) as node:
                api = ApiServer(node.view, socket_path=state.socket, http=base.config.http)
                await _run_process(node, api, on_ready if not is_reborn else lambda mesh, http: None)
            get_logger().info("node.down", site=base.config.name)
        if not node.has_new_key:
            return
        is_reborn = True


async def _run_process(node: "LivingNode", api: ApiServer, on_ready: Callable[[str, str], None]) -> None:
    """What surrounds a node that is a process: its doors, its signals, and whoever supervises it."""
    stop = node.stop
    listener = await node.mesh.listen()
    api.bind()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_watch_signals, stop)
            await nursery.start(node.serve, listener)
            nursery.start_soon(partial(api.run, shutdown=stop.wait))
            get_logger().info("node.up", site=node.parts.site_name, address=node.mesh.address)
            settle_heap()
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
        self.stop = trio.Event()
        """Set when it should end: by whoever runs it, or by itself, to be put together anew."""
        self.has_new_key = False
        """It has stopped to be put together anew, with another key."""
        config, catalog = base.config, base.catalog
        book = CataloguedPeers(catalog, site_id=base.identity.site_id)
        self.mesh = Mesh(
            mesh_config(config),
            identity=base.identity,
            name=config.name,
            incarnation=base.incarnation,
            book=book,
            monotonic=base.monotonic,
            network=base.network,
            entropy=base.entropy,
        )
        self.parts = parts = _parts(base, mesh=self.mesh, wake=self._wake_scheduler)
        self._standing = Standing(site_id=parts.site_id, catalog=catalog, store=parts.store, links=self.mesh.connected)
        self._relations = relations = make_relations(
            parts,
            self.mesh,
            standing=self._standing,
            heal=self._heal,
            holders=self._holders,
            on_received=self._received,
            on_settled=self._settled,
            wake_orphans=lambda: self.workers.wake("orphans"),
        )
        book.on_proven = relations.neighbours.recognise
        self.history = base.open_history()
        self.jobs = JobRunner(self.history, job_kinds(parts, relations.syncs), clock=base.monotonic)
        healer = parts.healer
        assert healer is not None
        keys = KeyKeeping(
            relations.neighbours,
            keys=base.keys,
            ours=parts.site_id,
            catalog=catalog,
            links=self.mesh.connected,
            clock=parts.clock,
            trust_changed=self.mesh.trust_changed,
            on_time=self._take_new_key,
        )
        workers: list[Worker] = [
            Scheduler(catalog=catalog, jobs=self.jobs, clock=parts.clock, has_remote=relations.pulls.has_pending),
            Scrubbing(parts.scrubber, promise=parts.scrub_promise, clock=parts.clock, is_busy=self._is_busy),
            Collecting(self.jobs, clock=parts.clock, why_off=parts.collector.why_off),
            Mending(healer, parts.store, self.mesh.connected, enter=self._enter_records),
            Pacekeeping(relations.pace),
            relations.pulls,
            relations.orphans,
            keys,
            self._standing,
            Comparing(self._standing, site_id=parts.site_id, catalog=catalog, jobs=self.jobs, clock=parts.clock),
            WatchingClock(parts.brake),
            Ballasting(parts.ballast, parts.offload, keep_free=base.keep_free),
        ]
        self.workers = WorkerRunner(workers)
        sources = StatusSources(
            parts=parts,
            mesh=self.mesh,
            jobs=self.jobs,
            workers=self.workers,
            started_ns=parts.clock.now_ns(),
            version=__version__,
            standing=self._standing,
            pulls=relations.pulls,
        )
        self.view = NodeView(
            sources,
            wake=self._wake_scheduler,
            mesh_views=MeshViews(
                parts,
                self.mesh,
                neighbours=relations.neighbours,
                load_rules=lambda: load_rules(parts, self.mesh),
                keys=lambda: describe_keys(
                    relations.neighbours, catalog, site_id=parts.site_id, name=config.name, now_ns=parts.clock.now_ns()
                ),
                rotate=self._rotate,
            ),
            sync_views=SyncViews(
                parts, self.mesh, self.jobs, relations.syncs, relations.pulls, wake=self._wake_scheduler
            ),
        )

    def __enter__(self) -> "LivingNode":
        return self

    def __exit__(self, *_: object) -> None:
        self.history.close()

    def _rotate(self, overlap_s: float) -> None:
        parts = self.parts
        rotate(
            self._base.keys,
            self._relations.neighbours,
            parts.catalog,
            overlap_s=overlap_s,
            now_ns=parts.clock.now_ns(),
        )
        self.workers.wake("keys")

    def _take_new_key(self) -> None:
        self.has_new_key = True
        self.stop.set()

    def _settled(self, volume_id: bytes) -> None:
        """A copy has come and been signed for: let our own rule look at its volume."""
        prune_volume(self.parts, self.parts.catalog.volume(volume_id))

    async def _heal(self, faults: Sequence[Fault]) -> None:
        assert self.parts.healer is not None
        await self.parts.healer.heal(faults)

    async def _enter_records(self) -> None:
        with suppress(RecordsUnread):  # There is an alert for it.
            await account_for_records(self.parts.catalog, self.parts.reader, give_up=False)

    def _holders(self, volume: VolumeId) -> list[Link]:
        links = [self.mesh.link_to(site) for site in self._standing.holders_of(volume)]
        return [link for link in links if link is not None]

    def _received(self, snapshot: Snapshot, peer: SiteId) -> None:
        """A snapshot has become ours: let onward syncs start."""
        del snapshot, peer
        self._wake_scheduler()

    def _is_busy(self) -> bool:
        """Whether somebody works whom a scrub would be in the way of: jobs, writers, readers under a pin."""
        holders = self._base.store.holders()
        return bool(self.jobs.running()) or any(holder not in ("scrub", "repair") for holder in holders)

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
