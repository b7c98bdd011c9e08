"""Syncing between two real sites over TLS: how little is sent, what a cut costs, and who is not believed."""

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from protocol.ids import split_ids
from protocol.messages.blocks import BlocksSent, WantBlocks
from protocol.messages.registry import Message
from protocol.messages.snapshots import DiffBase, DiffNames, OfferSnapshot, WantDiff
from replicator.catalog.model import Snapshot
from replicator.catalog.records import open_record, sign_record
from replicator.core.errors import NotFound, PeerError, ReplicatorError
from replicator.core.progress import Progress
from replicator.jobs.replicate import SyncJobs
from replicator.jobs.runner import JobContext
from replicator.net.address import split_address
from replicator.net.link import Stream
from replicator.restore.tree import restore_tree
from tests.support.blocks import from_body
from tests.support.nodes import Site, a_pair, open_site, running, tree_of, trust, wait_until, write_tree
from tests.support.proxy import a_proxy

KIB = 1024
Answer = Callable[[Stream, Message], Awaitable[None]]


async def give_back(site: Site, snapshot: Snapshot, target: Path) -> dict[str, bytes]:
    """What a restore at that site writes."""
    await restore_tree(
        site.parts.reader, snapshot.record.root, target, only=None, overwrite=False, as_root=os.geteuid() == 0,
        offload=site.parts.offload, progress=Progress(clock=trio.current_time),
    )  # fmt: skip
    return tree_of(target)


async def test_the_first_sync_sends_every_block_once_and_the_next_only_the_difference(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=60, size=40 * KIB)
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(folder)
        first = await home.take(volume)
        report = (await home.send(first, cabin)).report
        assert (report.blocks_received, report.blocks_received_twice, report.base_root) == (60, 0, b"")

        write_tree(folder, files=3, size=40 * KIB, seed=7)
        (folder / "file-0010").unlink()
        (folder / "copy").write_bytes((folder / "file-0020").read_bytes())
        second = await home.take(volume)
        done = await home.send(second, cabin)
        assert done.report.blocks_received == 3
        assert done.report.blocks_received_twice == 0
        assert done.report.base_root == first.record.root
        assert done.report.diff_entries <= 3 + 1 + 1 + 1  # The changed, the removed, the copy, the folder.
        assert done.link_bytes_out < 3 * 40 * KIB + 20 * KIB
        assert cabin.holds(second)
        assert await give_back(cabin, second, tmp_path / "back") == tree_of(folder)
        assert home.block_ids() == cabin.block_ids()


