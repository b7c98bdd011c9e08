"""A job on the store of a node that is down: without peers, so nothing can be mended."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio

from replicator.app.cli.output import Output
from replicator.app.node import open_node
from replicator.core.nursery import open_work_nursery
from replicator.core.progress import Progress
from replicator.jobs.kinds import job_kinds
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext

_SHOW_S = 0.2


def run_on_store(root: Path, output: Output, kind: str, args: dict[str, Any], *, job_id: str) -> dict[str, Any]:
    """Run it here, show its progress, and give its result."""
    with open_node(root) as parts:
        if args.get("snapshot"):
            args = {**args, "snapshot": parts.catalog.find_snapshot(args["snapshot"]).snapshot_id.hex()}
        return trio.run(partial(_run, parts, output, kind, args, job_id))


async def _run(parts: Parts, output: Output, kind: str, args: dict[str, Any], job_id: str) -> dict[str, Any]:
    context = JobContext(job_id, kind, args, Progress(clock=time.monotonic))

    async def show() -> None:
        while True:
            await trio.sleep(_SHOW_S)
            output.progress(kind, asdict(context.progress.view()))

    async with open_work_nursery() as nursery:
        nursery.start_soon(show)
        result = await job_kinds(parts)[kind].run(context)
        nursery.cancel_scope.cancel()
    return result
