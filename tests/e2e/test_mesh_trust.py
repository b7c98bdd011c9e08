"""Who may connect: pairing, strangers, revocation, and connections that only waste our time."""

import socket
import ssl
from pathlib import Path

import pytest
import trio

from protocol.limits import STREAMS_MAX
from protocol.messages.snapshots import ListSnapshots, SnapshotList
from protocol.wire.frames import Lane
from replicator.core.errors import PeerError, Refused, ReplicatorError, StoreFull, Untrusted
from replicator.monitor.alerts import Alert, find_alerts
from replicator.net import mesh as mesh_module
from replicator.net.address import split_address
from replicator.net.greeting import GREETING_MAX
from replicator.net.identity import Identity
from replicator.net.pairing import PairingCode, join
from replicator.net.tls import TlsTransport, make_context
from tests.support.nodes import Site, a_pair, open_site, running, trust, wait_until, write_tree
from tests.support.proxy import a_proxy


def invite(site: Site, *, expires_s: float = 600) -> PairingCode:
    invite_id, secret = site.parts.entropy.token(16), site.parts.entropy.token(16)
    site.catalog.peers.add_invite(invite_id, secret, expires_ns=site.parts.clock.now_ns() + int(expires_s * 1e9))
    site.mesh.trust_changed()
    return PairingCode(site.mesh.addresses, site.parts.site_id, invite_id, secret)


async def joined(code: PairingCode, by: Site) -> None:
    welcome, reached = await join(
        code, by.mesh.identity, name=by.name, addresses=by.mesh.addresses, network=by.mesh.network
    )
    by.catalog.peers.add(welcome.site_id, name=welcome.name, addresses=[reached])
    by.mesh.trust_changed()


async def is_served(asker: Site, server: Site) -> bool:
    link = await asker.link_to(server)
    async with link.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
        return isinstance(await stream.receive(), SnapshotList)


async def test_a_code_makes_peers_of_two_sites_and_works_for_nobody_else(tmp_path: Path) -> None:
    with (
        open_site(tmp_path / "home", "home") as home,
        open_site(tmp_path / "cabin", "cabin") as cabin,
        open_site(tmp_path / "tower", "tower") as tower,
    ):
        async with running(home, cabin, tower):
            code = PairingCode.parse(str(invite(home)))
            await joined(code, cabin)
            assert await is_served(cabin, home) and await is_served(home, cabin)
            await joined(code, cabin)  # The answer may have been lost: the same site may ask again.
            with pytest.raises(Refused, match="used already"):
                await joined(code, tower)
            assert [peer.name for peer in home.catalog.peers.all()] == ["cabin"]


