"""A sender that falls silent while it tells a difference is not waited for, if somebody else has the snapshot."""

import os
import time
from pathlib import Path

import pytest
import trio

from protocol.messages.blocks import WantBlocks
from protocol.messages.registry import Message
from protocol.messages.snapshots import WantDiff
from replicator.core.progress import Progress
from replicator.jobs.runner import JobContext
from replicator.net.link import Stream
from replicator.sync.offer import Offered
from tests.e2e.test_orphans import Mesh, a_mesh
from tests.support.nodes import Site


class Mute:
    """Lets a site fall silent when it is to tell a difference: its link lives on, as over a disk that hangs."""

    def __init__(self, site: Site, *, after: int, serves_blocks: bool) -> None:
        self._after = after
        self._told = site.mesh.handlers[WantDiff]
        self.heard = trio.Event()
        self.wakes = trio.Event()
        self.blocks_asked = 0
        self._blocks = site.mesh.handlers[WantBlocks]
        self._serves_blocks = serves_blocks
        site.mesh.handlers.update({WantDiff: self.want_diff, WantBlocks: self.want_blocks})

    async def want_diff(self, stream: Stream, request: Message) -> None:
        honest, left = stream.send, self._after

        async def send(message: Message, *, end: bool = False) -> None:
            nonlocal left
            if left == 0:
                self.heard.set()
                await self.wakes.wait()
            left -= 1
            await honest(message, end=end)

        stream.send = send  # type: ignore[method-assign]
        await self._told(stream, request)

    async def want_blocks(self, stream: Stream, request: Message) -> None:
        self.blocks_asked += 1
        if not self._serves_blocks:
            await trio.sleep_forever()
        await self._blocks(stream, request)


async def offered(mesh: Mesh) -> Offered:
    with trio.fail_after(120):
        return await mesh.home.send(mesh.second, mesh.new)


@pytest.mark.parametrize(("after", "serves_blocks"), [(0, False), (2, False), (2, True)])
async def test_another_holder_takes_over_from_a_sender_that_says_nothing_more(
    tmp_path: Path, after: int, serves_blocks: bool
) -> None:
    """Before a word, and before the end, with blocks from it or without. It stays silent, and its link stays up."""
    async with a_mesh(tmp_path) as mesh:
        mute = Mute(mesh.home, after=after, serves_blocks=serves_blocks)
        done = await offered(mesh)
        assert mute.heard.is_set() and not mute.wakes.is_set()
        assert mesh.new.holds(mesh.second) and mesh.new.block_ids() == mesh.home.block_ids()
        assert done.report.blocks_received_twice == 0
        link = mesh.new.mesh.link_to(mesh.home.parts.site_id)
        assert link is not None and link.is_open, "nobody has waited for it to be declared dead"


async def test_what_nobody_else_has_is_told_by_the_sender_when_it_wakes(tmp_path: Path) -> None:
    async with a_mesh(tmp_path) as mesh:
        (tmp_path / "data" / "only-at-home").write_bytes(os.urandom(100_000))
        mesh.second = await mesh.home.take(mesh.volume)
        mute = Mute(mesh.home, after=1, serves_blocks=True)
        asked_others = Mute(mesh.one, after=0, serves_blocks=True)
        done: list[Offered] = []

        async def offer() -> None:
            done.append(await offered(mesh))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer)
            await mute.heard.wait()
            with trio.fail_after(60):
                while not asked_others.blocks_asked:  # noqa: ASYNC110  (what is waited for has no event)
                    await trio.sleep(0.05)
            assert not mesh.new.holds(mesh.second)
            mute.wakes.set()
        assert mesh.new.holds(mesh.second)
        assert done[0].report.diff_entries > 0 and done[0].report.blocks_received_twice == 0


async def test_a_pull_whose_difference_was_never_told_has_no_plan_rather_than_a_wrong_one(tmp_path: Path) -> None:
    async with a_mesh(tmp_path) as mesh:
        mute = Mute(mesh.home, after=2, serves_blocks=True)
        fetch = {"fetch": "data", "peer": "home"}
        context = JobContext("x", "sync", fetch, Progress(clock=time.monotonic))
        with trio.fail_after(120):
            [sent] = (await mesh.new.living._relations.syncs.run(context))["sent"]
        assert mute.heard.is_set() and mesh.new.holds(mesh.second)
        assert sent["planned"] is None and sent["actual"]["blocks"] > 0
