"""What the API's handlers do, without any HTTP in it."""

import os
import stat
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from protocol.ids import VolumeId
from replicator.api.mesh_views import MeshViews
from replicator.api.schema import DeletionRequest, JobRequest, ProtectRequest
from replicator.api.sync_views import SyncViews
from replicator.catalog.model import Snapshot, Volume
from replicator.catalog.retention import parse_keep
from replicator.core.errors import UsageError
from replicator.core.paths import read_path
from replicator.jobs.collection import switch_deletion
from replicator.jobs.pruning import plan_pruning
from replicator.monitor.metrics import render_metrics
from replicator.monitor.scrub import scrub_page
from replicator.monitor.status import StatusSources, describe_job, node_status
from replicator.net.pairing import INVITE_S, PairingCode, join
from replicator.restore.browse import list_folder

_TIMELY_S: Final = 1.0
_WAIT_S_MAX: Final = 1.0
"""How long an answer about a job may wait for its end: who waits longer asks again, also after a restart."""
_EVERY_MOST_S: Final = 520 * 7 * 86_400.0
"""Ten years. Anything can be typed, and what is stored is read again at every start."""
_LISTED_MAX: Final = 10_000


class NodeView:
    """The running node as its API shows it."""

    def __init__(
        self, sources: StatusSources, *, wake: Callable[[], None], sync_views: SyncViews, mesh_views: MeshViews
    ) -> None:
        self.syncs = sync_views
        self.mesh = mesh_views
        self._sources = sources
        self._parts = sources.parts
        self._mesh = sources.mesh
        self._jobs = sources.jobs
        self._wake = wake

    # -- looking --------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return node_status(self._sources)

    def metrics(self) -> bytes:
        return render_metrics(self.status)

    def peers(self) -> list[dict[str, Any]]:
        peers: list[dict[str, Any]] = self.status()["peers"]
        return peers

    def volumes(self) -> list[dict[str, Any]]:
        volumes: list[dict[str, Any]] = self.status()["volumes"]
        return volumes

    # -- pairing --------------------------------------------------------------------------

    def invite(self, *, minutes: float) -> dict[str, Any]:
        if not 0 < minutes <= 10:
            raise UsageError("A pairing code lives for up to 10 minutes.")
        parts = self._parts
        seconds = min(INVITE_S, minutes * 60)
        invite_id, secret = parts.entropy.token(16), parts.entropy.token(16)
        expires_ns = parts.clock.now_ns() + int(seconds * 1e9)
        parts.catalog.peers.add_invite(invite_id, secret, expires_ns=expires_ns)
        self._mesh.trust_changed()
        code = PairingCode(self._mesh.addresses, parts.site_id, invite_id, secret)
        return {"code": str(code), "expires_in_s": seconds, "addresses": list(self._mesh.addresses)}

    async def join(self, text: str) -> dict[str, Any]:
        code = PairingCode.parse(text)
        if code.inviter == self._parts.site_id:
            raise UsageError("This pairing code is this node's own.", hint="Use it on the other site.")
        welcome, reached = await join(
            code,
            self._mesh.identity,
            name=self._parts.site_name,
            addresses=self._mesh.addresses,
            network=self._mesh.network,
        )
        addresses = list(dict.fromkeys([reached, *welcome.addresses]))
        peer = self._parts.catalog.peers.add(welcome.site_id, name=welcome.name, addresses=addresses)
        self._mesh.trust_changed()
        return {"peer": peer.name, "site_id": peer.site_id.hex(), "addresses": list(peer.addresses)}

    def revoke(self, name: str) -> dict[str, Any]:
        peer = self._parts.catalog.peers.find(name)
        self._parts.catalog.peers.revoke(peer.site_id)
        self._mesh.trust_changed()
        return {"revoked": peer.name, "site_id": peer.site_id.hex()}

    # -- protecting -----------------------------------------------------------------------

    def protect(self, request: ProtectRequest) -> dict[str, Any]:
        """Make, or find by its path, a volume; set its promise; and see that it goes where it should."""
        parts = self._parts
        path = self._source(request.path)
        parse_keep(request.keep)
        peers = [parts.catalog.peers.find(name) for name in request.to]
        found = parts.sources.kind_at(path)
        kind = request.kind or found
        if kind not in ("tree", "image"):
            raise UsageError(f"{kind!r} is not a kind of volume.", hint="Kinds: tree, image.")
        if kind != found:
            what = "a folder" if found == "tree" else "not a folder"
            raise UsageError(
                f"{path} is {what}: it cannot be protected as {kind}.", hint=f"Leave out --kind, or say {found}."
            )
        _check_promise(request)
        known = [volume for volume in parts.catalog.volumes() if volume.path == os.fsencode(path)]
        if not known:
            parts.catalog.add_volume(self._new_volume(path, request, kind))
        volume = next(v for v in parts.catalog.volumes() if v.path == os.fsencode(path))
        # Each is durable by itself: no schedule may be on before it is said what to leave out, and whose it is.
        if request.exclude:
            parts.catalog.set_exclude(volume.volume_id, tuple(request.exclude))
        if request.tenant is not None:
            parts.catalog.set_tenant(volume.volume_id, request.tenant)
        parts.catalog.begin_protection(volume.volume_id)
        if request.every_s:
            parts.catalog.set_protection(volume.volume_id, every_s=request.every_s, keep=request.keep)
        syncs = [self._add_sync(volume.volume_id, peer.site_id) for peer in peers]
        self._wake()
        promise = next((one for one in parts.catalog.protections() if one.volume_id == volume.volume_id), None)
        return {
            "volume": volume.name,
            "volume_id": volume.volume_id.hex(),
            "kind": volume.kind,
            "every_s": 0 if promise is None else promise.every_s,
            "keep": "" if promise is None else promise.keep,
            "tenant": parts.catalog.tenant_of(volume.volume_id),
            "syncs": syncs,
        }

    def _source(self, text: str) -> Path:
        """Raises `UsageError` for what can never be a source."""
        path = _path_of(text)
        own = self._parts.own_folder
        if own is not None and path.resolve().is_relative_to(own.resolve()):
            raise UsageError(
                f"{path} is in the node's own folder, {own.resolve()}: storing it would store its key.",
                hint="Keep a copy of `identity.key` and `config.toml` elsewhere, by hand.",
            )
        return path

    def unprotect(self, text: str) -> dict[str, Any]:
        """End a volume's schedule and its syncs. Its snapshots stay, here and elsewhere."""
        volume = self._parts.catalog.find_volume(text)
        self._parts.catalog.end_protection(volume.volume_id)
        return {"volume": volume.name, "volume_id": volume.volume_id.hex()}

    def _new_volume(self, path: Path, request: ProtectRequest, kind: str) -> Volume:
        parts = self._parts
        wanted = request.name or os.fsencode(path.name).decode(errors="backslashreplace") or "root"
        taken = {volume.name for volume in parts.catalog.volumes()}
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}-{number}", number + 1
        return Volume(
            volume_id=VolumeId(parts.entropy.token(16)),
            name=name,
            kind=kind,
            origin=parts.site_id,
            path=os.fsencode(path),
            block_bytes=parts.ingest.image_block_bytes if kind == "image" else 0,
            exclude=tuple(request.exclude),
        )

    def _add_sync(self, volume_id: VolumeId, peer: bytes) -> str:
        return self._parts.catalog.add_sync(self._parts.entropy.token(4).hex(), volume_id=volume_id, peer=peer, keep="")

    # -- snapshots ------------------------------------------------------------------------

    def snapshots(self, volume: str) -> list[dict[str, Any]]:
        catalog = self._parts.catalog
        kept = {v.snapshot_id: v.reason for one in catalog.volumes() for v in plan_pruning(catalog, one)}
        volume_id = catalog.find_volume(volume).volume_id if volume else None
        receipts = catalog.receipts()
        holders: dict[bytes, list[str]] = {}
        for snapshot_id, site in receipts:
            holders.setdefault(snapshot_id, []).append(catalog.peers.name_of(site))
        return [
            {
                **self._describe(one, holders.get(one.snapshot_id, [])),
                "kept_because": kept.get(one.snapshot_id, ""),
            }
            for one in catalog.snapshots(volume_id)
        ]

    def snapshot(self, text: str) -> dict[str, Any]:
        catalog = self._parts.catalog
        found = catalog.find_snapshot(text)
        holders = [catalog.peers.name_of(site) for one, site in catalog.receipts() if one == found.snapshot_id]
        return self._describe(found, holders)

    def _describe(self, snapshot: Snapshot, holders: list[str]) -> dict[str, Any]:
        record = snapshot.record
        return {
            "snapshot": record.snapshot_id.hex(),
            "volume": record.volume_name,
            "volume_id": record.volume_id.hex(),
            "kind": record.kind,
            "origin": record.origin.hex(),
            "sequence": record.sequence,
            "taken_ns": record.taken_ns,
            "received_ns": snapshot.received_ns,
            "age_s": round((self._parts.clock.now_ns() - record.taken_ns) / 1e9, 3),
            "root": record.root.hex(),
            "size_bytes": record.size_bytes,
            "entries": record.entries,
            "skipped": record.skipped,
            "consistency": record.consistency,
            "tags": list(record.tags),
            "system_id": record.system_id.hex(),
            "held": snapshot.held,
            "held_by": sorted(holders),
        }

    async def entries(self, text: str, path: str) -> list[dict[str, Any]]:
        record = self._parts.catalog.find_snapshot(text).record
        if record.kind != "tree":
            raise UsageError(f"{record.volume_name} is an image: it has no paths.")
        listed: list[dict[str, Any]] = []
        async with aclosing(list_folder(self._parts.reader, record.root, _bytes_of(path))) as folder:
            async for one in folder:
                entry = one.entry
                name = one.path.decode(errors="backslashreplace")
                listed.append(
                    {"name": name, "mode": stat.filemode(entry.mode), "size": entry.size, "mtime_ns": entry.mtime_ns}
                )
                if len(listed) >= _LISTED_MAX:
                    break
        return listed

    def delete_snapshot(self, text: str) -> dict[str, Any]:
        found = self._parts.catalog.find_snapshot(text)
        forget = self._parts.catalog.delete_snapshots
        self._parts.ballast.with_room("deleting a snapshot", lambda: forget([found.snapshot_id]))
        return {"deleted": found.snapshot_id.hex(), "volume": found.record.volume_name}

    def hold(self, text: str, reason: str) -> dict[str, Any]:
        found = self._parts.catalog.find_snapshot(text)
        self._parts.catalog.hold(found.snapshot_id, reason)
        return {"snapshot": found.snapshot_id.hex(), "held": reason}

    # -- jobs -----------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> dict[str, Any]:
        args = dict(request.args)
        if request.kind == "snapshot":
            names = args.pop("names", [])
            chosen = [self._parts.catalog.find_volume(name) for name in names] if names else self._own_volumes()
            args["volumes"] = [volume.volume_id.hex() for volume in chosen]
        if request.kind == "sync":
            args = self.syncs.once_args(args)
        if request.kind == "foretell":
            found = [self._parts.catalog.find_snapshot(text) for text in args.pop("names", [])]
            args["snapshots"] = [one.snapshot_id.hex() for one in found]
        if request.kind in ("restore", "verify", "audit") and args.get("snapshot"):
            args["snapshot"] = self._parts.catalog.find_snapshot(args["snapshot"]).snapshot_id.hex()
        job_id = request.job_id or self._parts.entropy.token(8).hex()
        return describe_job(self._jobs.submit(request.kind, args, job_id=job_id))

    def _own_volumes(self) -> list[Volume]:
        """What a snapshot without names takes: all that has a path here, and was not let go by `unprotect`."""
        catalog = self._parts.catalog
        return [one for one in catalog.volumes() if one.path is not None and not catalog.is_ended(one.volume_id)]

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        return [describe_job(view) for view in self._jobs.views(limit=min(limit, 1000))]

    async def job(self, job_id: str, *, wait_s: float) -> dict[str, Any]:
        """A job; if it ends within `wait_s`, as it has ended."""
        return describe_job(await self._jobs.view_soon(job_id, wait_s=min(wait_s, _WAIT_S_MAX)))

    def cancel(self, job_id: str) -> dict[str, Any]:
        self._jobs.cancel(job_id)
        return {"cancelling": job_id}

    def repairs(self, limit: int) -> list[dict[str, Any]]:
        return [
            {
                "at_ns": line.at_ns,
                "block": line.block_id.hex(),
                "cause": line.cause,
                "role": line.role,
                "peer": line.peer,
                "outcome": line.outcome,
                "took_s": round(line.took_s, 4),
            }
            for line in self._parts.catalog.repairs(limit=min(limit, 100_000))
        ]

    def scrub(self) -> dict[str, Any]:
        return scrub_page(self._parts, with_segments=True)

    def switch_deletion(self, request: DeletionRequest) -> dict[str, Any]:
        return switch_deletion(self._parts, is_off=request.is_off, reason=request.reason)


def _check_promise(request: ProtectRequest) -> None:
    if request.every_s:
        if not _TIMELY_S <= request.every_s <= _EVERY_MOST_S:
            raise UsageError(
                f"A snapshot every {request.every_s:g} s cannot be promised.", hint="From 1s up to 520w (ten years)."
            )
    elif request.keep:
        raise UsageError("A keep rule belongs to a schedule.", hint="Say how often with --every.")


def _bytes_of(text: str) -> bytes:
    try:
        return read_path(text)
    except ValueError:
        raise UsageError(f"{text!r} does not spell a path.", hint="After `hex:` come pairs of digits.") from None


def _path_of(text: str) -> Path:
    """A whole path: one that depends on where somebody is means another thing to the node."""
    path = os.fsdecode(_bytes_of(text))
    if not os.path.isabs(path):
        raise UsageError(f"{path!r} is not a whole path.", hint="Begin it with a slash.")
    return Path(os.path.abspath(path))