async def test_five_wrong_secrets_kill_a_code_for_the_right_one_too(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            code = invite(home)
            wrong = PairingCode(code.addresses, code.inviter, code.invite_id, bytes(16))
            for _ in range(5):
                with pytest.raises(Refused, match="wrong"):
                    await joined(wrong, cabin)
            with pytest.raises(Refused, match="dead"):
                await joined(code, cabin)
            assert home.catalog.peers.all() == []


async def test_an_expired_code_says_that_it_has_expired(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            with pytest.raises(Refused, match="expired"):
                await joined(invite(home, expires_s=-1), cabin)


async def test_somebody_in_the_middle_cannot_play_the_inviter(tmp_path: Path) -> None:
    with (
        open_site(tmp_path / "home", "home") as home,
        open_site(tmp_path / "cabin", "cabin") as cabin,
        open_site(tmp_path / "evil", "evil") as evil,
    ):
        async with running(home, cabin, evil):
            code = invite(home)
            evil.catalog.peers.add_invite(code.invite_id, code.secret, expires_ns=2**62)
            evil.mesh.trust_changed()
            lured = PairingCode(evil.mesh.addresses, code.inviter, code.invite_id, code.secret)
            with pytest.raises(PeerError):
                await joined(lured, cabin)
            assert cabin.catalog.peers.all() == [] == evil.catalog.peers.all()


async def connect(address: str, identity: Identity, pins: list[bytes]) -> bytes:
    """What a client with that key hears after its handshake."""
    stream = await trio.open_tcp_stream(*split_address(address))
    transport = TlsTransport(stream, make_context(identity, pins, is_server=False), is_server=False)  # type: ignore[arg-type]
    try:
        await transport.handshake()
        return await transport.receive()
    finally:
        await transport.close()


async def test_a_stranger_with_a_key_of_its_own_is_turned_away_and_the_node_goes_on(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        for _ in range(5):
            with pytest.raises(Untrusted):
                await connect(home.mesh.address, Identity.generate(), [home.parts.site_id])
        assert await is_served(cabin, home)


async def test_older_tls_and_no_certificate_and_no_tls_at_all_get_nowhere(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        host, port = split_address(home.mesh.address)

        def try_with(context: ssl.SSLContext) -> bytes:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection((host, port), 5) as raw, context.wrap_socket(raw) as sock:
                sock.sendall(b"x" * 100)
                return sock.recv(100)

        older = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        for context in (older, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
            with pytest.raises(OSError):
                await trio.to_thread.run_sync(try_with, context)
        stream = await trio.open_tcp_stream(host, port)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        with trio.fail_after(5):
            while await stream.receive_some():
                pass
        await stream.aclose()
        assert await is_served(cabin, home)


async def test_idle_strangers_do_not_keep_a_peer_out(tmp_path: Path) -> None:
    """Each used to hold a place in a queue for ten seconds."""
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            crowd = [await trio.open_tcp_stream(*split_address(home.mesh.address)) for _ in range(300)]
            trust(cabin, home)
            began = trio.current_time()
            assert await is_served(cabin, home)
            assert trio.current_time() - began < 4  # Up to 1.5 of them is the dialler's own pause.
            assert len(home.mesh.greeting) <= GREETING_MAX, "nor do they all keep a file open here"
            with trio.fail_after(2):
                assert await crowd[0].receive_some(1) == b"", "the one that has dawdled longest was cut"
            for stream in crowd:
                await trio.aclose_forcefully(stream)


async def test_revoking_a_peer_cuts_its_link_within_five_seconds_and_keeps_it_out(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin), a_proxy(lambda: cabin.mesh.address) as relay:
            trust(home, cabin, address=relay.address)
            link = await home.link_to(cabin)
            cabin.catalog.add_sync("s", volume_id=b"", peer=home.parts.site_id, keep="")
            cabin.catalog.expect(b"v" * 16, home.parts.site_id, every_s=60)
            cabin.catalog.peers.revoke(home.parts.site_id)
            cabin.mesh.trust_changed()
            with trio.fail_after(5):
                await link.closed.wait()
            before = relay.connections_count
            await trio.sleep(4)
            assert home.mesh.link_to(cabin.parts.site_id) is None and cabin.mesh.connected() == []
            # It is tried again, but with growing pauses: not several times a second for ever.
            assert before <= relay.connections_count <= before + 6
            assert "turned us away" in home.mesh.dial_errors[cabin.parts.site_id]
            assert cabin.catalog.syncs() == [] and cabin.catalog.expectations() == []


async def test_revoking_in_the_middle_of_a_transfer_ends_it(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=100, size=60_000)
    async with a_pair(tmp_path, rate_out="200kB/s") as (home, cabin):
        snapshot = await home.take(home.protect(folder))

        async def revoke() -> None:
            await trio.sleep(1)
            cabin.catalog.peers.revoke(home.parts.site_id)
            cabin.mesh.trust_changed()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(revoke)
            with trio.fail_after(6), pytest.raises(ReplicatorError):
                await home.send(snapshot, cabin)
        assert not cabin.holds(snapshot)


async def test_two_sites_that_both_dial_use_their_links_without_harm(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=10, size=10_000)
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:
        async with running(home, cabin):
            trust(home, cabin)
            cabin.catalog.peers.add(home.parts.site_id, name="home", addresses=[home.mesh.address])
            async with trio.open_nursery() as nursery:  # More links than are allowed, all at once.
                for _ in range(8):
                    nursery.start_soon(home.mesh._dial, cabin.parts.site_id, cabin.mesh.address)
                await home.link_to(cabin)
                report = (await home.send(await home.take(home.protect(folder)), cabin)).report
                assert (report.blocks_received, report.blocks_received_twice) == (10, 0)
                assert len(home.mesh._links[cabin.parts.site_id]) <= mesh_module._LINKS_PER_PEER_MAX
                assert len(home.mesh.connected()) == 1
                nursery.cancel_scope.cancel()


async def test_the_same_snapshot_offered_over_two_links_at_once_is_received_once(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "data", files=30, size=30_000)
    async with a_pair(tmp_path) as (home, cabin):
        snapshot = await home.take(home.protect(folder))
        reports = []

        async def send() -> None:
            reports.append((await home.send(snapshot, cabin)).report)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send)
        assert sum(report.blocks_received for report in reports) == 30
        assert sum(report.blocks_received_twice for report in reports) == 0


async def test_a_disk_that_is_full_costs_no_link(tmp_path: Path) -> None:
    """When a peer was last seen is written now and then; that write failing used to end the node."""
    with open_site(tmp_path / "home", "home") as home, open_site(tmp_path / "cabin", "cabin") as cabin:

        def refuse(_: object) -> None:
            raise StoreFull("no room")

        home.catalog.peers.note_seen = refuse  # type: ignore[method-assign]
        async with running(home, cabin), a_proxy(lambda: cabin.mesh.address) as relay:
            trust(home, cabin, address=relay.address)
            await home.link_to(cabin)
            relay.cut()
            await wait_until(lambda: relay.connections_count == 2)
            assert await is_served(home, cabin)


async def test_more_syncs_at_once_than_streams_all_end(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (home, cabin):
        snapshots = []
        for number in range(STREAMS_MAX // 2):
            folder = write_tree(tmp_path / f"data-{number}", files=2, size=100, seed=number)
            snapshots.append(await home.take(home.protect(folder)))
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for snapshot in snapshots:
                    nursery.start_soon(home.send, snapshot, cabin)
        assert all(cabin.holds(snapshot) for snapshot in snapshots)


# -- a site that was made anew ------------------------------------------------------------------


async def test_a_site_paired_anew_under_a_new_key_is_told_as_the_one_that_answers_for_the_old(tmp_path: Path) -> None:
    """Otherwise the old one is dialled for ever, and its syncs fail for ever. It ends when a person forgets it."""
    with (
        open_site(tmp_path / "home", "home") as home,
        open_site(tmp_path / "cabin", "cabin") as old,
        open_site(tmp_path / "anew", "cabin") as new,
    ):
        async with running(home, old, new):
            answering = [old]
            async with a_proxy(lambda: answering[0].mesh.address) as relay:
                trust(home, old, address=relay.address)
                await home.link_to(old)
                assert shown(home) == {"cabin": None} and replaced(home) == []
                trust(home, new, address=relay.address)
                answering[0] = new
                relay.cut()
                await home.link_to(new)
                await wait_until(lambda: old.parts.site_id in home.mesh.replaced_by)
                assert shown(home) == {"cabin": "cabin-2", "cabin-2": None}
                [alert] = replaced(home)
                assert alert.subject == "cabin"
                assert "`replicator pair revoke cabin`" in alert.hint and "sync add --to cabin-2" in alert.hint

                answering[0] = old  # They are two sites after all, and one of them had moved.
                await home.link_to(old)
                await wait_until(lambda: not home.mesh.replaced_by)
                assert shown(home)["cabin"] is None and replaced(home) == []

                answering[0] = new
                relay.cut()
                await wait_until(lambda: replaced(home))
                home.catalog.peers.revoke(old.parts.site_id)
                home.mesh.trust_changed()
                await wait_until(lambda: not home.mesh.replaced_by and not home.mesh.dial_errors)
                assert shown(home) == {"cabin-2": None} and replaced(home) == []


def shown(site: Site) -> dict[str, str | None]:
    return {peer["name"]: peer["replaced_by"] for peer in site.living.view.status()["peers"]}


def replaced(site: Site) -> list[Alert]:
    """An hour after its start: at first, absence is no news."""
    found = find_alerts(site.parts, site.mesh, started_ns=site.parts.clock.now_ns() - 3600 * 10**9)
    return [alert for alert in found if alert.kind == "peer_replaced"]
