"""Who asks for what, when several sites are asked: nothing may be left to nobody."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from protocol.ids import BlockId
from replicator.sync.hearing import FellSilent, Hearing
from replicator.sync.sources import SILENT_S, TRY_AGAIN_S, Batch, Sources


class FakeLink:
    def __init__(self, name: int) -> None:
        self.peer = bytes([name]) * 32
        self.is_paced = False


def sources(count: int) -> Sources:
    links = [FakeLink(number) for number in range(count)]
    return Sources(links[0], links[1:])  # type: ignore[arg-type]


def batch(name: bytes, *lacked_by: object) -> Batch:
    return Batch([BlockId(name * 32)], frozenset(lacked_by))  # type: ignore[arg-type]


async def test_what_every_faster_source_lacks_is_left_to_the_sender_that_was_passed() -> None:
    """Otherwise nobody asks for it, and the receive waits for ever."""
    these = sources(3)
    sender, one, two = these.all
    sender.is_passed = True
    common, lacked_by_one, rare = batch(b"c"), batch(b"l", one.site), batch(b"r", one.site, two.site)
    for each in (common, lacked_by_one, rare):
        these.put(each)
    assert these.next_for(sender) is rare
    assert these.next_for(sender) is None, "the other two are better off with those who are faster"
    assert these.next_for(two) is common
    assert these.next_for(one) is None
    two.is_over = True
    assert these.next_for(sender) is lacked_by_one


async def test_a_slow_source_that_was_passed_takes_nothing_that_a_faster_one_may_have() -> None:
    these = sources(3)
    _, one, two = these.all
    one.is_passed = True
    these.put(batch(b"c", two.site))
    assert these.next_for(one) is None, "the sender has all of it"


async def test_at_the_end_a_fast_source_takes_over_from_a_slow_one() -> None:
    these = sources(2)
    sender, one = these.all
    request = these.begin(sender, batch(b"a"), trio.CancelScope())
    request.began -= 10
    one.began = trio.current_time() - 1
    one.note_bytes(1_000_000)
    assert these.take_over(one) is None, "more may come"
    these.is_whole = True
    assert these.take_over(one) is request
    assert sender.is_passed


async def test_a_silent_source_is_given_only_what_the_others_lack_until_it_is_heard_again() -> None:
    these = sources(2)
    sender, one = these.all
    common, rare = batch(b"c"), batch(b"r", one.site)
    sender.note_silent()
    for each in (common, rare):
        these.put(each)
    assert these.next_for(sender) is rare
    assert these.next_for(sender) is None
    sender.note_heard()
    assert these.next_for(sender) is common


async def test_if_all_are_silent_it_is_not_they_who_are_slow_and_each_is_asked() -> None:
    these = sources(2)
    for one in these.all:
        one.note_silent()
    these.put(batch(b"c"))
    assert these.next_for(these.all[0]) is not None


async def test_a_silent_source_is_tried_again_now_and_then_but_never_with_the_last_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    these = sources(2)
    sender, _ = these.all
    sender.note_silent()
    first, second, third = batch(b"1"), batch(b"2"), batch(b"3")
    these.put(first)
    await trio.sleep(TRY_AGAIN_S + 1)
    assert these.next_for(sender) is None, "everybody would wait for it"
    these.put(second)
    these.put(third)
    assert these.next_for(sender) in (first, second, third)
    assert these.next_for(sender) is None, "once in a while"


async def test_a_silent_source_takes_over_from_nobody() -> None:
    """It was the fastest once: at the end, it would take from one that still brings something, and bring nothing."""
    these = sources(2)
    sender, one = these.all
    sender.began = trio.current_time() - 1
    sender.note_bytes(10**9)
    these.begin(one, batch(b"a"), trio.CancelScope()).began -= 10
    these.is_whole = True
    sender.note_silent()
    assert these.take_over(sender) is None
    sender.note_heard()
    assert these.take_over(sender) is not None


# -- a difference that is being told ------------------------------------------------------------


class FakeStream:
    """Tells one item after each pause, and then its end."""

    def __init__(self, *pauses_s: float) -> None:
        self._pauses_s = list(pauses_s)

    async def receive(self) -> bytes | None:
        if not self._pauses_s:
            return None
        await trio.sleep(self._pauses_s.pop(0))
        return b"item"


async def listen(
    stream: FakeStream, these: Sources, *, bring: Callable[[], float], busy_s: float = 0.0
) -> tuple[int, bool]:
    """How many items were heard, and whether it ended in silence. `bring`: how long the others take for the root."""
    hearing, heard, is_silent = Hearing(these), 0, False

    async def bring_root() -> None:
        await trio.sleep(bring())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hearing.watch, bring_root)
        try:
            while await hearing.receive(stream) is not None:  # type: ignore[arg-type]
                heard += 1
                await trio.sleep(busy_s)
        except FellSilent:
            is_silent = True
        nursery.cancel_scope.cancel()
    return heard, is_silent


def never() -> float:
    raise AssertionError("nobody should have been asked")


@pytest.mark.parametrize(
    ("pauses_s", "others_take_s", "heard", "is_silent"),
    [
        ((1, 1000), 0.1, 1, True),  # The others have it: on without the sender.
        ((1, 1000), 10**6, 2, False),  # They do not, so it is listened to for as long as it takes.
        ((1, 2 * SILENT_S, 2, 2, 2), 2 * SILENT_S, 5, False),  # It wakes before they have brought anything.
    ],
)
async def test_a_difference_is_listened_to_until_somebody_else_can_go_on(
    autojump_clock: trio.testing.MockClock,
    pauses_s: tuple[float, ...],
    others_take_s: float,
    heard: int,
    is_silent: bool,
) -> None:
    found = await listen(FakeStream(*pauses_s), sources(2), bring=lambda: others_take_s)
    assert found == (heard, is_silent)


async def test_a_sender_is_not_silent_while_we_are_busy_or_it_sends_blocks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await listen(FakeStream(1, 1), sources(2), bring=never, busy_s=10 * SILENT_S) == (2, False)
    these = sources(2)

    async def blocks_come() -> None:
        for _ in range(100):
            await trio.sleep(SILENT_S / 3)
            these.all[0].note_bytes(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocks_come)
        assert await listen(FakeStream(10 * SILENT_S), these, bring=never) == (1, False)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("why", ["alone", "paced"])
async def test_nobody_is_asked_if_nobody_is_there_or_if_it_is_our_cap_that_is_slow(
    autojump_clock: trio.testing.MockClock, why: str
) -> None:
    these = sources(1 if why == "alone" else 2)
    these.all[0].link.is_paced = why == "paced"  # type: ignore[misc]
    assert await listen(FakeStream(100), these, bring=never) == (1, False)
