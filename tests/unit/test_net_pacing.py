"""Two links, one budget: in memory, on a clock that jumps."""

import pytest
import trio

from protocol.messages.blocks import WantBlocks
from protocol.messages.mesh import Noted, PaceNotice
from protocol.wire.frames import Lane
from replicator.net.link import Link, Pace
from replicator.net.pacing import Pacing
from tests.support.links import DIALER, a_wire, linked, make_link
from tests.unit.test_net_links import bulk, received_bytes, sender_of, simulated

RATE = 3_000_000


class _Stuck:
    """A transport whose other side has stopped reading: what is sent into it waits for ever."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.is_stuck = False

    async def send(self, parts: object) -> None:
        if self.is_stuck:
            await trio.sleep_forever()
        await self._inner.send(parts)  # type: ignore[attr-defined]

    async def receive(self) -> bytes:
        return await self._inner.receive()  # type: ignore[attr-defined, no-any-return]

    async def close(self) -> None:
        await self._inner.close()  # type: ignore[attr-defined]


def paced(link: Link, pace: Pace) -> Link:
    link._pace = pace
    return link


@pytest.mark.parametrize("kind", ["stuck", "slow"])
def test_one_bad_peer_costs_the_others_no_more_than_a_tenth_of_the_budget(kind: str) -> None:
    async def scenario() -> None:
        pacing = Pacing(monotonic=trio.current_time, rate_out=RATE)
        (bad_near, bad_far), (good_near, good_far) = a_wire(), a_wire()
        stuck = _Stuck(bad_far)
        blocks = bulk(1000)
        handlers = {WantBlocks: sender_of(blocks)}
        bad = paced(
            make_link(stuck, is_dialer=False, handlers=handlers),  # type: ignore[arg-type]
            pacing.pace_for(DIALER, is_first=True),
        )
        good = paced(
            make_link(good_far, is_dialer=False, handlers=handlers),
            pacing.pace_for(type(DIALER)(b"g" * 32), is_first=True),
        )
        bad_asker, good_asker = make_link(bad_near, is_dialer=True), make_link(good_near, is_dialer=True)
        marks: list[tuple[float, int]] = []

        async def good_one() -> None:
            marks.extend(await received_bytes(good_asker, lane=Lane.SYNC, most_s=20))

        async def bad_one() -> None:
            if kind == "stuck":
                await received_bytes(bad_asker, lane=Lane.SYNC, most_s=20)
                return
            async with bad_asker.open(WantBlocks(ids=bytes(32)), lane=Lane.SYNC) as stream:
                with trio.move_on_after(20):
                    while await stream.receive() is not None:  # noqa: ASYNC110  (it is what a slow reader does)
                        await trio.sleep(30)  # It takes a block now and then: its credit is soon used up.

        async with linked(bad_asker, bad), linked(good_asker, good), trio.open_nursery() as nursery:
            nursery.start_soon(bad_one)
            nursery.start_soon(good_one)
            await trio.sleep(5)
            stuck.is_stuck = kind == "stuck"
        late = [(at, size) for at, size in marks if at >= 8]
        rate = sum(size for _, size in late) / (late[-1][0] - late[0][0])
        assert rate >= 0.9 * RATE

    simulated(scenario)


def test_a_peer_that_was_told_a_pace_keeps_it_and_repairs_pass_all_the_same() -> None:
    async def scenario() -> None:
        pacing = Pacing(monotonic=trio.current_time)
        near, far = a_wire()

        async def noted(stream, request) -> None:  # type: ignore[no-untyped-def]
            pacing.told(DIALER, request.rate_bytes)
            await stream.send(Noted(), end=True)

        handlers = {WantBlocks: sender_of(bulk(400)), PaceNotice: noted}
        server = paced(make_link(far, is_dialer=False, handlers=handlers), pacing.pace_for(DIALER, is_first=True))
        asker = make_link(near, is_dialer=True)
        async with linked(asker, server):
            async with asker.open(PaceNotice(rate_bytes=1_000_000), lane=Lane.CONTROL) as stream:
                assert await stream.receive() == Noted()
            marks = await received_bytes(asker, lane=Lane.SYNC, most_s=15)
            total = sum(size for _, size in marks)
            assert 0.95 * 15e6 <= total <= 1.05 * 15e6
            began = trio.current_time()
            repaired = sum(size for _, size in await received_bytes(asker, lane=Lane.REPAIR))
            assert repaired > 20_000_000 and trio.current_time() - began < 1.5

    simulated(scenario)