async def test_a_snapshot_without_a_change_sends_no_block_at_all(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=5, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(folder)
        await home.send(await home.take(volume), cabin)
        report = (await home.send(await home.take(volume), cabin)).report
        assert (report.blocks_received, report.diff_entries) == (0, 0)


async def test_the_newest_base_that_both_hold_is_chosen(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=5, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(folder)
        snapshots = []
        for seed in range(3):
            write_tree(folder, files=1, size=KIB, seed=seed + 1)
            snapshots.append(await home.take(volume))
            await home.send(snapshots[-1], cabin)
        # Home forgets its newest; cabin still offers it, and gets the one before.
        home.catalog.delete_snapshots([snapshots[-1].snapshot_id])
        write_tree(folder, files=1, size=KIB, seed=9)
        report = (await home.send(await home.take(volume), cabin)).report
        assert report.base_root == snapshots[1].record.root


async def test_a_snapshot_that_is_offered_again_is_signed_for_again_without_a_byte(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=5, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        first = await home.send(snapshot, cabin)
        again = await home.send(snapshot, cabin)
        assert again.report.blocks_received == 0
        assert again.receipt.received_at_ns == first.receipt.received_at_ns


async def test_a_copy_is_passed_on_to_a_third_site_that_never_met_the_origin(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=5, size=10 * KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        await home.send(snapshot, cabin)
        with open_site(tmp_path / "tower", "tower") as tower:
            async with running(tower):
                trust(cabin, tower)
                await cabin.send(cabin.catalog.snapshot(snapshot.snapshot_id), tower)
                assert await give_back(tower, snapshot, tmp_path / "back") == tree_of(folder)


@pytest.mark.parametrize("seed", range(3))
async def test_a_sync_that_is_cut_anywhere_carries_on_and_sends_little_twice(tmp_path: Path, seed: int) -> None:
    rnd = random.Random(seed)
    folder = write_tree(tmp_path / "data", files=150, size=60 * KIB)
    total = 150 * 60 * KIB
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin), a_proxy(lambda: cabin.mesh.address) as relay:
            trust(home, cabin, address=relay.address)
            snapshot = await home.take(home.protect(folder))
            cuts = 0
            received = 0
            while not cabin.holds(snapshot):
                await home.link_to(cabin)
                relay.bytes_left = None if cuts == 4 else rnd.randrange(200, 3_000_000)
                before = cabin.store.statistics().blocks
                try:
                    received += (await home.send(snapshot, cabin)).report.blocks_received
                except PeerError:
                    cuts += 1
                    await wait_until(lambda: not cabin.store.leases.holders())
                    received += cabin.store.statistics().blocks - before
            assert cuts >= 2
            in_flight_max = 4 * 8 * 1024 * KIB  # What one stream's credit lets through, times the requests.
            assert received * 60 * KIB <= total + cuts * in_flight_max
            # What a cut left behind was used: the sum of all attempts is one copy, but for what was in flight.
            assert cabin.block_ids() == home.block_ids()
            assert await give_back(cabin, snapshot, tmp_path / "back") == tree_of(folder)


async def test_what_a_cut_sync_had_stored_is_not_asked_for_again(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=400, size=60 * KIB)
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin), a_proxy(lambda: cabin.mesh.address) as relay:
            trust(home, cabin, address=relay.address)
            snapshot = await home.take(home.protect(folder))
            await home.link_to(cabin)
            relay.bytes_left = 18_000_000
            with pytest.raises(PeerError):
                await home.send(snapshot, cabin)
            await wait_until(lambda: not cabin.store.leases.holders())
            kept = len(cabin.store.commits._pending) + cabin.store.statistics().blocks
            assert kept > 0, "something had arrived by then"
            report = (await home.send(snapshot, cabin)).report
            assert report.blocks_received == 400 - kept
            assert report.blocks_received_twice == 0


async def test_both_sides_restart_in_the_middle_and_the_sync_still_ends_whole(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=150, size=60 * KIB)
    for round_number in range(2):
        with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
            async with running(home, cabin), a_proxy(lambda cabin=cabin: cabin.mesh.address) as relay:  # type: ignore[misc]
                trust(home, cabin, address=relay.address)
                if round_number == 0:
                    snapshot = await home.take(home.protect(folder))
                    await home.link_to(cabin)
                    relay.bytes_left = 4_000_000
                    with pytest.raises(PeerError):
                        await home.send(snapshot, cabin)
                else:
                    await home.send(home.catalog.snapshot(snapshot.snapshot_id), cabin)
                    assert await give_back(cabin, snapshot, tmp_path / "back") == tree_of(folder)


async def test_a_sync_job_skips_what_was_pruned_while_it_waited(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=2, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        sync_id = home.catalog.add_sync("s1", volume_id=b"", peer=cabin.parts.site_id, keep="")
        link = await home.link_to(cabin)
        original = home.mesh.wait_link

        async def wait_and_prune(site_id: object, *, seconds: float) -> object:
            home.catalog.delete_snapshots([snapshot.snapshot_id])
            home.mesh.wait_link = original  # type: ignore[method-assign]
            return link

        home.mesh.wait_link = wait_and_prune  # type: ignore[method-assign,assignment]
        context = JobContext("j", "sync", {"sync": sync_id}, Progress(clock=trio.current_time))
        result = await SyncJobs(home.parts).run(context)
        assert result["snapshots_sent"] == 0
        assert home.catalog.syncs()[0].failures == 0


# -- who is not believed ----------------------------------------------------------------------


async def refused_sync(tmp_path: Path, lie: Callable[[Site, Snapshot], dict[type[Message], Answer]]) -> Site:
    """Home lies; nothing is published at cabin, its node lives, and once home is honest the sync succeeds."""
    folder = write_tree(tmp_path / "data", files=20, size=20 * KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        honest = dict(home.mesh.handlers)
        home.mesh.handlers.update(lie(home, snapshot))
        with trio.fail_after(20), pytest.raises(ReplicatorError):
            await home.send(snapshot, cabin)
        await wait_until(lambda: not cabin.store.leases.holders())
        assert not cabin.holds(snapshot)
        assert cabin.catalog.snapshots() == []
        assert cabin.block_ids() <= home.block_ids(), "nothing that was not proven is kept"
        home.mesh.handlers.update(honest)
        await home.send(snapshot, cabin)
        assert await give_back(cabin, snapshot, tmp_path / "back") == tree_of(folder)
        return cabin


def blocks_lie(make: Callable[[list[bytes]], list[bytes]]) -> Callable[[Site, Snapshot], dict[type[Message], Answer]]:
    def lie(home: Site, _: Snapshot) -> dict[type[Message], Answer]:
        async def answer(stream: Stream, request: Message) -> None:
            assert isinstance(request, WantBlocks)
            answer = home.store.read_sealed(split_ids(request.ids))
            for run in make([bytes(run) for run in answer.runs]):
                await stream.send_blocks([run])
            await stream.send(BlocksSent(missing=b""), end=True)

        return {WantBlocks: answer}

    return lie


def with_wrong_body(runs: list[bytes]) -> list[bytes]:
    return [run[:-1] + bytes([run[-1] ^ 1]) for run in runs]


def with_a_stranger(runs: list[bytes]) -> list[bytes]:
    return [*runs, bytes(from_body(b"nobody asked for this").sealed)]


def cut_short(runs: list[bytes]) -> list[bytes]:
    return [run[:-10] for run in runs]


def with_one_left_out(runs: list[bytes]) -> list[bytes]:
    return runs[:-1]


def each_twice(runs: list[bytes]) -> list[bytes]:
    return [run for run in runs for _ in range(2)]


def no_blocks_at_all(runs: list[bytes]) -> list[bytes]:
    return [b"not a sealed block" for _ in runs]


@pytest.mark.parametrize(
    "make", [with_wrong_body, with_a_stranger, cut_short, with_one_left_out, each_twice, no_blocks_at_all]
)
async def test_blocks_that_are_not_what_was_asked_for_publish_nothing(
    tmp_path: Path, make: Callable[[list[bytes]], list[bytes]]
) -> None:
    await refused_sync(tmp_path, blocks_lie(make))


def difference_lie(
    tell: Callable[[Stream, Snapshot], Awaitable[None]],
) -> Callable[[Site, Snapshot], dict[type[Message], Answer]]:
    def lie(_: Site, snapshot: Snapshot) -> dict[type[Message], Answer]:
        async def answer(stream: Stream, request: Message) -> None:
            await tell(stream, snapshot)

        return {WantDiff: answer}

    return lie


async def that_leads_elsewhere(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""))
    await stream.send(DiffBase(base_root=snapshot.record.root), end=True)


async def with_a_base_that_nobody_has(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=bytes(32)), end=True)


async def without_an_end(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""), end=True)


async def that_begins_in_the_middle(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffNames(keys=(b"a",), values=(b"",)), end=True)


async def with_garbage_for_entries(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""))
    await stream.send(DiffNames(keys=(b"a", b"b"), values=(b"\xff\xfe", b"\x00")))
    await stream.send(DiffBase(base_root=snapshot.record.root), end=True)


