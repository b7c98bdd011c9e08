"""What a living node has besides its store: the parts that deal with other sites, put together."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from protocol.ids import SiteId, VolumeId
from protocol.messages.blocks import WantBlocks
from protocol.messages.mesh import (
    EarlyBlocks,
    HandReceipt,
    Introduce,
    NewKey,
    OfferCopy,
    PaceNotice,
    ProbeBlocks,
    WantSiteRecord,
)
from protocol.messages.repair import RepairBlocks
from protocol.messages.snapshots import ListSnapshots, OfferSnapshot, WantDiff
from protocol.messages.summary import StandingRoots, SummaryOpen
from replicator.catalog.model import Snapshot
from replicator.core.errors import ReplicatorError
from replicator.core.logging import get_logger
from replicator.core.throttle import RateRule, parse_rule
from replicator.core.workers import Idle, Outcome
from replicator.jobs.parts import Parts
from replicator.jobs.pulls import Pulls
from replicator.jobs.replicate import Receiving, SyncJobs
from replicator.net.link import Handlers, Link
from replicator.net.mesh import Mesh
from replicator.repair.guardian import Guardian
from replicator.store.ports import Fault
from replicator.sync.early import EarlyReceiver
from replicator.sync.incoming import Incoming, PaceKeeper
from replicator.sync.intake import ReceiverPorts
from replicator.sync.neighbours import Neighbours
from replicator.sync.orphans import Orphans
from replicator.sync.policy import Policy
from replicator.sync.receive import Receiver
from replicator.sync.serve import Server
from replicator.sync.standing import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Relations:
    """The parts of a node that deal with other sites."""

    receiver: Receiver
    pace: PaceKeeper
    orphans: Orphans
    neighbours: Neighbours
    policy: Policy
    syncs: SyncJobs
    pulls: Pulls


def make_relations(
    parts: Parts,
    mesh: Mesh,
    *,
    standing: Standing,
    heal: Callable[[Sequence[Fault]], Awaitable[None]],
    holders: Callable[[VolumeId], Sequence[Link]],
    on_received: Callable[[Snapshot, SiteId], None],
    on_settled: Callable[[bytes], None],
    wake_orphans: Callable[[], None],
) -> Relations:
    """Make them, load the rules of this node, and register which questions of peers are answered, and by whom."""
    pace = PaceKeeper(mesh.pacing, links=mesh.connected, clock=parts.clock)
    receiver = Receiver(
        ReceiverPorts(
            store=parts.store,
            catalog=parts.catalog,
            reader=parts.reader,
            offload=parts.offload,
            clock=parts.clock,
            site_id=parts.site_id,
            sign=parts.sign,
            holders=holders,
            receiving=pace.receiving,
            on_received=on_received,
        )
    )
    orphans = Orphans(receiver, catalog=parts.catalog, link_to=mesh.link_to, wake=wake_orphans)
    relations = Relations(
        receiver=receiver,
        pace=pace,
        orphans=orphans,
        neighbours=Neighbours(
            catalog=parts.catalog,
            site_id=parts.site_id,
            name=parts.site_name,
            sign=parts.sign,
            addresses=lambda: mesh.addresses,
            trust_changed=mesh.trust_changed,
            clock=parts.clock,
        ),
        policy=Policy(parts.catalog),
        syncs=SyncJobs(parts, Receiving(receiver, pace, orphans)),
        pulls=Pulls(catalog=parts.catalog, mesh=mesh, clock=parts.clock, wake_scheduler=parts.wake_scheduler),
    )
    load_rules(parts, mesh)
    _answer_peers(relations, parts, mesh, standing=standing, heal=heal, on_settled=on_settled)
    return relations


def _answer_peers(
    relations: Relations,
    parts: Parts,
    mesh: Mesh,
    *,
    standing: Standing,
    heal: Callable[[Sequence[Fault]], Awaitable[None]],
    on_settled: Callable[[bytes], None],
) -> None:
    """Which questions of peers are answered, and by whom. What is not here is refused."""
    incoming = Incoming(
        relations.receiver,
        catalog=parts.catalog,
        store=parts.store,
        offload=parts.offload,
        pace=relations.pace,
        orphans=relations.orphans,
        on_settled=on_settled,
    )
    walks = relations.syncs.walks
    server = Server(store=parts.store, catalog=parts.catalog, walks=walks, offload=parts.offload, heal=heal)
    early = EarlyReceiver(store=parts.store, offload=parts.offload, pace=relations.pace)
    guardian = Guardian(store=parts.store, catalog=parts.catalog, offload=parts.offload, clock=parts.clock)
    handlers: Handlers = {
        OfferSnapshot: incoming.offered,
        OfferCopy: incoming.copy_offered,
        WantDiff: server.want_diff,
        WantBlocks: server.want_blocks,
        ListSnapshots: relations.policy.list_snapshots,
        RepairBlocks: guardian.repair_blocks,
        SummaryOpen: parts.auditor.asked,
        StandingRoots: standing.asked,
        HandReceipt: incoming.receipt_handed,
        ProbeBlocks: incoming.probed,
        EarlyBlocks: early.asked,
        PaceNotice: relations.pace.noted,
        WantSiteRecord: relations.neighbours.card_wanted,
        Introduce: relations.neighbours.introduced,
        NewKey: relations.neighbours.key_told,
    }
    mesh.handlers.update(relations.policy.guard(handlers))


def load_rules(parts: Parts, mesh: Mesh) -> None:
    """Let the bandwidth rules that were set on this node take effect."""
    rules: dict[tuple[bytes, str], RateRule] = {}
    for one in parts.catalog.throttles():
        try:
            rules[one.scope, one.way] = parse_rule(one.text, zone=one.zone, burst_s=one.burst_s)
        except ReplicatorError as error:
            # A zone that this machine does not know any more must not keep the node from starting.
            get_logger().error("throttle.unusable", rule=one.text, zone=one.zone, error=str(error))
    mesh.pacing.set_rules(rules, now_ns=parts.clock.now_ns())


class Pacekeeping:
    """The worker that lets the hours' bandwidth rules take effect, and tells senders their share."""

    name = "pace"

    def __init__(self, pace: PaceKeeper) -> None:
        self._pace = pace

    async def step(self) -> Outcome:
        await self._pace.look()
        return Idle(1.0)
