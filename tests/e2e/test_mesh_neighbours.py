"""Introductions, keys that take the place of others, and shapes of a mesh."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from protocol.messages.mesh import Introduce, NewKey
from replicator.core.errors import Refused, Untrusted
from replicator.net.identity import Identity
from replicator.net.site_record import new_key_statement, open_card, sign_card, sign_voucher
from tests.support.nodes import Site, a_pair, open_site, running, trust, write_tree
from tests.support.questions import ask, context, syncs_of
from tests.support.store import damage

# -- introductions ------------------------------------------------------------------------------


@asynccontextmanager
async def a_hub(folder: Path) -> AsyncIterator[tuple[Site, Site, Site]]:
    """home in the middle, cabin and tower know only home."""
    with (
        open_site(folder / "home", "home") as home,
        open_site(folder / "cabin", "cabin") as cabin,
        open_site(folder / "tower", "tower") as tower,
    ):
        async with running(home, cabin, tower):
            for spoke in (cabin, tower):
                trust(home, spoke)
                await home.link_to(spoke)
                await spoke.link_to(home)
            yield home, cabin, tower


async def introduce(home: Site, cabin: Site, tower: Site) -> None:
    links = [await home.link_to(cabin), await home.link_to(tower)]
    await home.living._relations.neighbours.introduce(*links)


def grant(site: Site, to: Site, *introduced: str) -> None:
    rights = site.catalog.peers.rights_of(to.parts.site_id)
    site.catalog.peers.set_rights(to.parts.site_id, rights.changed(allow=["introduce"], introduced=introduced))


async def test_an_introduction_is_refused_by_default_and_makes_peers_with_the_rights_that_the_reader_granted(
    tmp_path: Path,
) -> None:
    async with a_hub(tmp_path) as (home, cabin, tower):
        with pytest.raises(Refused, match="right to introduce"):
            await introduce(home, cabin, tower)
        grant(cabin, home)
        with pytest.raises(Refused, match="right to introduce"):
            await introduce(home, cabin, tower)  # Both have to agree.
        assert len(cabin.catalog.peers.all()) == 1
        grant(tower, home, "offer", "repair")
        await introduce(home, cabin, tower)
        await cabin.link_to(tower)
        assert cabin.catalog.peers.get(tower.parts.site_id).introduced_by == home.parts.site_id
        # Each side's own policy: nothing at the cabin, offers and repairs at the tower.
        assert cabin.catalog.peers.rights_of(tower.parts.site_id).may == frozenset()
        assert tower.catalog.peers.rights_of(cabin.parts.site_id).may == {"offer", "repair"}
        mine = await tower.take(tower.protect(write_tree(tmp_path / "a", files=2, size=100, seed=1)))
        with pytest.raises(Refused, match="right to offer"):
            await tower.send(mine, cabin)
        theirs = await cabin.take(cabin.protect(write_tree(tmp_path / "b", files=2, size=100, seed=2)))
        assert (await cabin.send(theirs, tower)).receipt.site_id == tower.parts.site_id


async def test_a_forged_introduction_gets_nowhere(tmp_path: Path) -> None:
    async with a_hub(tmp_path) as (home, cabin, tower):
        grant(cabin, home, "offer")
        evil = Identity.generate()
        reader, us = cabin.parts.site_id, home.parts.sign
        good = sign_card(evil.site_id, name="evil", addresses=["127.0.0.1:1"], reader=reader, sign=evil.sign)
        assert open_card(good).site_id == evil.site_id
        for_somebody_else = sign_card(evil.site_id, name="e", addresses=[], reader=evil.site_id, sign=evil.sign)
        of_another = sign_card(tower.parts.site_id, name="t", addresses=[], reader=reader, sign=evil.sign)
        forged = [
            Introduce(record=good, voucher=sign_voucher(good, evil.sign)),
            Introduce(record=for_somebody_else, voucher=sign_voucher(for_somebody_else, us)),
            Introduce(record=of_another, voucher=sign_voucher(of_another, us)),
            *(
                Introduce(record=bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]), voucher=sign_voucher(good, us))
                for at in range(0, len(good), 7)
            ),
        ]
        for request in forged:
            with pytest.raises(Refused):
                await ask(home, cabin, request)
        assert [peer.name for peer in cabin.catalog.peers.all()] == ["home"]
        # And a site that was revoked does not come back through a friend.
        grant(tower, home, "offer")
        await introduce(home, cabin, tower)
        cabin.catalog.peers.revoke(tower.parts.site_id)
        cabin.mesh.trust_changed()
        with pytest.raises(Refused, match="revoked"):
            await introduce(home, cabin, tower)


# -- keys ---------------------------------------------------------------------------------------


def news(old: Identity, new: Identity, *, by_old: Identity, by_new: Identity, until_ns: int = 2**62) -> NewKey:
    statement = new_key_statement(old.site_id, new.site_id, until_ns=until_ns, sequence_max=5)
    return NewKey(
        old=old.site_id, new=new.site_id, until_ns=until_ns, sequence_max=5, by_old=by_old.sign(statement),
        by_new=by_new.sign(statement),
    )  # fmt: skip


async def test_a_new_key_needs_both_signatures_and_the_old_keys_own_link(tmp_path: Path) -> None:
    async with a_hub(tmp_path) as (home, cabin, tower):
        us, fresh, other = home.mesh.identity, Identity.generate(), Identity.generate()
        for wrong in (
            news(us, fresh, by_old=fresh, by_new=fresh), news(us, fresh, by_old=us, by_new=us),
            news(tower.mesh.identity, fresh, by_old=us, by_new=fresh),
        ):  # fmt: skip
            with pytest.raises(Refused, match="signature"):
                await ask(home, cabin, wrong)
        # The tower is no peer of the cabin's; of home, it is, and only its own link may tell home so.
        stolen = news(tower.mesh.identity, other, by_old=tower.mesh.identity, by_new=other)
        with pytest.raises(Refused, match="another peer"):
            await ask(cabin, home, stolen)
        assert home.catalog.successions() == [] == cabin.catalog.successions()
        await ask(home, cabin, news(us, fresh, by_old=us, by_new=fresh))
        assert set(cabin.mesh._book.peer_ids()) == {us.site_id, fresh.site_id}, "both count for now"


async def test_an_old_key_is_dead_after_the_overlap_and_its_links_are_cut(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        us, fresh = home.mesh.identity, Identity.generate()
        link = await home.link_to(cabin)
        until = cabin.parts.clock.now_ns() + int(1.5e9)
        await ask(home, cabin, news(us, fresh, by_old=us, by_new=fresh, until_ns=until))
        neighbours = cabin.living._relations.neighbours
        assert not neighbours.end_overlaps() and link.is_open
        await trio.sleep(1.6)
        assert neighbours.end_overlaps()
        cabin.mesh.trust_changed()
        with trio.fail_after(5):
            await link.closed.wait()
        assert cabin.mesh._book.peer_ids() == [fresh.site_id]
        await trio.sleep(1)
        assert home.mesh.link_to(cabin.parts.site_id) is None, "the old key opens nothing any more"


async def test_records_of_an_old_key_count_up_to_the_change_and_not_beyond(tmp_path: Path) -> None:
    from dataclasses import replace

    from replicator.catalog.records import sign_record

    async with a_pair(tmp_path) as (home, cabin):
        us, fresh = home.mesh.identity, Identity.generate()
        volume = home.protect(write_tree(tmp_path / "data", files=2, size=100))
        old = await home.take(volume)
        await home.send(old, cabin)
        await ask(home, cabin, news(us, fresh, by_old=us, by_new=fresh))
        check = cabin.catalog.check_owner
        another = replace(old.record, snapshot_id=b"n" * 16, sequence=4)  # type: ignore[arg-type]
        check(another)
        check(replace(another, origin=fresh.site_id, sequence=400))
        with pytest.raises(Untrusted):
            check(replace(another, sequence=6))
        with pytest.raises(Untrusted):
            check(replace(another, origin=Identity.generate().site_id))
        assert sign_record(another, us.sign)
        cabin.catalog.rename_site(us.site_id, fresh.site_id)
        assert cabin.catalog.volume(volume.volume_id).origin == fresh.site_id
        check(another)
        with pytest.raises(Untrusted):
            check(replace(another, sequence=6))


# -- topologies ---------------------------------------------------------------------------------


async def test_a_chain_carries_a_snapshot_on_to_a_site_that_its_origin_does_not_know(tmp_path: Path) -> None:
    async with a_hub(tmp_path) as (home, cabin, tower):
        snapshot = await cabin.take(cabin.protect(write_tree(tmp_path / "data", files=5, size=1000)))
        cabin.catalog.add_sync("up", volume_id=b"", peer=home.parts.site_id, keep="")
        home.catalog.add_sync("on", volume_id=b"", peer=tower.parts.site_id, keep="")
        await syncs_of(cabin).run(context(sync="up"))
        await syncs_of(home).run(context(sync="on"))
        assert tower.holds(snapshot)
        assert tower.catalog.volume(snapshot.record.volume_id).origin == cabin.parts.site_id
        done = await syncs_of(home).run(context(sync="on"))
        assert done["sent"] == [], "and not in circles"


async def test_a_site_that_only_dials_out_still_serves_repairs(tmp_path: Path) -> None:
    """cabin has no address that home knows: home's question travels back over the link that cabin dialled."""
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            trust(cabin, home)
            await cabin.link_to(home)
            link = await home.link_to(cabin)
            assert not link.is_dialer and home.catalog.peers.get(cabin.parts.site_id).addresses == ()
            snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=5, size=1000)))
            await home.send(snapshot, cabin)
            ruined = sorted(home.block_ids())[:3]
            for block in ruined:
                damage(home.store, block)
            assert len(await home.parts.reader.read(ruined)) == 3
            assert home.store.read(ruined).faults == []


async def test_in_a_full_mesh_one_snapshot_fans_out_and_no_block_is_sent_twice(tmp_path: Path) -> None:
    async with a_hub(tmp_path) as (home, cabin, tower):
        trust(cabin, tower)
        await cabin.link_to(tower)
        snapshot = await home.take(home.protect(write_tree(tmp_path / "data", files=12, size=5000)))
        sites = (home, cabin, tower)
        for site in sites:
            for other in sites:
                if site is not other:
                    site.catalog.add_sync(f"{other.name}", volume_id=b"", peer=other.parts.site_id, keep="")
        received = 0
        for _ in range(2):
            for site in sites:
                for sync in site.catalog.syncs():
                    done = await syncs_of(site).run(context(sync=sync.sync_id))
                    received += sum(one["blocks"] for one in done["sent"])
                    assert all(one["blocks_twice"] == 0 for one in done["sent"])
        assert cabin.holds(snapshot) and tower.holds(snapshot)
        assert received == 2 * 12, "each of the two got each block once"
