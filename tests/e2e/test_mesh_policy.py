"""What a peer may ask: by rights, by what syncs name, and never more; and what a source cannot do to its copies."""

import contextlib
import os
from pathlib import Path

import pytest
import trio

from protocol.ids import BlockId
from protocol.messages.blocks import WantBlocks
from protocol.messages.mesh import EarlyBlocks, ProbeAnswer, ProbeBlocks, WantSiteRecord
from protocol.messages.registry import Message, registered
from protocol.messages.repair import RepairBlocks
from protocol.messages.snapshots import ListSnapshots, SnapshotList, WantDiff
from protocol.messages.summary import SummaryOpen
from replicator.catalog.model import Snapshot
from replicator.catalog.rights import Rights
from replicator.catalog.terms import SyncTerms
from replicator.core.errors import PeerError, Refused
from replicator.sync.offer import Wishes, offer
from replicator.sync.policy import ANSWER, GREETING, RULES
from tests.golden.vectors import sample
from tests.support.nodes import Site, a_pair, open_site, running, trust, write_tree
from tests.support.questions import ask, context, syncs_of


async def listed(asker: Site, server: Site) -> set[bytes]:
    from replicator.catalog.records import open_record

    answers = await ask(asker, server, ListSnapshots(volume_id=b""))
    return {open_record(r).snapshot_id for item in answers if isinstance(item, SnapshotList) for r in item.records}


# -- the matrix ---------------------------------------------------------------------------------


def test_every_message_of_the_protocol_has_a_rule() -> None:
    product = {cls for cls in registered().values() if cls.__module__.startswith("protocol.")}
    assert product - RULES.keys() == set(), "say in sync/policy.py who may ask this"
    assert RULES.keys() <= product


async def test_of_all_messages_only_those_with_a_rule_and_a_handler_are_answered(tmp_path: Path) -> None:
    """Each registered message is sent as a question by a peer without any rights."""
    async with a_pair(tmp_path) as (home, cabin):
        home.catalog.peers.set_rights(cabin.parts.site_id, Rights())
        answered = set()
        for cls in registered().values():
            if not cls.__module__.startswith("protocol."):
                continue
            try:
                await ask(cabin, home, sample(cls))
                answered.add(cls.__name__)
            except Refused as error:
                assert any(word in str(error) for word in ("right", "not answered", "signature")), (cls, error)
            if RULES[cls] in (ANSWER, GREETING):
                assert cls.__name__ not in answered
        # What is about the asker itself, and a list that is empty.
        assert answered == {"ListSnapshots", "PaceNotice"}
        assert await listed(cabin, home) == set()


