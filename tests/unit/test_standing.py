"""What two sites at rest tell each other, and what a comparison costs when nothing has changed."""

import time
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import Malformed
from protocol.ids import BlockId, SnapshotId, VolumeId
from protocol.limits import HEARTBEAT_S
from protocol.messages.registry import encode
from protocol.messages.summary import StandingRoots
from protocol.wire.frames import FRAME_HEADER_BYTES
from replicator.app.upkeep import Comparing
from replicator.core.progress import Progress
from replicator.core.workers import Idle
from replicator.index.roots import HOLES, classes, digest_of, holes_root, pack_roots, unpack_roots, volume_root
from replicator.index.shelf import Shelf, common, sorted_set
from replicator.jobs.audit import AuditJobs
from replicator.jobs.runner import JobContext
from replicator.monitor.metrics import render_metrics
from replicator.sync import audit
from tests.support.clocks import FakeWallClock
from tests.support.nodes import Site, a_pair, open_site, running, trust, write_tree
from tests.support.store import damage

KIB = 1024
VOLUME = VolumeId(b"v" * 16)


def packed(rng: np.random.Generator, count: int) -> list[bytes]:
    return [rng.bytes(32) for _ in range(count)]


# -- roots ------------------------------------------------------------------------------------


def test_a_volume_root_is_a_sum_so_one_snapshot_more_is_the_difference() -> None:
    held = [(SnapshotId(bytes([n] * 16)), BlockId(bytes([n] * 32))) for n in range(4)]
    whole, less = volume_root(VOLUME, held), volume_root(VOLUME, held[:3])
    one = volume_root(VOLUME, held[3:])
    assert whole == volume_root(VOLUME, held[::-1])
    assert (whole.sum_a - less.sum_a) % 2**64 == one.sum_a
    assert (whole.count, less.count) == (4, 3)
    assert volume_root(VolumeId(b"w" * 16), held).sum_a != whole.sum_a, "keyed per scope"


def test_roots_come_out_as_they_went_in_and_out_of_order_is_refused() -> None:
    roots = [holes_root([]), volume_root(VOLUME, [(SnapshotId(bytes(16)), BlockId(bytes(32)))])]
    assert unpack_roots(pack_roots(roots[::-1])) == tuple(roots)
    for wrong in (roots[1].packed() + roots[0].packed(), roots[1].packed() * 2):
        with pytest.raises(Malformed):
            unpack_roots(wrong)
    assert digest_of(pack_roots(roots)) != digest_of(pack_roots(roots[:1]))


def test_sites_with_equal_roots_form_classes() -> None:
    one, other = holes_root([]), holes_root([BlockId(bytes(32))])
    assert classes({"a": one, "b": other, "c": one, "d": None}) == [["a", "c"], ["b"], ["d"]]


# -- the shelf --------------------------------------------------------------------------------


def test_a_shelf_gives_back_the_distinct_ids_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ids = packed(rng, 500)
    twins = [ids[0][:8] + rng.bytes(24) for _ in range(3)]  # A crowd with one head.
    runs = [b"".join(ids), b"".join(twins), b"".join(ids[:100]), b""]
    expected = b"".join(sorted({*ids, *twins}))
    assert sorted_set(runs) == expected
    assert sorted_set([]) == b""
    shelf = Shelf(tmp_path / "sets")
    assert shelf.get(BlockId(bytes(32))) is None
    for kept in (expected, b""):
        shelf.put(BlockId(bytes(32)), kept)
        assert shelf.get(BlockId(bytes(32))) == kept


def test_a_damaged_set_is_forgotten_and_not_believed(tmp_path: Path) -> None:
    shelf, root = Shelf(tmp_path), BlockId(b"r" * 32)
    shelf.put(root, bytes(32) + b"\xff" * 32)
    [path] = tmp_path.glob("*.ids")
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert shelf.get(root) is None
    assert not path.exists()


def test_a_full_shelf_lets_the_longest_unused_go(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, bytes_max=300)
    roots = [BlockId(bytes([n]) * 32) for n in range(3)]
    for root in roots[:2]:
        shelf.put(root, bytes(96))
        time.sleep(0.01)
    assert shelf.get(roots[0]) is not None
    time.sleep(0.01)
    shelf.put(roots[2], bytes(96))
    assert [shelf.get(root) is not None for root in roots] == [True, False, True]
    shelf.put(roots[1], bytes(3200))
    assert shelf.get(roots[1]) is None


