"""Blocks that are sent ahead of a snapshot: a saving when all goes well, and nothing else ever."""

import random
from contextlib import nullcontext
from typing import Any

import msgspec.structs as structs
import pytest
import trio

from protocol.ids import SnapshotId, VolumeId
from protocol.messages.blocks import BlocksSent
from protocol.messages.mesh import EarlyBlocks, Noted, ProbeAnswer, ProbeBlocks
from protocol.messages.registry import Message
from protocol.wire.envelope import seal, seal_named
from protocol.wire.frames import Lane
from protocol.wire.hashing import Kind, block_id
from replicator.core.errors import PeerError, Stalled
from replicator.ingest.sealer import Sealer
from replicator.jobs import ahead as of_jobs
from replicator.net.link import Link
from replicator.store.memory import MemoryStore
from replicator.store.ports import SealedBlock
from replicator.sync import early
from replicator.testing import MemoryMesh, MemorySite, run_in_virtual_time

LARGE = 12 * 1024 * 1024
PATH = "/disk.img"


def content(seed: int, size: int = LARGE) -> bytes:
    return random.Random(seed).randbytes(size)


async def a_pair(mesh: MemoryMesh) -> tuple[MemorySite, MemorySite, str]:
    home, cabin = await mesh.add("home"), await mesh.add("cabin")
    await mesh.pair(home, cabin)
    home.sources[PATH] = content(1)
    return home, cabin, home.protect(PATH, to=["cabin"])


def sent(home: MemorySite) -> list[dict[str, Any]]:
    """What each sync of the site says it has brought over, oldest first."""
    jobs = [view.row for view in home.node.jobs.views(limit=20)]
    return [one for row in reversed(jobs) if row.kind == "sync" and row.result for one in row.result["sent"]]


def test_a_large_snapshot_has_gone_ahead_when_it_is_offered_and_no_block_goes_twice() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, volume = await a_pair(mesh)
            snapshot = await home.snapshot(volume)
            await home.wait_held(snapshot, by=cabin)
            await trio.sleep(1)
            [one] = sent(home)
            assert one["blocks"] + one["blocks_already_there"] == LARGE // 65536
            assert one["blocks"] < LARGE // 65536 // 2
            assert one["blocks_twice"] == 0 and one["ahead_bytes"] > 0.9 * LARGE - one["block_bytes"]
            assert one["planned"]["blocks"] == one["actual"]["blocks"], "nothing of what went ahead is to go again"
            assert one["planned"]["bytes"] == pytest.approx(one["actual"]["bytes"], rel=0.05)
            assert one["planned"]["seed_share"] == pytest.approx(0.0, abs=0.01), "what we sent was not there before"
            [link] = home.node.mesh.connected()
            assert LARGE < link.statistics().bytes_out < 1.1 * LARGE
            assert not link.sent_ahead and not link.bulk_turn.locked()
            assert await cabin.restore(snapshot) == content(1)

    run_in_virtual_time(story, seed=1)


def test_a_small_snapshot_is_only_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_early(monkeypatch)

    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, volume = await a_pair(mesh)
            home.sources[PATH] = content(2, 1024 * 1024)
            await home.wait_held(await home.snapshot(volume), by=cabin)
        assert asked == []

    run_in_virtual_time(story, seed=1)


def test_a_site_may_be_told_to_send_small_snapshots_ahead_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_early(monkeypatch)

    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin = await mesh.add("home", ahead_from="64KiB"), await mesh.add("cabin")
            await mesh.pair(home, cabin)
            home.sources[PATH] = content(2, 1024 * 1024)
            snapshot = await home.snapshot(home.protect(PATH, to=["cabin"]))
            await home.wait_held(snapshot, by=cabin)
            assert await cabin.restore(snapshot) == content(2, 1024 * 1024)
        assert len(asked) == 1

    run_in_virtual_time(story, seed=1)


