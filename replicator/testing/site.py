"""A site of a memory mesh, with the verbs that a test speaks in."""

from collections.abc import Sequence
from typing import Any

import trio

from protocol.ids import BlockId
from replicator.api.schema import JobRequest, ProtectRequest
from replicator.api.views import NodeView
from replicator.app.node import LivingNode
from replicator.catalog.catalog import Catalog
from replicator.core.errors import JobError, ReplicatorError, Unreachable
from replicator.restore.memory import read_image, read_tree
from replicator.testing.machine import MemoryMachine
from replicator.testing.power import PowerCut
from replicator.testing.sources import MemorySources


class MemorySite:
    """One site: its machine, and the node that runs on it while it is up."""

    def __init__(self, machine: MemoryMachine, nursery: trio.Nursery) -> None:
        self.machine = machine
        self._nursery = nursery
        self._node: LivingNode | None = None
        self._scope = trio.CancelScope()
        self.down = trio.Event()
        self.down.set()

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def sources(self) -> MemorySources:
        """What this site could protect: the content of each path."""
        return self.machine.sources

    @property
    def node(self) -> LivingNode:
        """The node, which must be up."""
        if self._node is None:
            raise Unreachable(f"{self.name} is down.", hint="Start it with `await site.start()`.")
        return self._node

    @property
    def is_up(self) -> bool:
        return self._node is not None

    @property
    def view(self) -> NodeView:
        """Everything that the node's API can do, without HTTP."""
        return self.node.view

    @property
    def catalog(self) -> Catalog:
        return self.node.parts.catalog

    # -- up and down ----------------------------------------------------------------------

    async def start(self) -> None:
        """Switch on. Returns when the node listens."""
        assert self.down.is_set(), f"{self.name} is up already"
        self.down = trio.Event()
        await self._nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._scope = trio.CancelScope()
        try:
            with self._scope:
                goes_on = await self._live(task_status)
                while goes_on:
                    try:
                        goes_on = await self._live(trio.TASK_STATUS_IGNORED)
                    except ReplicatorError:
                        # As a process ends that meets a full disk when it puts itself together anew.
                        break
        except* PowerCut:
            pass  # what was durable is on the machine
        finally:
            self._node = None
            self.down.set()

    async def _live(self, task_status: trio.TaskStatus[None]) -> bool:
        """One life; says whether the next one follows at once, with another key."""
        with self.machine.switched_on(on_cut=self._scope.cancel) as base, LivingNode(base) as node:
            listener = await node.mesh.listen()
            async with trio.open_nursery() as nursery:
                await nursery.start(node.serve, listener)
                self._node = node
                task_status.started()
                await node.stop.wait()
                await node.say_goodbye()
                self._node = None
                nursery.cancel_scope.cancel()
        return node.has_new_key

    async def stop(self) -> None:
        """Stop as a service is stopped: peers are told."""
        await self.node.say_goodbye()
        self._scope.cancel()
        await self.down.wait()

    async def crash(self) -> None:
        """Pull the plug. What was committed is there at the next start; peers are told nothing."""
        self.machine.power.cut()
        await self.down.wait()

    # -- what a user does -----------------------------------------------------------------

    def protect(
        self, path: str, *, every_s: float = 0.0, keep: str = "", to: Sequence[str] = (), tenant: str | None = None
    ) -> str:
        """Protect a path of `sources`; returns the volume's name."""
        request = ProtectRequest(path=path, every_s=every_s, keep=keep, to=list(to), tenant=tenant)
        return str(self.view.protect(request)["volume"])

    async def job(self, kind: str, **args: Any) -> dict[str, Any]:
        """Run a job to its end and return its result. Raises `JobError` with the job's own error."""
        job_id = self.view.submit(JobRequest(kind=kind, args=args))["job_id"]
        row = await self.node.jobs.wait(job_id)
        if row.state != "done" or row.result is None:
            error = row.error or {"message": f"The job was {row.state}.", "code": row.state}
            raise JobError(f"{kind} at {self.name}: {error['message']}", hint=error.get("hint", ""))
        return row.result

    async def snapshot(self, volume: str) -> str:
        """Take a snapshot; returns its id."""
        done = await self.job("snapshot", names=[volume])
        return str(done["snapshots"][0]["snapshot"])

    async def wait_held(self, snapshot: str, *, by: "MemorySite", seconds: float = 60.0) -> None:
        """Until the other site has signed that it holds this snapshot. Raises `trio.TooSlowError`."""
        wanted = (bytes.fromhex(snapshot), by.machine.identity.site_id)
        with trio.fail_after(seconds):
            while wanted not in self.catalog.receipts():  # noqa: ASYNC110  (a receipt has no event)
                await trio.sleep(0.05)

    async def restore(self, snapshot: str) -> dict[str, bytes] | bytes:
        """The content of a snapshot, proven: the files of a tree by their path, or the bytes of an image.

        Blocks that are broken here are healed from peers on the way. Raises `BlockMissing`.
        """
        parts = self.node.parts
        record = parts.catalog.find_snapshot(snapshot).record
        if record.kind == "image":
            return await read_image(
                parts.reader, record.root, size_bytes=record.size_bytes, block_bytes=record.block_bytes
            )
        tree = await read_tree(parts.reader, record.root)
        return {path.decode(errors="surrogateescape"): body for path, (entry, body) in tree.items() if entry.is_file}

    # -- what happens to it ---------------------------------------------------------------

    def blocks(self) -> list[BlockId]:
        """The blocks on its disk, in the order of their ids."""
        return self.machine.disk.blocks()

    def rot(self, block: BlockId, *, bit: int = 1000) -> None:
        """Flip a bit of a block at rest. Nobody is told."""
        self.machine.disk.rot(block, bit=bit)

    def lose(self, block: BlockId) -> None:
        """Lose the bytes of a block. Nobody is told."""
        self.machine.disk.lose(block)
