"""What the API's handlers for site syncs do, without any HTTP in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

from protocol.ids import VolumeId
from replicator.api.schema import IncomingRequest, SyncChange, SyncRequest
from replicator.catalog.catalog import EVERY_VOLUME
from replicator.catalog.retention import parse_keep
from replicator.catalog.terms import PULL, SyncTerms, check_terms
from replicator.core.errors import NotFound, Stalled, UsageError
from replicator.jobs.arrivals import quota_of, set_quota
from replicator.jobs.due import pending_snapshots
from replicator.jobs.parts import Parts
from replicator.jobs.plans import describe_plan
from replicator.jobs.pulls import Pulls
from replicator.jobs.replicate import SyncJobs, order_of
from replicator.jobs.runner import JobRunner
from replicator.monitor.status import describe_job
from replicator.monitor.syncs import SyncSources, describe_sync, queue
from replicator.net.mesh import Mesh
from replicator.sync.pull import list_remote, plan_pull

_LINK_S: Final = 5.0
_PLAN_S: Final = 300.0
_HISTORY_JOBS: Final = 1000


class SyncViews:
    """Site syncs as the API shows and changes them."""

    def __init__(
        self, parts: Parts, mesh: Mesh, jobs: JobRunner, syncs: SyncJobs, pulls: Pulls, *, wake: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._mesh = mesh
        self._jobs = jobs
        self._syncs = syncs
        self._pulls = pulls
        self._wake = wake
        self._sources = SyncSources(parts, mesh, jobs, pulls)

    # -- orders ---------------------------------------------------------------------------

    def all(self) -> list[dict[str, Any]]:
        now = self._parts.clock.now_ns()
        receipts = self._parts.catalog.receipts()
        return [describe_sync(self._sources, sync, now, receipts) for sync in self._parts.catalog.syncs()]

    def add(self, request: SyncRequest) -> dict[str, Any]:
        """A standing order. The same volume, peer and direction again changes its terms."""
        catalog = self._parts.catalog
        if bool(request.to) == bool(request.source):
            raise UsageError("A sync goes to a peer or comes from one.", hint="Say --to or --from.")
        peer = catalog.peers.find(request.to or request.source)
        volume_id, terms = self._terms(request)
        sync_id = catalog.add_sync(
            self._parts.entropy.token(4).hex(), volume_id=volume_id, peer=peer.site_id, keep=request.keep, terms=terms
        )
        self._wake()
        return describe_sync(self._sources, catalog.sync(sync_id), self._parts.clock.now_ns(), catalog.receipts())

    def _terms(self, request: SyncRequest) -> tuple[VolumeId, SyncTerms]:
        parse_keep(request.keep)
        volume_id = EVERY_VOLUME
        is_pull = bool(request.source)
        if request.volume and not is_pull:
            volume_id = self._parts.catalog.find_volume(request.volume).volume_id
        terms = SyncTerms(
            direction=PULL if is_pull else "push",
            volume=request.volume if is_pull else "",
            tenants=tuple(request.tenants),
            tags=tuple(request.tags),
            cron=request.cron,
            rpo_s=request.rpo_s,
            zone=request.zone,
            windows=request.windows,
            priority=request.priority,
            do_not_expire=request.do_not_expire,
            prefix=request.prefix,
            is_passive=request.passive,
            rate=request.rate,
        )
        check_terms(terms)
        return volume_id, terms

    def change(self, sync_id: str, change: SyncChange) -> dict[str, Any]:
        """Other terms for a standing order; what is not said stays."""
        import msgspec

        catalog = self._parts.catalog
        sync = catalog.sync(sync_id)
        said = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
        keep = said.pop("keep", sync.keep)
        parse_keep(keep)
        if "passive" in said:
            said["is_passive"] = said.pop("passive")
        for name in ("tenants", "tags"):
            if name in said:
                said[name] = tuple(said[name])
        terms = msgspec.structs.replace(sync.terms, **said)
        check_terms(terms)
        catalog.change_sync(sync_id, keep=keep, terms=terms)
        self._wake()
        return describe_sync(self._sources, catalog.sync(sync_id), self._parts.clock.now_ns(), catalog.receipts())

    def remove(self, sync_id: str) -> dict[str, Any]:
        self._parts.catalog.remove_sync(sync_id)
        self._cut(sync_id)
        return {"removed": sync_id}

    def pause(self, sync_id: str, *, paused: bool) -> dict[str, Any]:
        """A paused sync stops in the middle of what it does; going on carries on there."""
        self._parts.catalog.pause_sync(sync_id, paused=paused)
        if paused:
            self._cut(sync_id)
        self._wake()
        return {"sync_id": sync_id, "paused": paused}

    def _cut(self, sync_id: str) -> None:
        for view in self._jobs.running():
            if view.row.kind == "sync" and view.row.args.get("sync") == sync_id:
                self._jobs.cancel(view.row.job_id)

    # -- looking --------------------------------------------------------------------------

    def queue(self) -> list[dict[str, Any]]:
        return queue(self._sources, self._parts.clock.now_ns())

    def history(self, sync_id: str, *, limit: int) -> list[dict[str, Any]]:
        """Runs, newest first: with which peer, what was planned, and what it took."""
        if sync_id:
            self._parts.catalog.sync(sync_id)
        jobs = [
            view
            for view in self._jobs.views(limit=_HISTORY_JOBS)
            if view.row.kind == "sync" and sync_id in ("", view.row.args.get("sync", ""))
        ]
        return [
            describe_job(view) | {"peer": self._peer_of(view.row.args)} for view in jobs[: min(limit, _HISTORY_JOBS)]
        ]

    def _peer_of(self, args: dict[str, Any]) -> str:
        """Empty if the order, or the peer, is not known any more."""
        try:
            return self._parts.catalog.peers.name_of(order_of(args, self._parts).peer)
        except NotFound:
            return ""

    async def plan(self, sync_id: str) -> list[dict[str, Any]]:
        """What each snapshot that is still to go would take. Raises `NotFound`, `PeerError`."""
        sync = self._parts.catalog.sync(sync_id)
        with stalling_after(_PLAN_S):
            link = await self._mesh.wait_link(sync.peer, seconds=_LINK_S)
            found = []
            if sync.terms.direction == PULL:
                have = self._parts.catalog.has_or_had
                remote = plan_pull(
                    await list_remote(link),
                    terms=sync.terms,
                    is_ours=self._parts.catalog.is_own_key(self._parts.site_id),
                    have=have,
                )
                for one in remote[:_PLANNED_MAX]:
                    found.append((one.record, await self._syncs.planner.plan_pull(link, sync, one.record)))
            else:
                pending = pending_snapshots(self._parts.catalog, sync, self._parts.catalog.receipts())
                for snapshot in pending[:_PLANNED_MAX]:
                    found.append((snapshot.record, await self._syncs.planner.plan_push(link, sync, snapshot)))
        return [
            {"snapshot": record.snapshot_id.hex(), "volume": record.volume_name, **describe_plan(plan)}
            for record, plan in found
        ]

    # -- copies from elsewhere ------------------------------------------------------------

    def incoming(self) -> list[dict[str, Any]]:
        """Volumes that come from other sites, and what this site has decided about its copies."""
        catalog = self._parts.catalog
        rules = catalog.copy_rules()
        found = []
        for volume in catalog.volumes():
            if volume.path is not None:
                continue
            rule, here = rules.get(volume.volume_id), catalog.snapshots(volume.volume_id)
            found.append(
                {
                    "volume": volume.name,
                    "volume_id": volume.volume_id.hex(),
                    "from": catalog.peers.name_of(volume.origin),
                    "snapshots": len(here),
                    "last_received_s": None
                    if not here
                    else round((self._parts.clock.now_ns() - max(s.received_ns for s in here)) / 1e9, 3),
                    "keep": "" if rule is None else rule.keep,
                    "prefix": "" if rule is None else rule.prefix,
                    "passive": rule is not None and rule.is_passive,
                    "decided_by": "" if rule is None else _decider(self._parts, rule.decided_by),
                    "asked_keep": "" if rule is None else rule.asked_keep,
                    "quota": quota_of(catalog, volume.volume_id),
                }
            )
        return found

    def decide(self, request: IncomingRequest) -> dict[str, Any]:
        """What this site keeps of a volume from elsewhere."""
        catalog = self._parts.catalog
        volume = catalog.find_volume(request.volume)
        if volume.path is not None:
            raise UsageError(f"{volume.name} is protected here.", hint="Its keep rule is that of `replicator protect`.")
        known = catalog.copy_rules().get(volume.volume_id)
        keep = request.keep if request.keep is not None else ("" if known is None else known.keep)
        prefix = request.prefix if request.prefix is not None else ("" if known is None else known.prefix)
        passive = request.passive if request.passive is not None else (known is not None and known.is_passive)
        parse_keep(keep)
        check_terms(SyncTerms(prefix=prefix))
        if request.quota is not None:
            set_quota(catalog, volume.volume_id, request.quota)
        if (request.keep, request.prefix, request.passive) != (None, None, None) or request.quota is None:
            catalog.set_copy_rule(volume.volume_id, keep=keep, prefix=prefix, is_passive=passive)
        return next(one for one in self.incoming() if one["volume_id"] == volume.volume_id.hex())

    # -- once -----------------------------------------------------------------------------

    def once_args(self, args: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a one-time send or fetch, with names made ids. Raises `NotFound`."""
        catalog = self._parts.catalog
        if "send" in args:
            args = {**args, "send": catalog.find_snapshot(args["send"]).snapshot_id.hex()}
        if "peer" in args:
            args = {**args, "peer": catalog.peers.find(args["peer"]).site_id.hex()}
        if "sync" in args:
            catalog.sync(args["sync"])
        elif "peer" not in args or not ("send" in args or "fetch" in args):
            raise NotFound("A sync job is about a sync, or sends or fetches something.", hint="See `replicator sync`.")
        return args


@contextmanager
def stalling_after(seconds: float) -> Iterator[None]:
    """Raises `Stalled` if the block takes longer."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise Stalled(f"The plan was not finished within {seconds:.0f} s.", hint="Plan a single sync.") from None


_PLANNED_MAX: Final = 20
"""Snapshots of one plan: each takes a walk over its difference."""


def _decider(parts: Parts, decided_by: str) -> str:
    return decided_by if decided_by == "here" else parts.catalog.peers.name_of(bytes.fromhex(decided_by))
