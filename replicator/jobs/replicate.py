"""Bringing snapshots over: to a peer, or from one."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from protocol.errors import ProtocolError
from protocol.ids import VolumeId
from protocol.messages.registry import encode
from protocol.messages.snapshots import SyncProgress
from replicator.catalog.model import EVERY_VOLUME, SiteSync, Snapshot
from replicator.catalog.records import SnapshotRecord
from replicator.catalog.terms import PULL, SyncTerms
from replicator.core.errors import NotFound, PeerError, ReplicatorError, StoreError, UsageError
from replicator.core.ports import fraction
from replicator.core.progress import Progress
from replicator.core.units import format_size
from replicator.jobs.due import pending_snapshots
from replicator.jobs.line import PriorityLine
from replicator.jobs.parts import Parts
from replicator.jobs.pins import pinned
from replicator.jobs.plans import Planner, compare
from replicator.jobs.pruning import prune_volume
from replicator.jobs.runner import JobContext
from replicator.jobs.scheduler import next_try_ns
from replicator.net.link import Link, SentAhead
from replicator.net.pacing import IN, OUT
from replicator.sync.incoming import PaceKeeper
from replicator.sync.offer import Offered, Wishes, offer
from replicator.sync.orphans import Orphans
from replicator.sync.plan import SyncPlan
from replicator.sync.pull import Pulled, Remote, list_remote, plan_pull, pull
from replicator.sync.receive import Receiver
from replicator.sync.told import Told
from replicator.sync.walks import Walks

_LINK_WAIT_S = 20.0
_FAILED_MAX: Final = 8
"""Snapshots of one run that may fail before the run does."""
_TRIES = 5
_PLAN_S: Final = 10.0
"""What a sync spends on a plan that nobody asked for. Without one, it just begins."""
_FOR_EVER: Final = 10.0**9


@dataclass(frozen=True, slots=True)
class Receiving:
    """What a pull works with. A node that is down has none."""

    receiver: Receiver
    pace: PaceKeeper
    orphans: Orphans


class SyncJobs:
    """Jobs of the kind `sync`.

    `{"sync": id}` brings over all that is still to go by a standing order, newest first, within its windows if it was
    `scheduled`. `{"send": snapshot, "peer": id}` and `{"fetch": volume, "peer": id}` do it once, without an order.

    A link that breaks in the middle is waited for and the snapshot tried again: only what still lacks is asked for.
    """

    def __init__(self, parts: Parts, receiving: Receiving | None = None) -> None:
        self._parts = parts
        self._receiving = receiving
        self.line = PriorityLine()
        self.walks = Walks(parts.reader)
        self.planner = Planner(parts, self.walks)
        self._behind: dict[str, set[bytes]] = {}
        """Of each standing order: what it has failed at, and is still wanted. It comes after the others."""

    async def run(self, context: JobContext) -> dict[str, Any]:
        parts = self._parts
        if parts.mesh is None or (self._receiving is None and self._is_pull(context.args)):
            raise UsageError("A sync needs the other site.", hint="Start the node with `replicator up`.")
        sync = order_of(context.args, parts)
        try:
            # What the peer is fetching may be deleted here meanwhile.
            async with pinned(parts.store, f"sync with {parts.catalog.peers.name_of(sync.peer)}"):
                with self.walks.kept():
                    return await self._work(sync, context)
        except ProtocolError as error:
            raise self._noted(sync, PeerError(f"{parts.catalog.peers.name_of(sync.peer)}: {error.why}.")) from error
        except ReplicatorError as error:
            raise self._noted(sync, error) from None

    def _is_pull(self, args: dict[str, Any]) -> bool:
        return order_of(args, self._parts).terms.direction == PULL

    def _noted(self, sync: SiteSync, error: ReplicatorError) -> ReplicatorError:
        """A standing order is never given up: not even one that a person has to look at."""
        if sync.sync_id:
            jitter = fraction(self._parts.entropy)
            again = next_try_ns(self._parts.clock.now_ns(), sync.failures, jitter=jitter)
            self._parts.catalog.note_sync_result(
                sync.sync_id, error=str(error), next_try_ns=again, needs_person=not error.retryable
            )
        return error

    async def _work(self, sync: SiteSync, context: JobContext) -> dict[str, Any]:
        done: list[dict[str, Any]] = []
        tried: set[bytes] = set()
        failed: list[ReplicatorError] = []
        left_s = self._left_s(sync) if context.args.get("scheduled") else _FOR_EVER
        with trio.move_on_after(left_s) as window:
            while (item := await self._next(sync, context, tried)) is not None:
                tried.add(item.record.snapshot_id)
                async with self.line.turn(sync.peer, priority=sync.terms.priority, who=sync.sync_id or context.job_id):
                    try:
                        one = await self._bring_stubbornly(sync, item, context)
                    except (PeerError, StoreError) as error:
                        failed.append(error)
                        self._behind.setdefault(sync.sync_id, set()).add(item.record.snapshot_id)
                        if not self._may_go_on(sync, failed):
                            raise
                        continue
                if one is not None:
                    done.append(one)
        if failed:
            raise failed[0]
        if sync.sync_id and not window.cancelled_caught:
            self._parts.catalog.note_sync_result(sync.sync_id, error="")
        return {
            "sync": sync.sync_id,
            "peer": self._parts.catalog.peers.name_of(sync.peer),
            "direction": sync.terms.direction,
            "snapshots_sent": len(done),
            "sent": done,
            "cut_by_window": window.cancelled_caught,
        }

    def _may_go_on(self, sync: SiteSync, failed: Sequence[ReplicatorError]) -> bool:
        """Whether to go on with the next snapshot: one that nobody can read any more must not hold up those that are
        whole. Without a link none of them comes over; and who fails at many in a row fails at all."""
        assert self._parts.mesh is not None
        return self._parts.mesh.link_to(sync.peer) is not None and len(failed) < _FAILED_MAX

    def _left_s(self, sync: SiteSync) -> float:
        """Until the window closes. A sync that is in the middle is stopped there, and carries on in the next one."""
        now, hours = self._parts.clock.now_ns(), sync.terms.open_hours
        closes = hours.next_change_ns(now) if hours.at(now) else now
        return _FOR_EVER if closes is None else (closes - now) / 1e9

    async def _next(self, sync: SiteSync, context: JobContext, tried: set[bytes]) -> "Snapshot | Remote | None":
        """What to bring over now: looked up anew each time, since the newest is what counts.

        What could not be brought over last time comes last: a run that fails at many ends, and with those in front
        of it again no run would ever come to what is whole.
        """
        catalog = self._parts.catalog
        if sync.terms.direction == PULL:
            assert self._parts.mesh is not None
            context.progress.begin("asking what is new", unit="blocks")
            link = await self._parts.mesh.wait_link(sync.peer, seconds=_LINK_WAIT_S)
            # Somebody who asks for a snapshot by hand wants it, whatever became of it here before.
            have = catalog.has_snapshot if "fetch" in context.args else catalog.has_or_had
            remote = plan_pull(
                await list_remote(link),
                terms=sync.terms,
                is_ours=self._parts.catalog.is_own_key(self._parts.site_id),
                have=have,
            )
            wanted = context.args.get("snapshot", "")
            behind = self._failed_before(sync, {one.record.snapshot_id for one in remote})
            fresh = [
                one
                for one in sorted(remote, key=lambda one: one.record.snapshot_id in behind)
                if one.record.snapshot_id not in tried and one.record.snapshot_id.hex().startswith(wanted)
            ]
            if context.args.get("fetch") is not None:
                return self._one_of(fresh, tried)
            return fresh[0] if fresh else None
        if chosen := context.args.get("send"):
            snapshot = catalog.snapshot(bytes.fromhex(chosen))
            return None if snapshot.snapshot_id in tried else snapshot
        pending = pending_snapshots(catalog, sync, catalog.receipts())
        behind = self._failed_before(sync, {one.snapshot_id for one in pending})
        pending.sort(key=lambda one: one.snapshot_id in behind)
        return next((snapshot for snapshot in pending if snapshot.snapshot_id not in tried), None)

    def _failed_before(self, sync: SiteSync, wanted: Collection[bytes]) -> Collection[bytes]:
        """What of this an order has failed at. Anything else is forgotten."""
        behind = self._behind.get(sync.sync_id, set())
        behind.intersection_update(wanted)
        if not behind:
            self._behind.pop(sync.sync_id, None)
        return behind

    def _one_of(self, fresh: list[Remote], tried: set[bytes]) -> Remote | None:
        """A fetch without an order brings one snapshot: the newest that fits."""
        if tried:
            return None
        if not fresh:
            raise NotFound(
                "That peer lets us read no such snapshot that is not here already.",
                hint="What it may show us is decided there: `replicator pair policy`.",
            )
        return fresh[0]

    async def _bring_stubbornly(
        self, sync: SiteSync, item: "Snapshot | Remote", context: JobContext
    ) -> dict[str, Any] | None:
        """Wait for a link and begin; a link that breaks is waited for again, a few times.

        None if the snapshot was pruned or deleted here while it waited its turn, or is not wanted any more: that is
        nobody's failure.
        """
        assert self._parts.mesh is not None
        for tries_left in reversed(range(_TRIES)):
            context.progress.begin("waiting for the link", unit="blocks")
            link = await self._parts.mesh.wait_link(sync.peer, seconds=_LINK_WAIT_S)
            try:
                return await self._bring(link, sync, item, context)
            except PeerError as error:
                if isinstance(item, Snapshot) and not self._parts.catalog.has_snapshot(item.snapshot_id):
                    return None
                if not error.retryable or not tries_left:
                    raise
                context.progress.begin(f"the link broke, waiting for it ({tries_left} tries left)", unit="blocks")
                await trio.sleep(1)
        raise AssertionError("the last try raises or returns")

    async def _bring(
        self, link: Link, sync: SiteSync, item: "Snapshot | Remote", context: JobContext
    ) -> dict[str, Any] | None:
        # Whoever sends blocks ahead of a snapshot ends at once when somebody waits here.
        context.progress.begin(f"waiting for {link.name}", unit="blocks")
        async with link.bulk_turn:
            order = self._as_it_stands(sync)
            if order is None or not order.terms.wants(item.record):
                return None
            return await self._bring_now(link, order, item, context)

    def _as_it_stands(self, sync: SiteSync) -> SiteSync | None:
        """The order as it is by now; None if it has been ended. A job lives for hours when there is much to bring, and
        what somebody has excluded meanwhile, say another tenant's, must not be brought by the terms of this morning."""
        if not sync.sync_id:
            return sync
        return next((one for one in self._parts.catalog.syncs() if one.sync_id == sync.sync_id), None)

    async def _bring_now(
        self, link: Link, sync: SiteSync, item: "Snapshot | Remote", context: JobContext
    ) -> dict[str, Any]:
        parts = self._parts
        assert parts.mesh is not None
        plan: SyncPlan | None = None
        show = _shown_in(context.progress)
        done: Offered | Pulled
        ahead = SentAhead()
        if isinstance(item, Snapshot):
            plan = await self._plan(link, sync, item, context.progress)
            context.progress.begin(f"syncing {item.record.volume_name} to {link.name}", unit="blocks")
            wishes = Wishes(keep=sync.keep, prefix=sync.terms.prefix, is_passive=sync.terms.is_passive)
            every_s = self._promised_every_s(item.record.volume_id, sync)
            with parts.mesh.pacing.job(sync.peer, OUT, sync.terms.rate_bytes):
                done = await offer(link, item, every_s=every_s, job=context.job_id, on_progress=show, wishes=wishes)
            parts.catalog.add_receipt(item.snapshot_id, link.peer, encode(done.receipt))
            ahead = link.sent_ahead.pop(item.snapshot_id, SentAhead())
        else:
            assert self._receiving is not None
            context.progress.begin(f"fetching {item.record.volume_name} from {link.name}", unit="blocks")
            record = item.record

            def told(what: Told) -> None:
                nonlocal plan
                plan = self.planner.of_told(sync, record, what)

            with parts.mesh.pacing.job(sync.peer, IN, sync.terms.rate_bytes):
                done = await pull(
                    link,
                    item,
                    receiver=self._receiving.receiver,
                    pace=self._receiving.pace,
                    orphans=self._receiving.orphans,
                    job=context.job_id,
                    on_progress=show,
                    on_told=told,
                )
            self._keep_by_our_rule(sync, item.record)
            if not sync.sync_id:
                # Somebody asked for this very one: our rule must not take it away again in the same moment.
                parts.catalog.hold(item.record.snapshot_id, "fetched by hand")
            prune_volume(parts, parts.catalog.volume(item.record.volume_id))
        self.planner.note_rate(sync.peer, count=done.report.block_bytes, took_s=done.took_s)
        sent = describe_done(item.record, done, ahead=ahead)
        return {**sent, **compare(plan, sent)}

    def _keep_by_our_rule(self, sync: SiteSync, record: SnapshotRecord) -> None:
        """What is pulled is kept as the pull says: it is this site's own decision."""
        known = self._parts.catalog.copy_rules().get(record.volume_id)
        ours = (sync.keep, sync.terms.prefix, sync.terms.is_passive)
        if sync.sync_id and any(ours) and (known is None or (known.keep, known.prefix, known.is_passive) != ours):
            self._parts.catalog.set_copy_rule(
                record.volume_id, keep=sync.keep, prefix=sync.terms.prefix, is_passive=sync.terms.is_passive
            )

    async def _plan(self, link: Link, sync: SiteSync, item: Snapshot, progress: Progress) -> SyncPlan | None:
        """For the history. (A pull's plan comes with its difference.)"""
        progress.begin(f"planning with {link.name}", unit="blocks")
        try:
            with trio.move_on_after(_PLAN_S):
                return await self.planner.plan_push(link, sync, item)
        except (ReplicatorError, ProtocolError):
            return None  # The sync itself will say what is wrong.
        return None

    def _promised_every_s(self, volume_id: VolumeId, sync: SiteSync) -> int:
        if sync.terms.rpo_s:
            return max(1, int(sync.terms.rpo_s))
        if sync.terms.cron or sync.terms.windows:
            return 0  # The peer cannot know our hours, and a promise by the period alone would be a false alarm.
        for protection in self._parts.catalog.protections():
            if protection.volume_id == volume_id:
                return int(protection.every_s)
        return 0


