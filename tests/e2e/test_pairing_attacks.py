"""Guessing a pairing code, and sitting in the middle while one is used: the real exchange, attacked by a script."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from replicator.app.peers import CataloguedPeers
from replicator.catalog.catalog import Catalog
from replicator.catalog.peers import TRIES_MAX
from replicator.core.errors import PeerError, ReplicatorError
from replicator.core.ports import SystemEntropy
from replicator.net.address import split_address
from replicator.net.identity import Identity
from replicator.net.mesh import Mesh, MeshConfig
from replicator.net.pairing import INVITE_S, PairingCode, join
from replicator.net.tls import TlsNetwork, TlsTransport, make_context
from replicator.testing.network import MemoryNetwork
from tests.e2e.test_mesh_trust import invite
from tests.support.clocks import FakeWallClock
from tests.support.nodes import open_site, running

# -- guessing ---------------------------------------------------------------------------------


class Door:
    """A node's mesh in memory, with one code out."""

    def __init__(self, network: MemoryNetwork, catalog: Catalog, clock: FakeWallClock) -> None:
        self.network = network
        self.catalog = catalog
        identity = Identity.generate()
        self.mesh = Mesh(
            MeshConfig(listen="home:1"),
            identity=identity,
            name="home",
            incarnation=bytes(16),
            book=CataloguedPeers(catalog, site_id=identity.site_id),
            monotonic=time.monotonic,
            network=network.at("home"),
            entropy=SystemEntropy(),
        )
        expires_ns = clock.now_ns() + int(INVITE_S * 1e9)
        self.code = PairingCode(("home:1",), identity.site_id, b"i" * 16, b"s" * 16)
        catalog.peers.add_invite(self.code.invite_id, self.code.secret, expires_ns=expires_ns)
        self.mesh.trust_changed()

    async def try_with(self, secret: bytes, *, by: Identity) -> str:
        """What somebody hears who knows all of the code but the secret."""
        guess = PairingCode(self.code.addresses, self.code.inviter, self.code.invite_id, secret)
        try:
            await join(guess, by, name="x", addresses=(), network=self.network.at("elsewhere"))
        except ReplicatorError as error:
            return error.message
        return "welcome"


@asynccontextmanager
async def a_door(folder: Path, clock: FakeWallClock) -> AsyncIterator[Door]:
    catalog = Catalog(folder / "catalog.sqlite", clock=clock)
    door = Door(MemoryNetwork(random.Random(1)), catalog, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.mesh.run, await door.mesh.listen())
        yield door
        nursery.cancel_scope.cancel()
    catalog.close()


async def test_ten_thousand_guesses_at_the_door_find_nothing_and_only_five_are_judged(tmp_path: Path) -> None:
    rnd, guessers = random.Random(7), [Identity.generate() for _ in range(8)]
    async with a_door(tmp_path, FakeWallClock()) as door:
        heard: dict[str, int] = {}
        for number in range(10_000):
            said = await door.try_with(rnd.randbytes(16), by=guessers[number % 8])
            heard[said] = heard.get(said, 0) + 1
        assert heard == {
            "The pairing code is wrong.": TRIES_MAX,
            "The pairing code had too many wrong tries and is dead.": 10_000 - TRIES_MAX,
        }
        assert TRIES_MAX <= 5
        assert "dead" in await door.try_with(door.code.secret, by=guessers[0]), "for its owner too"
        assert door.catalog.peers.all() == []


async def test_a_code_is_good_for_ten_minutes_at_most_and_for_one_site(tmp_path: Path) -> None:
    assert INVITE_S <= 600
    clock, one, two = FakeWallClock(), Identity.generate(), Identity.generate()
    async with a_door(tmp_path, clock) as door:
        clock.advance(INVITE_S - 1)
        assert await door.try_with(door.code.secret, by=one) == "welcome"
        assert "used already" in await door.try_with(door.code.secret, by=two)
        clock.advance(2)
        assert "expired" in await door.try_with(door.code.secret, by=one)
        assert [peer.site_id for peer in door.catalog.peers.all()] == [one.site_id]


async def test_who_does_not_know_the_codes_id_does_not_get_as_far_as_a_question(tmp_path: Path) -> None:
    async with a_door(tmp_path, FakeWallClock()) as door:
        stranger = PairingCode(door.code.addresses, door.code.inviter, b"n" * 16, door.code.secret)
        with pytest.raises(PeerError):
            await join(stranger, Identity.generate(), name="x", addresses=(), network=door.network.at("elsewhere"))
        assert await door.try_with(door.code.secret, by=Identity.generate()) == "welcome", "no try was spent"


# -- in the middle ----------------------------------------------------------------------------