async def with_keys_that_go_back(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""))
    await stream.send(DiffNames(keys=(b"b", b"a"), values=(b"", b"")))
    await stream.send(DiffBase(base_root=snapshot.record.root), end=True)


async def with_fewer_values_than_keys(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""))
    await stream.send(DiffNames(keys=(b"a", b"b"), values=(b"",)), end=True)


async def that_never_ends(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""))
    number = 0
    while True:
        keys = tuple(b"%012d" % (number + one) for one in range(500))
        await stream.send(DiffNames(keys=keys, values=tuple(b"" for _ in keys)))
        number += 500


async def of_nothing_that_never_ends(stream: Stream, snapshot: Snapshot) -> None:
    await stream.send(DiffBase(base_root=b""))
    while True:
        await stream.send(DiffNames(keys=(), values=()))


@pytest.mark.parametrize(
    "tell",
    [
        that_leads_elsewhere, with_a_base_that_nobody_has, without_an_end, that_begins_in_the_middle,
        with_garbage_for_entries, with_keys_that_go_back, with_fewer_values_than_keys, that_never_ends,
        of_nothing_that_never_ends,
    ],
)  # fmt: skip
async def test_a_difference_that_does_not_lead_to_the_signed_root_publishes_nothing(
    tmp_path: Path, tell: Callable[[Stream, Snapshot], Awaitable[None]]
) -> None:
    await refused_sync(tmp_path, difference_lie(tell))


