"""Bringing snapshots to a peer."""

from typing import Any

import trio

from protocol.ids import SnapshotId, VolumeId
from protocol.messages.registry import encode
from protocol.messages.snapshots import SyncProgress
from replicator.catalog.model import SiteSync, Snapshot
from replicator.core.errors import NotFound, PeerError, ReplicatorError, UsageError
from replicator.core.ports import fraction
from replicator.core.units import format_size
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.jobs.scheduler import next_try_ns, pending_snapshots
from replicator.net.link import Link
from replicator.sync.offer import Offered, offer

_LINK_WAIT_S = 20.0
_TRIES = 5


class SyncJobs:
    """Jobs of the kind `sync`: `{"sync": id}` sends all that the peer has not signed for, newest first.

    A link that breaks in the middle is waited for and the snapshot offered again: the peer asks
    only for what it still lacks.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, context: JobContext) -> dict[str, Any]:
        parts = self._parts
        sync = self._find(context.args["sync"])
        try:
            return await self._send_pending(sync, context)
        except ReplicatorError as error:
            again = next_try_ns(parts.clock.now_ns(), sync.failures, jitter=fraction(parts.entropy))
            parts.catalog.note_sync_result(sync.sync_id, error=str(error), next_try_ns=again)
            raise

    def _find(self, sync_id: str) -> SiteSync:
        for sync in self._parts.catalog.syncs():
            if sync.sync_id == sync_id:
                return sync
        raise NotFound(f"There is no sync {sync_id!r}.", hint="`replicator sync list` shows them.")

    async def _send_pending(self, sync: SiteSync, context: JobContext) -> dict[str, Any]:
        parts = self._parts
        assert parts.mesh is not None
        sent: list[dict[str, Any]] = []
        tried: set[SnapshotId] = set()
        while True:
            pending = [
                snapshot
                for snapshot in pending_snapshots(parts.catalog, sync, parts.catalog.receipts())
                if snapshot.snapshot_id not in tried
            ]
            if not pending:
                break
            snapshot = pending[0]
            tried.add(snapshot.snapshot_id)
            context.progress.begin("waiting for the link", unit="blocks")
            done = await self._send_stubbornly(sync, snapshot, context)
            if done is not None:
                sent.append(done)
        parts.catalog.note_sync_result(sync.sync_id, error="")
        name = parts.catalog.peers.name_of(sync.peer)
        return {"sync": sync.sync_id, "peer": name, "snapshots_sent": len(sent), "sent": sent}

    async def _send_stubbornly(self, sync: SiteSync, snapshot: Snapshot, context: JobContext) -> dict[str, Any] | None:
        """Wait for a link and offer; a link that breaks is waited for again, a few times.

        None if the snapshot was pruned or deleted here while it waited its turn: that is nobody's failure.
        """
        assert self._parts.mesh is not None
        for tries_left in reversed(range(_TRIES)):
            link = await self._parts.mesh.wait_link(sync.peer, seconds=_LINK_WAIT_S)
            try:
                return await self._send(link, snapshot, context)
            except PeerError as error:
                if not self._parts.catalog.has_snapshot(snapshot.snapshot_id):
                    return None
                if not error.retryable or not tries_left:
                    raise
                context.progress.begin(f"the link broke, waiting for it ({tries_left} tries left)", unit="blocks")
                await trio.sleep(1)
        raise AssertionError("the last try raises or returns")

    async def _send(self, link: Link, snapshot: Snapshot, context: JobContext) -> dict[str, Any]:
        parts, record, progress = self._parts, snapshot.record, context.progress
        progress.begin(f"syncing {record.volume_name} to {link.name}", unit="blocks")

        def show(seen: SyncProgress) -> None:
            progress.total = seen.blocks_known if seen.plan_is_complete else 0
            progress.set_done(seen.blocks_done)
            progress.detail = f"{format_size(seen.bytes_done)} sent"

        promised = self._promised_every_s(record.volume_id)
        done = await offer(link, snapshot, every_s=promised, job=context.job_id, on_progress=show)
        parts.catalog.add_receipt(snapshot.snapshot_id, link.peer, encode(done.receipt))
        return describe_offered(snapshot, done)

    def _promised_every_s(self, volume_id: VolumeId) -> int:
        for protection in self._parts.catalog.protections():
            if protection.volume_id == volume_id:
                return int(protection.every_s)
        return 0


class AuditJobs:
    """Jobs of the kind `audit`: `{"snapshot": id, "peer": name}` compares both sites' blocks by Merkle summaries."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, context: JobContext) -> dict[str, Any]:
        parts = self._parts
        if parts.mesh is None:
            raise UsageError("An audit needs the other site.", hint="Start the node with `replicator up`.")
        record = parts.catalog.snapshot(bytes.fromhex(context.args["snapshot"])).record
        peer = parts.catalog.peers.find(context.args["peer"])
        context.progress.begin(f"comparing {record.volume_name} with {peer.name}", unit="blocks")
        link = await parts.mesh.wait_link(peer.site_id, seconds=_LINK_WAIT_S)
        done = await parts.auditor.compare(link, record)
        return {
            "snapshot": record.snapshot_id.hex(),
            "volume": record.volume_name,
            "peer": peer.name,
            "blocks": done.blocks,
            "shared": done.shared,
            "peer_lacks": len(done.peer_lacks),
            "peer_lacks_first": [block.hex() for block in done.peer_lacks[:20]],
            "we_lack": done.we_lack,
            "summary_bytes": done.summary_bytes,
            "round_trips": done.round_trips,
            "took_s": round(done.took_s, 4),
        }


def describe_offered(snapshot: Snapshot, done: Offered) -> dict[str, Any]:
    report = done.report
    return {
        "snapshot": snapshot.snapshot_id.hex(),
        "volume": snapshot.record.volume_name,
        "blocks": report.blocks_received,
        "blocks_twice": report.blocks_received_twice,
        "blocks_already_there": report.blocks_already_here,
        "block_bytes": report.block_bytes,
        "summary_bytes": report.diff_bytes,
        "summary_entries": report.diff_entries,
        "round_trips": report.round_trips,
        "from_base": bool(report.base_root),
        "link_bytes_out": done.link_bytes_out,
        "link_bytes_in": done.link_bytes_in,
        "took_s": round(done.took_s, 4),
        "rate_bytes": round(report.block_bytes / done.took_s) if done.took_s > 0 else 0,
    }


__all__ = ["AuditJobs", "SyncJobs", "describe_offered"]