def order_of(args: dict[str, Any], parts: Parts) -> SiteSync:
    """The standing order that a job is about, or one made for this once. Raises `NotFound`."""
    if "sync" in args:
        return parts.catalog.sync(args["sync"])
    peer = parts.catalog.peers.find(args["peer"]).site_id
    terms = SyncTerms(priority=0)  # Somebody is waiting for it.
    if "fetch" in args:
        terms = SyncTerms(priority=0, direction=PULL, volume=args["fetch"])
    return SiteSync("", EVERY_VOLUME, peer, "", False, None, "", 0, 0, terms)


def _shown_in(progress: Progress) -> Callable[[SyncProgress], None]:
    def show(seen: SyncProgress) -> None:
        progress.total = seen.blocks_known if seen.plan_is_complete else 0
        progress.set_done(seen.blocks_done)
        progress.detail = f"{format_size(seen.bytes_done)} sent"

    return show


def describe_done(record: SnapshotRecord, done: Offered | Pulled, *, ahead: SentAhead) -> dict[str, Any]:
    """What one snapshot took. `ahead`: what had gone before the offer, while it was being taken."""
    report = done.report
    return {
        "snapshot": record.snapshot_id.hex(),
        "volume": record.volume_name,
        "blocks": report.blocks_received,
        "blocks_twice": report.blocks_received_twice,
        "blocks_already_there": report.blocks_already_here,
        "block_bytes": report.block_bytes,
        "ahead_blocks": ahead.blocks,
        "ahead_bytes": ahead.sealed_bytes,
        "summary_bytes": report.diff_bytes,
        "summary_entries": report.diff_entries,
        "round_trips": report.round_trips,
        "from_base": bool(report.base_root),
        "link_bytes_out": done.link_bytes_out,
        "link_bytes_in": done.link_bytes_in,
        "took_s": round(done.took_s, 4),
        "rate_bytes": round(report.block_bytes / done.took_s) if done.took_s > 0 else 0,
    }


__all__ = ["Receiving", "SyncJobs", "describe_done", "order_of"]
