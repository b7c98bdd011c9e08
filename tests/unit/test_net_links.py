"""Links in memory, on a clock that jumps: pace, lanes, streams, and what happens when one closes."""

import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from protocol.errors import ErrorCode
from protocol.limits import STREAMS_MAX
from protocol.messages.blocks import BlocksSent, WantBlocks
from protocol.messages.registry import Message
from protocol.messages.repair import RepairBlocks
from protocol.messages.snapshots import ListSnapshots, SnapshotList
from protocol.wire.frames import Lane
from replicator.core.errors import Refused, Stalled, Unreachable, Untrusted
from replicator.core.throttle import TokenBucket
from replicator.net.link import Link, Stream
from tests.support.blocks import from_body
from tests.support.links import a_wire, linked, make_link

RATE = 2_000_000
IDS = bytes(32)


def simulated(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def bulk(count: int) -> list[bytes]:
    rnd = random.Random(1)
    return [bytes(from_body(rnd.randbytes(60_000)).sealed) for _ in range(count)]


def sender_of(blocks: list[bytes]) -> Callable[[Stream, Message], Awaitable[None]]:
    async def answer(stream: Stream, request: Message) -> None:
        for block in blocks:
            await stream.send_blocks([block])
        await stream.send(BlocksSent(missing=b""), end=True)

    return answer


async def received_bytes(link: Link, *, lane: Lane, most_s: float = 1e9) -> list[tuple[float, int]]:
    """When how many bytes of blocks arrived."""
    marks: list[tuple[float, int]] = []
    with trio.move_on_after(most_s):
        async with link.open(WantBlocks(ids=IDS), lane=lane) as stream:
            while (item := await stream.receive()) is not None:
                if isinstance(item, bytes):
                    marks.append((trio.current_time(), len(item)))
    return marks


@pytest.mark.parametrize("way", ["outgoing", "incoming"])
@pytest.mark.parametrize("streams", [1, 4])
def test_a_capped_transfer_runs_at_its_cap_within_a_tenth(way: str, streams: int) -> None:
    async def scenario() -> None:
        near, far = a_wire()
        bucket = TokenBucket(RATE, clock=trio.current_time)
        served = make_link(
            far, is_dialer=False, handlers={WantBlocks: sender_of(bulk(300 // streams))},
            outgoing=bucket if way == "outgoing" else None,
        )  # fmt: skip
        asked = make_link(near, is_dialer=True, incoming=bucket if way == "incoming" else None)
        marks: list[tuple[float, int]] = []

        async def ask() -> None:
            marks.extend(await received_bytes(asked, lane=Lane.SYNC))

        async with linked(asked, served):
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(streams):
                    nursery.start_soon(ask)
            took_s = max(at for at, _ in marks) - began
        total = sum(size for _, size in marks)
        assert took_s >= 4
        assert total / took_s == pytest.approx(RATE, rel=0.1)
        # And over no second of it more than the cap, a burst and what was on its way.
        marks.sort()
        for at, _ in marks[::20]:
            window = sum(size for when, size in marks if at <= when < at + 1)
            assert window <= RATE * 1.1 + streams * 200_000

    simulated(scenario)


def test_a_cap_that_changes_binds_at_once_and_the_link_stays_up() -> None:
    async def scenario() -> None:
        near, far = a_wire()
        bucket = TokenBucket(RATE, clock=trio.current_time)
        served = make_link(far, is_dialer=False, handlers={WantBlocks: sender_of(bulk(400))}, outgoing=bucket)
        asked = make_link(near, is_dialer=True)
        marks: list[tuple[float, int]] = []
        async with linked(asked, served), trio.open_nursery() as nursery:

            async def ask() -> None:
                marks.extend(await received_bytes(asked, lane=Lane.SYNC))

            nursery.start_soon(ask)
            await trio.sleep(4)
            bucket.set_rate(RATE // 4)
            changed = trio.current_time()
        later = [(at, size) for at, size in marks if at > changed + 0.5]
        rate = sum(size for _, size in later) / (later[-1][0] - changed - 0.5)
        assert rate == pytest.approx(RATE // 4, rel=0.1)
        assert later[-1][0] - changed > 4

    simulated(scenario)


def test_a_repair_overtakes_a_throttled_bulk_transfer() -> None:
    async def scenario() -> None:
        near, far = a_wire()
        slow = TokenBucket(100_000, clock=trio.current_time)
        served = make_link(
            far, is_dialer=False, outgoing=slow,
            handlers={WantBlocks: sender_of(bulk(100)), RepairBlocks: sender_of(bulk(1))},
        )  # fmt: skip
        asked = make_link(near, is_dialer=True)
        async with linked(asked, served), trio.open_nursery() as nursery:
            nursery.start_soon(partial(received_bytes, asked, lane=Lane.SYNC))
            await trio.sleep(3)
            began = trio.current_time()
            async with asked.open(RepairBlocks(ids=IDS, cause="corrupt"), lane=Lane.REPAIR) as stream:
                assert isinstance(await stream.receive(), bytes)
            assert trio.current_time() - began < 0.05
            nursery.cancel_scope.cancel()

    simulated(scenario)


def test_a_consumer_that_does_not_read_stops_its_own_stream_only() -> None:
    async def scenario() -> None:
        near, far = a_wire()
        served = make_link(far, is_dialer=False, handlers={WantBlocks: sender_of(bulk(300))})
        asked = make_link(near, is_dialer=True)
        async with linked(asked, served), asked.open(WantBlocks(ids=IDS), lane=Lane.SYNC) as idle:
            await idle.receive()
            await trio.sleep(10)
            kept = served.statistics().bytes_out
            assert kept < 9 * 2**20, "credit bounds what an idle reader is sent"
            marks = await received_bytes(asked, lane=Lane.SYNC)
            assert sum(size for _, size in marks) == sum(map(len, bulk(300)))

    simulated(scenario)


def test_more_questions_than_streams_are_all_answered_in_turn() -> None:
    """Waiters used to replace one another's event, and all but the last slept for ever."""

    async def scenario() -> None:
        near, far = a_wire()

        async def answer(stream: Stream, request: Message) -> None:
            await trio.sleep(0.1)
            await stream.send(SnapshotList(records=()), end=True)

        served = make_link(far, is_dialer=False, handlers={ListSnapshots: answer})
        asked = make_link(near, is_dialer=True)
        answered = 0

        async def ask() -> None:
            nonlocal answered
            async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
                assert isinstance(await stream.receive(), SnapshotList)
                answered += 1

        async with linked(asked, served):
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(STREAMS_MAX * 4):
                        nursery.start_soon(ask)
        assert answered == STREAMS_MAX * 4

    simulated(scenario)


def test_streams_given_up_before_they_went_out_make_room_once_their_frames_have() -> None:
    async def scenario() -> None:
        near, far = a_wire()

        async def answer(stream: Stream, request: Message) -> None:
            await stream.send(SnapshotList(records=()), end=True)

        slow = TokenBucket(100, clock=trio.current_time)
        slow.take(1000)  # Nothing of a bulk lane leaves for ten seconds.
        served = make_link(far, is_dialer=False, handlers={ListSnapshots: answer})
        asked = make_link(near, is_dialer=True, outgoing=slow)

        async def ask() -> None:
            async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.SYNC) as stream:
                await stream.receive()

        async with linked(asked, served):
            with trio.move_on_after(1):
                async with trio.open_nursery() as nursery:
                    for _ in range(STREAMS_MAX):
                        nursery.start_soon(ask)
            with trio.fail_after(600):
                async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
                    assert isinstance(await stream.receive(), SnapshotList)

    simulated(scenario)


def test_nobody_waits_for_a_stream_on_a_link_that_has_ended() -> None:
    async def scenario() -> None:
        near, far = a_wire()

        async def never(stream: Stream, request: Message) -> None:
            await trio.sleep_forever()

        served = make_link(far, is_dialer=False, handlers={ListSnapshots: never})
        asked = make_link(near, is_dialer=True)
        failed = 0

        async def ask() -> None:
            nonlocal failed
            try:
                async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
                    await stream.receive()
            except Unreachable:
                failed += 1

        async with linked(asked, served):
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(STREAMS_MAX + 10):
                        nursery.start_soon(ask)
                    await trio.sleep(1)
                    served.close(ErrorCode.STOPPING, "going home")
        assert failed == STREAMS_MAX + 10
        assert "going home" in asked.why_closed

    simulated(scenario)


def test_a_question_on_a_link_that_is_just_closing_is_unreachable_and_no_bug() -> None:
    async def scenario() -> None:
        near, far = a_wire()
        served, asked = make_link(far, is_dialer=False), make_link(near, is_dialer=True)
        async with linked(asked, served):
            asked.close(ErrorCode.STOPPING, "bye")
            assert not asked.closed.is_set()
            with pytest.raises(Unreachable):
                async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL):
                    raise AssertionError("it opened")

    simulated(scenario)


def test_a_question_that_nobody_answers_here_is_refused_by_name() -> None:
    async def scenario() -> None:
        near, far = a_wire()
        served, asked = make_link(far, is_dialer=False), make_link(near, is_dialer=True)
        async with linked(asked, served):
            with pytest.raises(Refused, match="ListSnapshots is not answered here"):
                async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
                    await stream.receive()
            assert asked.is_open and served.is_open

    simulated(scenario)


@pytest.mark.parametrize(
    ("raised", "heard"), [(Untrusted("not yours"), Refused), (OSError("disk"), Stalled), (Unreachable("x"), Stalled)]
)
def test_what_a_handler_raises_reaches_the_asker_and_the_link_lives_on(
    raised: Exception, heard: type[Exception]
) -> None:
    async def scenario() -> None:
        near, far = a_wire()

        async def answer(stream: Stream, request: Message) -> None:
            raise raised

        served = make_link(far, is_dialer=False, handlers={ListSnapshots: answer})
        asked = make_link(near, is_dialer=True)
        async with linked(asked, served):
            with pytest.raises(heard):
                async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
                    await stream.receive()
            assert asked.is_open and served.is_open

    simulated(scenario)


def test_a_mistake_of_ours_in_a_handler_ends_that_link_and_nothing_else() -> None:
    async def scenario() -> None:
        near, far = a_wire()

        async def answer(stream: Stream, request: Message) -> None:
            raise ZeroDivisionError

        served = make_link(far, is_dialer=False, handlers={ListSnapshots: answer})
        asked = make_link(near, is_dialer=True)
        async with linked(asked, served):
            with pytest.raises(Unreachable):
                async with asked.open(ListSnapshots(volume_id=b""), lane=Lane.CONTROL) as stream:
                    await stream.receive()
        assert served.why_closed == "an internal error"

    simulated(scenario)


def test_a_peer_that_falls_silent_is_noticed_within_thirty_seconds() -> None:
    async def scenario() -> None:
        near, far = a_wire()
        served, asked = make_link(far, is_dialer=False), make_link(near, is_dialer=True)
        async with linked(asked, served):
            await trio.sleep(60)
            assert asked.is_open and asked.round_trip_s is not None

            async def never() -> bytes:
                await trio.sleep_forever()
                return b""

            near.receive = never  # type: ignore[method-assign]
            began = trio.current_time()
            await asked.closed.wait()
            assert trio.current_time() - began <= 30

    simulated(scenario)


def test_a_connection_without_a_hello_is_given_up_after_the_handshake_time() -> None:
    async def scenario() -> None:
        near, _far = a_wire()
        link = make_link(near, is_dialer=True)
        began = trio.current_time()
        await link.run()
        assert link.peer_hello is None and 9 < trio.current_time() - began < 12

    simulated(scenario)