@pytest.mark.parametrize("seed", range(8))
def test_what_is_here_of_a_set_is_its_intersection_with_the_ledger(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = packed(rng, 300) + [b"\x07" * 8 + rng.bytes(24) for _ in range(5)]
    needed = {one for one in ids if rng.random() < 0.6}
    held = sorted({one for one in ids if rng.random() < 0.6} | set(packed(rng, 50)))
    runs = [b"".join(held[at : at + 64]) for at in range(0, len(held), 64)]
    both, lacking = needed & set(held), needed - set(held)
    assert common(b"".join(sorted(needed)), runs) == (b"".join(sorted(both)), b"".join(sorted(lacking)))
    assert common(b"", runs) == (b"", b"")


# -- two sites --------------------------------------------------------------------------------


async def beat(asker: Site) -> None:
    assert await asker.living._standing.step() == Idle(HEARTBEAT_S)


async def synced_pair_with(home: Site, cabin: Site, folder: Path, volumes: int) -> list[VolumeId]:
    found = []
    for number in range(volumes):
        volume = home.protect(write_tree(folder / f"v{number}", files=3, size=KIB, seed=number))
        await home.send(await home.take(volume), cabin)
        found.append(volume.volume_id)
    return found


async def test_sites_at_rest_spend_fewer_than_64_bytes_a_heartbeat_and_read_nothing(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        volumes = await synced_pair_with(home, cabin, tmp_path, 5)
        await beat(home)
        for one in volumes:
            assert home.living._standing.classes_of(one) == [[home.parts.site_id, cabin.parts.site_id]]
            assert cabin.living._standing.classes_of(one) == [[cabin.parts.site_id, home.parts.site_id]]
        link = await home.link_to(cabin)
        before, read = link.statistics(), _read_calls()
        await beat(home)
        after = link.statistics()
        spent = after.bytes_out - before.bytes_out + after.bytes_in - before.bytes_in
        assert spent <= 64 + 2 * (FRAME_HEADER_BYTES + 8), "(a ping and its pong may have come in between)"
        word = StandingRoots(digest=bytes(8), roots=b"")
        assert len(encode(word)) + 2 * FRAME_HEADER_BYTES <= 40
        assert _read_calls() - read < 64 * KIB, "(the socket is read through /proc/self/io as well)"


def _read_calls() -> int:
    """Bytes that this process has read, from wherever."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


async def test_a_new_snapshot_parts_the_classes_until_it_has_arrived(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        [volume] = await synced_pair_with(home, cabin, tmp_path, 1)
        await beat(home)
        (tmp_path / "v0" / "new").write_bytes(b"new")
        snapshot = await home.take(home.catalog.volume(volume))
        await beat(home)
        for site in (home, cabin):
            assert sorted(map(len, site.living._standing.classes_of(volume))) == [1, 1]
        await home.send(snapshot, cabin)
        await beat(home)
        for site in (home, cabin):
            assert list(map(len, site.living._standing.classes_of(volume))) == [2]


async def test_the_status_page_shows_who_holds_the_same_and_how_many_sessions_that_leaves(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        [agreed, parted] = await synced_pair_with(home, cabin, tmp_path, 2)
        with open_site(tmp_path / "tower", "tower") as tower:
            async with running(tower):
                trust(home, tower)
                await tower.link_to(home)
                for snapshot in home.catalog.snapshots(agreed):
                    await home.send(snapshot, tower)
                (tmp_path / "v1" / "new").write_bytes(b"new")
                await home.take(home.catalog.volume(parted))
                for site in (home, tower, cabin):
                    await beat(site)
                page = home.living.view.status()
                by_id = {volume["volume_id"]: volume for volume in page["volumes"]}
                one, two = by_id[agreed.hex()], by_id[parted.hex()]
                assert [(part["sites"], part["snapshots"]) for part in one["classes"]] == [
                    (["cabin", "home", "tower"], 1)
                ]
                assert one["sessions_needed"] == 0, "three sites of one class: nobody has anything to ask"
                assert sorted((part["sites"], part["snapshots"]) for part in two["classes"]) == [
                    (["cabin"], 1),
                    (["home"], 2),
                ]
                assert two["sessions_needed"] == 1
                assert len({part["root"] for part in two["classes"]}) == 2
                standing = page["standing"]
                assert (standing["scopes"], standing["holes"]) == (3, 0)
                assert [(peer["peer"], peer["is_same"]) for peer in standing["peers"]] == [
                    ("cabin", False),
                    ("tower", False),
                ]
                assert all(peer["heard_s"] < 60 for peer in standing["peers"])
                metrics = render_metrics(home.living.view.status).decode()
                assert (
                    f'replicator_volume_classes{{origin="home",volume="v0",volume_id="{agreed.hex()[:8]}"}} 1.0'
                    in metrics
                )
                assert (
                    f'replicator_volume_classes{{origin="home",volume="v1",volume_id="{parted.hex()[:8]}"}} 2.0'
                    in metrics
                )
                assert 'replicator_peer_holds_the_same{peer="cabin"} 0.0' in metrics
                # One that was revoked is not spoken of, whatever it said last.
                home.catalog.peers.revoke(tower.parts.site_id)
                page = home.living.view.status()
                assert [peer["peer"] for peer in page["standing"]["peers"]] == ["cabin"]
                assert all("tower" not in part["sites"] for volume in page["volumes"] for part in volume["classes"])


async def test_a_site_with_a_hole_stands_alone_until_it_is_mended(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        [volume] = await synced_pair_with(home, cabin, tmp_path, 1)
        block = min(cabin.block_ids())
        damage(cabin.store, block)
        faults = cabin.store.read([block]).faults
        cabin.store.quarantine(faults)
        await beat(home)
        for site in (home, cabin):
            assert sorted(map(len, site.living._standing.classes_of(volume))) == [1, 1]
        assert cabin.parts.healer is not None
        await cabin.parts.healer.heal(cabin.store.broken())
        await beat(home)
        assert list(map(len, home.living._standing.classes_of(volume))) == [2]


async def test_who_has_lost_the_thread_is_told_everything_again(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        [volume] = await synced_pair_with(home, cabin, tmp_path, 1)
        (tmp_path / "v0" / "new").write_bytes(b"new")
        await home.take(home.catalog.volume(volume))
        await beat(home)
        standing = cabin.living._standing
        standing.heard.clear()
        await beat(home)  # Refused: cabin does not know what the digest stands for.
        assert not standing.heard
        await beat(home)
        assert standing.heard[home.parts.site_id].roots == home.living._standing.roots()
        home.living._standing.heard.clear()
        await beat(home)
        await beat(home)
        assert home.living._standing.heard[cabin.parts.site_id].roots == standing.roots()


async def test_a_second_comparison_of_a_snapshot_walks_and_sums_nothing(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=40, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        await home.send(snapshot, cabin)
        link = await home.link_to(cabin)
        views = (home.parts.auditor._views, cabin.parts.auditor._views)
        first = await home.parts.auditor.compare(link, snapshot.record, fresh=False)
        kept = [next(iter(one.values())) for one in views]
        again = await home.parts.auditor.compare(link, snapshot.record, fresh=False)
        assert [next(iter(one.values())) for one in views] == kept
        assert (again.blocks, again.shared, again.peer_lacks, again.we_lack) == (first.blocks, first.blocks, [], 0)
        await home.parts.auditor.compare(link, snapshot.record, fresh=True)
        assert [len(one) for one in views] == [2, 2], "a fresh key makes both sides look anew"


async def test_a_peer_that_asks_under_ever_new_keys_does_not_fill_our_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "VIEWS_MAX", 3)
    folder = write_tree(tmp_path / "data", files=1, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        await home.send(snapshot, cabin)
        link = await home.link_to(cabin)
        for _ in range(6):
            await home.parts.auditor.compare(link, snapshot.record, fresh=True)
        for one in (home.parts.auditor, cabin.parts.auditor):
            assert len(one._views) == 3 and len(one._nonces) <= 3


async def test_a_block_that_is_quarantined_shows_in_the_next_comparison(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=40, size=KIB)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        await home.send(snapshot, cabin)
        link = await home.link_to(cabin)
        await home.parts.auditor.compare(link, snapshot.record, fresh=False)
        block = BlockId(bytes((home.parts.auditor._shelf.get(snapshot.record.root) or b"")[:32]))
        damage(cabin.store, block)
        cabin.store.quarantine(cabin.store.read([block]).faults)
        after = await home.parts.auditor.compare(link, snapshot.record, fresh=False)
        assert after.peer_lacks == [block]
        assert after.round_trips <= 2


def test_the_scope_of_holes_is_no_volume() -> None:
    assert holes_root([]).scope == HOLES == bytes(16)


async def test_once_a_week_one_site_of_each_class_is_compared_with_under_a_fresh_key(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        folder = write_tree(tmp_path / "data", files=3, size=KIB)
        snapshot = await home.take(home.protect(folder))
        done = await home.send(snapshot, cabin)
        home.catalog.add_receipt(snapshot.snapshot_id, cabin.parts.site_id, encode(done.receipt))
        await beat(home)
        asked: list[dict[str, object]] = []

        class Jobs:
            def submit(self, kind: str, args: dict[str, object], *, job_id: str) -> None:
                asked.append({"kind": kind, **args})

        clock = FakeWallClock()
        for site in (home, cabin):
            worker = Comparing(
                site.living._standing, site_id=site.parts.site_id, catalog=site.catalog, jobs=Jobs(), clock=clock,  # type: ignore[arg-type]
            )  # fmt: skip
            await worker.step()
            await worker.step()
            expected = {"kind": "audit", "snapshot": snapshot.snapshot_id.hex(), "peer": cabin.parts.site_id.hex()}
            assert asked == [{**expected, "fresh": True}], "once, and by one of the two"
            clock.advance(6 * 86_400)
            await worker.step()
            assert len(asked) == 1
        clock.advance(86_400)
        again = Comparing(
            home.living._standing, site_id=home.parts.site_id, catalog=home.catalog, jobs=Jobs(), clock=clock,  # type: ignore[arg-type]
        )  # fmt: skip
        await again.step()
        assert len(asked) == 2
        clock.advance(-30 * 86_400)
        await again.step()
        assert len(asked) == 3, "a clock that was set back does not mean a month of silence"
        context = JobContext("a", "audit", asked[0], Progress(clock=time.monotonic))
        found = await AuditJobs(home.parts).run(context)
        assert (found["peer_lacks"], found["we_lack"]) == (0, 0)