async def test_a_message_without_a_rule_is_refused_even_if_it_has_a_handler(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home:
        policy = home.living._relations.policy
        with pytest.raises(AssertionError, match="no rule"):
            policy.guard({SnapshotList: home.living._relations.policy.list_snapshots})


@pytest.mark.parametrize(
    ("right", "request_of"),
    [
        ("read", lambda s: WantDiff(snapshot_id=s.snapshot_id, have_roots=b"")),
        ("read", lambda s: WantBlocks(ids=s.record.root)),
        ("repair", lambda s: RepairBlocks(ids=s.record.root, cause="corrupt")),
        ("offer", lambda s: ProbeBlocks(ids=s.record.root)),
        ("offer", lambda s: EarlyBlocks(volume_id=s.record.volume_id)),
        ("introduce", lambda s: WantSiteRecord(reader=s.record.origin)),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
async def test_a_right_that_is_taken_away_is_gone_on_the_live_link(tmp_path: Path, right: str, request_of) -> None:  # type: ignore[no-untyped-def]
    folder = write_tree(tmp_path / "data", files=3, size=1000)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        home.catalog.add_sync("s", volume_id=b"", peer=cabin.parts.site_id, keep="")
        peers, cabin_id = home.catalog.peers, cabin.parts.site_id
        peers.set_rights(cabin_id, Rights(may=frozenset({right})))
        assert await ask(cabin, home, request_of(snapshot))
        peers.set_rights(cabin_id, Rights())
        with pytest.raises(Refused, match=f"right to {right}"):
            await ask(cabin, home, request_of(snapshot))


# -- only what syncs name -----------------------------------------------------------------------


async def test_a_peer_reads_only_what_a_sync_names_for_it(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        named = await home.take(home.protect(write_tree(tmp_path / "named", files=2, size=500, seed=1)))
        secret = await home.take(home.protect(write_tree(tmp_path / "secret", files=2, size=500, seed=2)))
        # (Whoever may ask for repairs gets any block by its hash.)
        home.catalog.peers.set_rights(cabin.parts.site_id, Rights(may=frozenset({"offer", "read", "audit"})))
        with pytest.raises(Refused, match="no sync names"):
            await ask(cabin, home, WantBlocks(ids=named.record.root))
        home.catalog.add_sync("s", volume_id=named.record.volume_id, peer=cabin.parts.site_id, keep="")
        assert await listed(cabin, home) == {named.snapshot_id}
        assert await ask(cabin, home, WantDiff(snapshot_id=named.snapshot_id, have_roots=b""))
        for request in (
            WantDiff(snapshot_id=secret.snapshot_id, have_roots=b""),
            SummaryOpen(**{**_fields(sample(SummaryOpen)), "snapshot_id": secret.snapshot_id}),
        ):
            with pytest.raises(Refused, match="no sync names that snapshot"):
                await ask(cabin, home, request)
        home.catalog.remove_sync("s")
        assert await listed(cabin, home) == set()
        # A volume that is listed for it, and everything.
        volume = secret.record.volume_id.hex()
        home.catalog.peers.set_rights(cabin.parts.site_id, Rights(may=frozenset({"read"}), volumes=frozenset({volume})))
        assert await listed(cabin, home) == {secret.snapshot_id}
        home.catalog.peers.set_rights(cabin.parts.site_id, Rights(may=frozenset({"read-all"})))
        assert await listed(cabin, home) == {named.snapshot_id, secret.snapshot_id}


def _fields(message: Message) -> dict[str, object]:
    import dataclasses

    return {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}  # type: ignore[arg-type]


async def test_a_sync_with_a_filter_names_only_what_passes_it(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        mine = home.protect(write_tree(tmp_path / "mine", files=2, size=500, seed=1))
        theirs = home.protect(write_tree(tmp_path / "theirs", files=2, size=500, seed=2))
        home.catalog.set_tenant(theirs.volume_id, "acme")
        await home.take(mine)
        labelled = await home.take(theirs)
        assert labelled.record.tags == ("tenant:acme",)
        terms = SyncTerms(tenants=("acme",))
        home.catalog.add_sync("s", volume_id=b"", peer=cabin.parts.site_id, keep="", terms=terms)
        assert await listed(cabin, home) == {labelled.snapshot_id}
        done = await syncs_of(home).run(context(sync="s"))
        assert [one["volume"] for one in done["sent"]] == ["theirs"]


# -- pull ---------------------------------------------------------------------------------------


async def test_a_pull_needs_nothing_but_the_right_to_read_and_leaves_a_receipt(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(write_tree(tmp_path / "data", files=20, size=20_000))
        snapshots = [await home.take(volume)]
        home.catalog.peers.set_rights(
            cabin.parts.site_id, Rights(may=frozenset({"read"}), volumes=frozenset({volume.volume_id.hex()}))
        )
        cabin.catalog.peers.set_rights(home.parts.site_id, Rights())  # The source may do nothing at all there.
        terms = SyncTerms(direction="pull", volume="data", prefix="home-", is_passive=True)
        cabin.catalog.add_sync("p", volume_id=b"", peer=home.parts.site_id, keep="24h,7d", terms=terms)
        first = await syncs_of(cabin).run(context(sync="p"))
        assert [one["blocks_twice"] for one in first["sent"]] == [0] and cabin.holds(snapshots[0])
        assert (snapshots[0].snapshot_id, cabin.parts.site_id) in home.catalog.receipts()
        # Only what is new since; from the base that both have.
        (tmp_path / "data" / "file-0001").write_bytes(b"new")
        snapshots.append(await home.take(volume))
        second = await syncs_of(cabin).run(context(sync="p"))
        assert [(one["blocks"], one["from_base"]) for one in second["sent"]] == [(1, True)]
        assert (await syncs_of(cabin).run(context(sync="p")))["sent"] == []
        # Kept by the destination's own rule, under its own name, and not offered onward.
        rule = cabin.catalog.copy_rules()[volume.volume_id]
        assert (rule.keep, rule.is_passive, rule.decided_by) == ("24h,7d", True, "here")
        assert cabin.catalog.volume(volume.volume_id).name == "home-data"
        # What the destination lets go of stays away.
        cabin.catalog.delete_snapshots([snapshots[0].snapshot_id])
        assert (await syncs_of(cabin).run(context(sync="p")))["sent"] == []
        fetched = await syncs_of(cabin).run(context(fetch="data", peer="home", snapshot=snapshots[0].snapshot_id.hex()))
        assert [one["snapshot"] for one in fetched["sent"]] == [snapshots[0].snapshot_id.hex()]


async def test_a_site_that_lost_everything_fetches_its_own_back_without_a_word_from_the_other(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=5, size=5000)))
        await home.send(snapshot, cabin)
        home.catalog.delete_snapshots([snapshot.snapshot_id])
        done = await syncs_of(home).run(context(fetch="data", peer="cabin"))
        assert [one["snapshot"] for one in done["sent"]] == [snapshot.snapshot_id.hex()] and home.holds(snapshot)


# -- a plan -------------------------------------------------------------------------------------


async def test_a_plan_says_what_is_missing_and_what_is_there_already_and_the_sync_keeps_to_it(tmp_path: Path) -> None:
    async with a_pair(tmp_path, rate_out="50MB/s") as (home, cabin):
        shared = write_tree(tmp_path / "one", files=10, size=50_000, seed=3)
        await home.send(await home.take(home.protect(shared)), cabin)
        both = write_tree(
            tmp_path / "two", files=10, size=50_000, seed=3
        )  # Half of it is at the cabin under another name.
        for number in range(10):
            (both / f"more-{number}").write_bytes(os.urandom(50_000))
        snapshot = await home.take(home.protect(both))
        home.catalog.add_sync("s", volume_id=snapshot.record.volume_id, peer=cabin.parts.site_id, keep="")
        plan = await syncs_of(home).planner.plan_push(await home.link_to(cabin), home.catalog.sync("s"), snapshot)
        assert plan.missing_blocks == 10 and not plan.from_base and not plan.is_estimate
        assert plan.seed_share == pytest.approx(0.5, abs=0.05)
        assert plan.missing_bytes == pytest.approx(500_000, rel=0.05)
        assert plan.rate_bytes == 50_000_000 and plan.took_s == pytest.approx(0.01, rel=0.1)
        assert "50 % of what changed from local seeds" in plan.sentence()
        [sent] = (await syncs_of(home).run(context(sync="s")))["sent"]
        assert sent["planned"]["blocks"] == sent["actual"]["blocks"] == 10
        assert sent["actual"]["bytes"] == pytest.approx(sent["planned"]["bytes"], rel=0.05)


@pytest.mark.parametrize("kind", ["tree", "image"])
async def test_a_pull_is_planned_by_what_its_difference_tells_and_keeps_to_it(tmp_path: Path, kind: str) -> None:
    """A file of a hundred pieces with a map of its own, small ones, and such as lie at the cabin for another volume."""
    async with a_pair(tmp_path) as (home, cabin):
        other = write_tree(tmp_path / "other", files=6, size=200_000, seed=3)
        await cabin.take(cabin.protect(other))
        source = write_tree(tmp_path / "data", files=6, size=200_000, seed=3)
        (source / "large").write_bytes(os.urandom(24_000_000))
        (source / "small").write_bytes(os.urandom(10))
        if kind == "image":
            source = tmp_path / "data.img"
            source.write_bytes(os.urandom(40 * 64 * 1024))
        volume = home.protect(source, kind=kind)
        await home.take(volume)
        home.catalog.peers.set_rights(
            cabin.parts.site_id, Rights(may=frozenset({"read"}), volumes=frozenset({volume.volume_id.hex()}))
        )
        terms = SyncTerms(direction="pull", volume=volume.name)
        cabin.catalog.add_sync("p", volume_id=b"", peer=home.parts.site_id, keep="", terms=terms)
        [first] = (await syncs_of(cabin).run(context(sync="p")))["sent"]
        planned, actual = first["planned"], first["actual"]
        assert planned["blocks"] == actual["blocks"] > 0
        assert planned["bytes"] == pytest.approx(actual["bytes"], rel=0.05)
        assert planned["seed_share"] == pytest.approx(0.048 if kind == "tree" else 0.0, abs=0.01)
        # Only what is new since.
        if kind == "tree":
            (source / "file-0001").write_bytes(os.urandom(30_000))
        else:
            with source.open("r+b") as file:
                file.write(os.urandom(3 * 64 * 1024))
        await home.take(volume)
        [second] = (await syncs_of(cabin).run(context(sync="p")))["sent"]
        assert second["from_base"] and second["planned"]["blocks"] == second["actual"]["blocks"] in (1, 3)
        assert second["planned"]["bytes"] == pytest.approx(second["actual"]["bytes"], rel=0.05)


async def test_a_probe_is_answered_bit_by_bit(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        await cabin.take(cabin.protect(write_tree(tmp_path / "data", files=9, size=1000)))
        there = sorted(cabin.block_ids())[:9]
        ids = [
            block for pair in zip(there, (BlockId(bytes([n]) * 32) for n in range(9)), strict=True) for block in pair
        ]
        [answer] = await ask(home, cabin, ProbeBlocks(ids=b"".join(ids)))
        assert isinstance(answer, ProbeAnswer)
        assert [answer.lacking[n // 8] >> n % 8 & 1 for n in range(18)] == [0, 1] * 9


# -- a source that was taken over ---------------------------------------------------------------


async def test_a_source_with_all_its_keys_can_delete_nothing_elsewhere(tmp_path: Path) -> None:
    """It wishes for less, floods, forges times and sequences, and asks for every thing that there is to ask."""
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(write_tree(tmp_path / "data", files=2, size=2000))
        good = [await home.take(volume) for _ in range(3)]
        for snapshot in good:
            await home.send(snapshot, cabin)
        before = {s.snapshot_id for s in cabin.catalog.snapshots()}
        link = await home.link_to(cabin)

        async def push(snapshot: Snapshot, keep: str) -> None:
            await offer(
                link, snapshot, every_s=0, job="evil", on_progress=lambda _: None, wishes=Wishes(keep=keep, prefix="x")
            )

        (tmp_path / "data" / "file-0000").write_bytes(b"ransom")
        for keep in ("1", "1h", "1d,1w"):
            await push(await home.take(volume), keep)
        home.parts.clock.now_ns = lambda: 4_000_000_000 * 10**9  # type: ignore[method-assign]
        try:
            await push(await home.take(volume), "1")
        finally:
            del home.parts.clock.now_ns  # type: ignore[method-assign]
        assert before <= {s.snapshot_id for s in cabin.catalog.snapshots()}
        rule = cabin.catalog.copy_rules()[volume.volume_id]
        assert rule.keep == "" and rule.asked_keep == "1", "written down, for the operator to see, and not done"
        # Every message there is, with that site's own key: nothing that was there is gone.
        for cls in registered().values():
            if cls.__module__.startswith("protocol."):
                with trio.move_on_after(5):
                    with contextlib.suppress(PeerError):
                        await ask(home, cabin, sample(cls))
        assert before <= {s.snapshot_id for s in cabin.catalog.snapshots()}


async def test_a_source_that_may_say_what_is_kept_may_only_ever_ask_for_more(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        rights = Rights(may=frozenset({"offer", "read", "retain"}))
        cabin.catalog.peers.set_rights(home.parts.site_id, rights)
        volume = home.protect(write_tree(tmp_path / "data", files=2, size=2000))
        link = await home.link_to(cabin)
        held = []
        for keep in ("24h,7d", "1", "48h,7d,4w", "10h"):
            snapshot = await home.take(volume)
            await offer(link, snapshot, every_s=0, job="j", on_progress=lambda _: None, wishes=Wishes(keep=keep))
            held.append(cabin.catalog.copy_rules()[volume.volume_id].keep)
        assert held == ["24h,7d", "24h,7d", "48h,7d,4w", "48h,7d,4w"]
        # What the operator there decides is not the source's to change, in either direction.
        cabin.catalog.set_copy_rule(volume.volume_id, keep="12h", prefix="", is_passive=False)
        snapshot = await home.take(volume)
        await offer(link, snapshot, every_s=0, job="j", on_progress=lambda _: None, wishes=Wishes(keep="99d"))
        assert cabin.catalog.copy_rules()[volume.volume_id].keep == "12h"


async def test_copies_are_pruned_by_when_they_came_not_by_what_the_source_says(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(write_tree(tmp_path / "data", files=1, size=100))
        sent = []
        for _ in range(5):
            sent.append(await home.take(volume))
            await home.send(sent[-1], cabin)
        cabin.catalog.set_copy_rule(volume.volume_id, keep="2", prefix="", is_passive=False)
        sent.append(await home.take(volume))
        await home.send(sent[-1], cabin)
        left = [s.snapshot_id for s in cabin.catalog.snapshots(volume.volume_id)]
        assert left == [sent[n].snapshot_id for n in (0, 4, 5)], "the first, and the two newest"
        assert len(home.catalog.snapshots(volume.volume_id)) == 6, "a prune there is none here"


async def test_passive_copies_are_kept_and_go_nowhere_but_home(tmp_path: Path) -> None:
    with open_site(tmp_path / "tower", "tower") as tower:
        async with a_pair(tmp_path) as (home, cabin), running(tower):
            trust(cabin, tower)
            await cabin.link_to(tower)
            volume = home.protect(write_tree(tmp_path / "data", files=1, size=100))
            snapshot = await home.take(volume)
            await home.send(snapshot, cabin)
            cabin.catalog.add_sync("on", volume_id=b"", peer=tower.parts.site_id, keep="")
            assert await listed(tower, cabin) == {snapshot.snapshot_id}
            cabin.catalog.set_copy_rule(volume.volume_id, keep="", prefix="", is_passive=True)
            assert await listed(tower, cabin) == set()
            assert (await syncs_of(cabin).run(context(sync="on")))["sent"] == [] and cabin.holds(snapshot)
            assert await listed(home, cabin) == {snapshot.snapshot_id}, "its own site may always have it back"


async def test_a_snapshot_that_is_still_owed_is_not_pruned_and_says_why(tmp_path: Path) -> None:
    from replicator.jobs.pruning import plan_pruning, prune_volume

    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(write_tree(tmp_path / "data", files=1, size=100))
        home.catalog.set_protection(volume.volume_id, every_s=3600, keep="1")
        terms = SyncTerms(do_not_expire=True)
        home.catalog.add_sync("s", volume_id=volume.volume_id, peer=cabin.parts.site_id, keep="", terms=terms)
        for _ in range(3):
            await home.take(volume)
        reasons = [verdict.reason for verdict in plan_pruning(home.catalog, volume)]
        assert reasons == ["newest", "owed to cabin", "owed to cabin"]
        await syncs_of(home).run(context(sync="s"))
        prune_volume(home.parts, volume)
        assert len(home.catalog.snapshots(volume.volume_id)) == 1


async def test_a_backlog_that_the_destinations_rule_does_not_keep_is_signed_for_all_the_same(tmp_path: Path) -> None:
    """It used to be pruned before it was signed for, and was offered again for ever."""
    async with a_pair(tmp_path) as (home, cabin):
        volume = home.protect(write_tree(tmp_path / "data", files=1, size=100))
        await home.send(await home.take(volume), cabin)
        cabin.catalog.set_copy_rule(volume.volume_id, keep="1", prefix="", is_passive=False)
        taken = [await home.take(volume) for _ in range(4)]
        home.catalog.add_sync("s", volume_id=volume.volume_id, peer=cabin.parts.site_id, keep="")
        await syncs_of(home).run(context(sync="s"))
        receipts = home.catalog.receipts()
        assert all((snapshot.snapshot_id, cabin.parts.site_id) in receipts for snapshot in taken)
        assert cabin.holds(taken[-1]) and not cabin.holds(taken[1])