class Middle:
    """Sits on the line to a site, reads what passes, and changes what its script says."""

    def __init__(self, target: str, *, flip: tuple[str, int] | None = None, cut: tuple[str, int] | None = None) -> None:
        self._target = target
        self._flip = flip
        self._cut = cut
        self.address = ""
        self.seen = {"out": b"", "back": b""}

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._pass_on, [listener])

    async def _pass_on(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(*split_address(self._target))
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._way, near, far, "out", nursery.cancel_scope)
            nursery.start_soon(self._way, far, near, "back", nursery.cancel_scope)

    async def _way(self, source: trio.SocketStream, sink: trio.SocketStream, way: str, over: trio.CancelScope) -> None:
        try:
            while data := bytearray(await source.receive_some(65536)):
                passed = len(self.seen[way])
                self.seen[way] += data
                for what, at in filter(None, (self._flip, self._cut)):
                    if what == way and passed <= at < passed + len(data):
                        if self._cut is not None:
                            await sink.send_all(data[: at - passed])
                            over.cancel()
                            return
                        data[at - passed] ^= 1
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            over.cancel()


async def join_through(middle: str, code: PairingCode, joiner: Identity) -> str:
    lured = PairingCode((middle,), code.inviter, code.invite_id, code.secret)
    try:
        await join(lured, joiner, name="cabin", addresses=(), network=TlsNetwork())
    except ReplicatorError as error:
        return type(error).__name__
    return "welcome"


async def test_a_hundred_times_somebody_in_the_middle_changes_something_and_is_found(tmp_path: Path) -> None:
    """A bit flipped or the line cut anywhere, both ways: nobody is welcomed by what was changed, or gets in."""
    rnd = random.Random(3)
    with open_site(tmp_path / "home", "home") as home:
        async with running(home):
            joiner = Identity.generate()
            honest = Middle(home.mesh.address)
            async with trio.open_nursery() as nursery:
                await nursery.start(honest.run)
                code = invite(home)
                assert await join_through(honest.address, code, joiner) == "welcome"
                nursery.cancel_scope.cancel()
            for way in ("out", "back"):
                for secret in (code.secret, code.invite_id, joiner.site_id):
                    assert secret not in honest.seen[way], "who listens reads nothing, not even who it is"
            for number in range(100):
                way = ("out", "back")[number % 2]
                # (After the last record of the conversation comes a goodbye that nobody needs.)
                spot = (way, rnd.randrange(len(honest.seen[way]) * 7 // 8))
                middle = Middle(home.mesh.address, **{("flip", "cut")[number // 2 % 2]: spot})  # type: ignore[arg-type]
                async with trio.open_nursery() as nursery:
                    await nursery.start(middle.run)
                    with trio.fail_after(30):
                        assert await join_through(middle.address, invite(home), joiner) != "welcome", spot
                    nursery.cancel_scope.cancel()
            assert {peer.site_id for peer in home.catalog.peers.all()} == {joiner.site_id}


@pytest.mark.parametrize("shows", ["a key of its own", "the code's own door", "a certificate from another invite"])
async def test_who_answers_with_any_key_but_the_inviters_is_told_nothing(tmp_path: Path, shows: str) -> None:
    """Even one who knows the code's id and opens TLS itself: the secret is not sent before the key is proven."""
    with open_site(tmp_path / "home", "home") as home:
        async with running(home):
            code, joiner = invite(home), Identity.generate()
            shown = {
                "a key of its own": Identity.generate(),
                "the code's own door": Identity.of_invite(code.invite_id, code.inviter),
                "a certificate from another invite": Identity.of_invite(b"o" * 16, code.inviter),
            }[shows]
            heard: list[bytes] = []

            async def answer(stream: trio.SocketStream) -> None:
                door = Identity.of_invite(code.invite_id, code.inviter)
                transport = TlsTransport(stream, make_context(shown, [door.site_id], is_server=True), is_server=True)
                try:
                    await transport.handshake()
                    heard.append(await transport.receive())
                except (PeerError, OSError):
                    heard.append(b"")
                finally:
                    await transport.close()

            async with trio.open_nursery() as nursery:
                [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, answer, [listener])
                port = listener.socket.getsockname()[1]
                said = await join_through(f"127.0.0.1:{port}", code, joiner)
                assert said in ("Untrusted", "Refused", "Unreachable")
                nursery.cancel_scope.cancel()
            assert b"".join(heard) == b"", "nothing was said to it"
            assert home.catalog.peers.all() == []


async def test_a_conversation_that_is_played_again_makes_nobody_a_peer(tmp_path: Path) -> None:
    with open_site(tmp_path / "home", "home") as home:
        async with running(home):
            middle, code = Middle(home.mesh.address), invite(home)
            joiner = Identity.generate()
            async with trio.open_nursery() as nursery:
                await nursery.start(middle.run)
                assert await join_through(middle.address, code, joiner) == "welcome"
                nursery.cancel_scope.cancel()
            home.catalog.peers.revoke(joiner.site_id)
            stream = await trio.open_tcp_stream(*split_address(home.mesh.address))
            async with stream:
                await stream.send_all(middle.seen["out"])
                with trio.move_on_after(5):
                    while await stream.receive_some(65536):
                        pass
            assert home.catalog.peers.all() == []
