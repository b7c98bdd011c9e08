"""Getting data back."""

import os
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import trio

from replicator.catalog.records import SnapshotRecord
from replicator.core.errors import SourceError, UsageError
from replicator.core.paths import read_path
from replicator.jobs.parts import Parts
from replicator.jobs.pins import pinned
from replicator.jobs.runner import JobContext
from replicator.restore.diff import compare_tree
from replicator.restore.image import restore_image
from replicator.restore.tree import Restored, restore_tree

_LISTED_MAX = 200


class RestoreJobs:
    """Jobs of the kind `restore`: `{"snapshot", "target", "only", "overwrite", "dry_run"}`.

    Reading heals: a block that is broken here comes from a peer while the restore waits.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, context: JobContext) -> dict[str, Any]:
        """Under a pin: the snapshot may be deleted meanwhile, and even be collected without a grace."""
        async with pinned(self._parts.store, f"restore to {context.args['target']}"), self._healing():
            return await self._run(context)

    def _healing(self) -> AbstractAsyncContextManager[None]:
        healer = self._parts.healer
        return healer.reading() if healer is not None else nullcontext()

    async def _run(self, context: JobContext) -> dict[str, Any]:
        args = context.args
        record = self._parts.catalog.snapshot(bytes.fromhex(args["snapshot"])).record
        target = self._target(args["target"])
        only = _bytes_of(args["only"]) if args.get("only") else None
        if record.kind == "image" and only is not None:
            raise UsageError(f"{record.volume_name} is an image: it has no paths.", hint="Leave out --only.")
        if args.get("dry_run"):
            return await self._compare(record, target, only)
        began = trio.current_time()
        restored = await self._restore(record, target, only, context)
        return describe_restored(record, restored, took_s=trio.current_time() - began)

    def _target(self, text: str) -> Path:
        """Raises `UsageError` for a path that depends on where we are, or one among the node's own files."""
        target = Path(os.fsdecode(_bytes_of(text)))
        if not target.is_absolute():
            raise UsageError(f"{target} is not a whole path.", hint="Begin it with a slash.")
        own = self._parts.own_folder
        if own is not None and target.resolve().is_relative_to(own.resolve()):
            raise UsageError(
                f"{target} is in the node's own folder, {own.resolve()}.", hint="Restore to another place."
            )
        return target

    async def _restore(self, record: SnapshotRecord, target: Path, only: bytes | None, context: JobContext) -> Restored:
        parts, overwrite = self._parts, bool(context.args.get("overwrite"))
        if record.kind == "image":
            return await restore_image(
                parts.reader,
                record.root,
                target,
                size_bytes=record.size_bytes,
                block_bytes=record.block_bytes,
                overwrite=overwrite,
                offload=parts.offload,
                progress=context.progress,
            )
        return await restore_tree(
            parts.reader,
            record.root,
            target,
            only=only,
            overwrite=overwrite,
            as_root=os.geteuid() == 0,
            offload=parts.offload,
            progress=context.progress,
        )

    async def _compare(self, record: SnapshotRecord, target: Path, only: bytes | None) -> dict[str, Any]:
        if record.kind == "image":
            return await self._parts.offload.run(_compare_image, target)
        parts = self._parts
        found = await compare_tree(parts.reader, record.root, target, only=only, offload=parts.offload)
        return {
            "dry_run": True,
            "create_count": found.created,
            "change_count": found.changed,
            "same_count": found.same,
            "bytes_create": found.bytes_created,
            "bytes_change": found.bytes_changed,
            "create": [_text(path) for path in found.created_paths],
            "change": [_text(path) for path in found.changed_paths],
        }


def _bytes_of(text: str) -> bytes:
    try:
        return read_path(text)
    except ValueError:
        raise UsageError(f"{text!r} does not spell a path.", hint="After `hex:` come pairs of digits.") from None


def _compare_image(target: Path) -> dict[str, Any]:
    exists = target.exists()
    if exists and target.is_dir():
        raise SourceError(f"{target} is a folder, and an image is restored to a file.", hint="Name a file.")
    return {
        "dry_run": True,
        "create_count": int(not exists),
        "change_count": int(exists),
        "same_count": 0,
        "create": [] if exists else [str(target)],
        "change": [str(target)] if exists else [],
    }


def describe_restored(record: SnapshotRecord, restored: Restored, *, took_s: float) -> dict[str, Any]:
    return {
        "snapshot": record.snapshot_id.hex(),
        "volume": record.volume_name,
        "entries": restored.entries,
        "files": restored.files,
        "bytes_written": restored.bytes_written,
        "kept": restored.kept,
        "problems_count": len(restored.failed),
        "problems": [{"path": _text(one.path), "reason": one.reason} for one in restored.failed[:_LISTED_MAX]],
        "took_s": round(took_s, 3),
    }


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
