"""Comparing with a peer what both hold of a snapshot."""

from typing import Any

from replicator.core.errors import UsageError
from replicator.core.logging import get_logger
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext

_LINK_WAIT_S = 20.0


class AuditJobs:
    """Jobs of the kind `audit`: `{"snapshot": id, "peer": name}` compares both sites' blocks by Merkle summaries.

    What either side lacks it fetches meanwhile.

    `"fresh": true` makes both sites ask their ledgers anew, under a new key, as the weekly audit does.
    """

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
        done = await parts.auditor.compare(link, record, fresh=bool(context.args.get("fresh")))
        if done.peer_lacks or done.we_lack:
            get_logger().warning(
                "audit.differs",
                peer=peer.name,
                volume=record.volume_name,
                snapshot=record.snapshot_id.hex()[:12],
                peer_lacks=len(done.peer_lacks),
                we_lack=done.we_lack,
                mended=done.mended,
            )
        return {
            "snapshot": record.snapshot_id.hex(),
            "volume": record.volume_name,
            "peer": peer.name,
            "blocks": done.blocks,
            "shared": done.shared,
            "peer_lacks": len(done.peer_lacks),
            "peer_lacks_first": [block.hex() for block in done.peer_lacks[:20]],
            "we_lack": done.we_lack,
            "mended": done.mended,
            "summary_bytes": done.summary_bytes,
            "round_trips": done.round_trips,
            "took_s": round(done.took_s, 4),
        }
