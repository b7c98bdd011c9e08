"""Who asks for what, when several sites are asked: nothing may be left to nobody."""

import trio

from protocol.ids import BlockId
from replicator.sync.sources import Batch, Sources


class FakeLink:
    is_paced = False

    def __init__(self, name: int) -> None:
        self.peer = bytes([name]) * 32


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