@pytest.mark.parametrize("why", ["paused", "cron", "another volume", "only a tag"])
def test_nothing_goes_ahead_of_a_sync_that_would_not_bring_it_over_now(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    asked = count_early(monkeypatch)

    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, _, volume = await a_pair(mesh)
            [sync] = home.catalog.syncs()
            change = {"cron": "0 3 * * *"} if why == "cron" else {"tags": ("kept",)}
            if why == "another volume":
                home.sources["/other.img"] = content(3)
                volume = home.protect("/other.img")
            elif why == "paused":
                home.catalog.pause_sync(sync.sync_id, paused=True)
            else:
                home.catalog.change_sync(sync.sync_id, keep="", terms=structs.replace(sync.terms, **change))
            await home.snapshot(volume)
        assert asked == []

    run_in_virtual_time(story, seed=1)


def count_early(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    asked: list[Message] = []
    real = early.EarlyReceiver.asked

    async def noted(self: early.EarlyReceiver, stream: Any, request: Message) -> None:
        asked.append(request)
        await real(self, stream, request)

    monkeypatch.setattr(early.EarlyReceiver, "asked", noted)
    return asked


def test_a_line_that_breaks_meanwhile_does_not_touch_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    real = early.EarlySender._answer

    async def breaks(self: early.EarlySender, stream: Any, batch: Any) -> None:
        await real(self, stream, batch)
        if self.report.blocks > 64:
            raise Stalled("the line broke")

    monkeypatch.setattr(early.EarlySender, "_answer", breaks)

    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, volume = await a_pair(mesh)
            snapshot = await home.snapshot(volume)
            await home.wait_held(snapshot, by=cabin)
            await trio.sleep(1)
            [one] = sent(home)
            assert 0 < one["blocks"] < LARGE // 65536
            assert await cabin.restore(snapshot) == content(1)

    run_in_virtual_time(story, seed=1)


def test_a_sync_does_not_wait_for_what_is_sent_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender is asked to go on for ever; the sync that waits ends it."""
    monkeypatch.setattr(early.EarlySender, "end", lambda self: None)
    monkeypatch.setattr(of_jobs, "PEERS_MAX", 1)

    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, volume = await a_pair(mesh)
            snapshot: list[str] = []

            async def take() -> None:
                snapshot.append(await home.snapshot(volume))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                with trio.fail_after(60):
                    while not cabin.catalog.snapshots():  # noqa: ASYNC110  (another site's catalogue has no event)
                        await trio.sleep(0.1)

    run_in_virtual_time(story, seed=1)


def test_blocks_that_come_one_by_one_are_asked_about_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image of which few blocks have changed: a question and an answer for each cost more than the blocks."""
    asked: list[int] = []
    real = early._Taking._probed
    monkeypatch.setattr(early._Taking, "_probed", lambda self, ids: (asked.append(len(ids)), real(self, ids))[1])
    bodies = [content(number, 64 * 1024) for number in range(40)]

    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, _, _ = await a_pair(mesh)
            [link] = home.node.mesh.connected()
            sender = early.EarlySender(
                link=link, volume_id=VolumeId(bytes(16)), snapshot_id=SnapshotId(bytes(16)), pace=nullcontext,
                from_bytes=1024 * 1024,
            )  # fmt: skip
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.run)
                for body in bodies:
                    name = block_id(Kind.DATA, body)
                    sender.add([SealedBlock(*seal_named(Kind.DATA, body, name))])
                    sender.wake()
                    await trio.sleep(1)
                before_the_end = sum(asked)
                sender.end()
            assert (sender.report.blocks, sender.report.left_blocks) == (40, 0), "the rest goes at the end"
            assert before_the_end == 32 and len(asked) == 3

    run_in_virtual_time(story, seed=1)


def test_what_nobody_has_asked_for_ends_the_stream_and_is_not_kept() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, _ = await a_pair(mesh)
            [link] = home.node.mesh.connected()
            asked, other = seal(Kind.DATA, b"asked"), seal(Kind.DATA, b"not asked")
            before = cabin.blocks()
            with pytest.raises(PeerError):
                async with talk(link) as stream:
                    await stream.send(ProbeBlocks(ids=block_id(Kind.DATA, b"asked")))
                    assert await stream.receive() == ProbeAnswer(lacking=b"\x01")
                    await stream.send_blocks([asked, other])
                    await stream.send(Noted(), end=True)
                    await stream.receive()
            assert cabin.blocks() == before
            with pytest.raises(PeerError):
                async with talk(link) as stream:
                    await stream.send(BlocksSent(missing=b""))
                    await stream.receive()
            assert link.is_open

    run_in_virtual_time(story, seed=1)


def test_one_who_announces_without_end_is_stopped() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, _, _ = await a_pair(mesh)
            [link] = home.node.mesh.connected()
            with pytest.raises(PeerError):
                async with talk(link) as stream:
                    for number in range(1000):
                        ids = b"".join(block_id(Kind.DATA, b"%d %d" % (number, at)) for at in range(1000))
                        await stream.send(ProbeBlocks(ids=ids))
                        await stream.receive()

    run_in_virtual_time(story, seed=1)


def test_a_collection_leaves_what_is_coming_in_and_takes_it_when_no_snapshot_has_come() -> None:
    async def story() -> None:
        async with MemoryMesh() as mesh:
            home, cabin, _ = await a_pair(mesh)
            [link] = home.node.mesh.connected()
            name = block_id(Kind.DATA, b"early")
            async with talk(link) as stream:
                await stream.send(ProbeBlocks(ids=name))
                await stream.receive()
                await stream.send_blocks([seal(Kind.DATA, b"early")])
                await stream.send(ProbeBlocks(ids=name))
                await stream.receive()
                assert "blocks sent ahead by home" in cabin.node.parts.store.holders()
                await stream.send(Noted(), end=True)
                assert await stream.receive() == Noted()
            await trio.sleep(1)
            assert name in cabin.blocks()
            assert cabin.node.parts.store.holders() == []

    run_in_virtual_time(story, seed=1)


def talk(link: Link) -> Any:
    return link.open(EarlyBlocks(volume_id=bytes(16)), lane=Lane.SYNC, end=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_taking", [True, False])
def test_pages_of_what_goes_ahead_are_handed_back(monkeypatch: pytest.MonkeyPatch, is_taking: bool) -> None:
    class Taker:
        def __init__(self) -> None:
            self.is_taking = is_taking
            self.names: list[bytes] = []

        def add(self, blocks: Any) -> None:
            self.names += [block.header.block_id for block in blocks]

        def wake(self) -> None:
            raise AssertionError("not by a worker thread")

    store, taker = MemoryStore(), Taker()
    kept: list[bool] = []
    monkeypatch.setattr(store, "commit", lambda lease, *, keep_cached=True: kept.append(keep_cached))
    sealer = Sealer(store, store.begin("test"), commit_bytes=1, ahead=taker)
    data, node = block_id(Kind.DATA, b"data"), block_id(Kind.NODE, b"node")

    sealer.add(Kind.DATA, {data: b"data"})
    sealer.add(Kind.DATA, {data: b"data"})  # It is here by now.
    sealer.add(Kind.NODE, {node: b"node"})  # The receiver makes its own.
    sealer.commit()

    assert taker.names == [data]
    assert kept == [not is_taking]