async def offer_raw(home: Site, cabin: Site, signed: bytes, *, every_s: int = 0) -> None:
    link = await home.link_to(cabin)
    async with link.open(OfferSnapshot(record=signed, every_s=every_s, job="x"), lane=0) as stream:  # type: ignore[arg-type]
        while await stream.receive() is not None:
            pass


async def test_a_peer_cannot_put_a_snapshot_of_its_own_on_top_of_our_volume(tmp_path: Path) -> None:
    """Or it would be the newest, and the one that a restore gives back."""
    ours = write_tree(tmp_path / "ours", files=2, size=KIB)
    theirs = write_tree(tmp_path / "theirs", files=2, size=KIB, seed=5)
    async with a_pair(tmp_path) as (home, cabin):
        volume = cabin.protect(ours)
        genuine = await cabin.take(volume)
        planted = await home.take(home.protect(theirs))
        values = {field: getattr(planted.record, field) for field in type(planted.record).__dataclass_fields__}
        forged = type(planted.record)(**{**values, "volume_id": volume.volume_id, "sequence": 999})
        with pytest.raises(PeerError, match="a volume"):
            await offer_raw(home, cabin, sign_record(forged, home.parts.sign))
        assert [one.snapshot_id for one in cabin.catalog.snapshots(volume.volume_id)] == [genuine.snapshot_id]


async def test_a_record_that_its_origin_did_not_sign_is_refused(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=2, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        record = open_record(snapshot.signed)
        with pytest.raises(PeerError, match="signature"):
            await offer_raw(home, cabin, sign_record(record, cabin.parts.sign))
        assert cabin.catalog.snapshots() == []


async def test_a_promise_beyond_all_numbers_is_kept_as_never(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=2, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        await home.send(snapshot, cabin, every_s=2**64 - 1)
        assert cabin.catalog.expectations()[0].every_s > 10**9


async def test_a_site_that_lost_the_snapshot_it_offers_says_so(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=2, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        home.catalog.delete_snapshots([snapshot.snapshot_id])
        with pytest.raises(PeerError):
            await home.send(snapshot, cabin)
        with pytest.raises(NotFound):
            cabin.catalog.snapshot(snapshot.snapshot_id)


async def test_the_proxy_is_what_cuts() -> None:
    """The tests above mean nothing if nothing is cut."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, a_proxy(lambda: f"127.0.0.1:{listener.socket.getsockname()[1]}") as proxy:
        near = await trio.open_tcp_stream(*split_address(proxy.address))
        async with near, await listener.accept() as far:
            await near.send_all(b"passes")
            assert await far.receive_some(100) == b"passes"
            proxy.bytes_left = 3
            await near.send_all(b"does not")
            assert await far.receive_some(100) == b""
        assert (proxy.bytes_left, proxy.bytes_passed, proxy.connections_count) == (None, 6, 1)
