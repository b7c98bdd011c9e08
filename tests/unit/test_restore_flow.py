"""Reading ahead of writing: in order, bounded, and what fails fails at its turn."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import trio
import trio.testing

from replicator.core.errors import BlockMissing, SourceError
from replicator.restore import flow


async def run_ahead(
    plans: AsyncGenerator[int, None], read: Callable[[int], Awaitable[int]], consume: Callable[[int], Awaitable[None]]
) -> None:
    """One that waits for itself fails its test, instead of holding up all others."""
    with trio.fail_after(30):
        await flow.run_ahead(plans, read, consume)


async def plans(count: int) -> AsyncGenerator[int, None]:
    for number in range(count):
        yield number


async def test_batches_are_consumed_in_the_order_of_their_plans_whichever_was_read_first() -> None:
    consumed: list[int] = []

    async def read(number: int) -> int:
        for _ in range(7 - number % 7):
            await trio.lowlevel.checkpoint()
        return number

    async def consume(number: int) -> None:
        consumed.append(number)

    await run_ahead(plans(50), read, consume)
    assert consumed == list(range(50))


async def test_several_are_read_at_once_and_no_more_are_in_memory_than_the_bound() -> None:
    in_memory = being_read = most_in_memory = most_read = 0

    async def read(number: int) -> int:
        nonlocal in_memory, being_read, most_in_memory, most_read
        in_memory, being_read = in_memory + 1, being_read + 1
        most_in_memory, most_read = max(most_in_memory, in_memory), max(most_read, being_read)
        await trio.testing.wait_all_tasks_blocked()
        being_read -= 1
        return number

    async def consume(_: int) -> None:
        nonlocal in_memory
        await trio.testing.wait_all_tasks_blocked()
        in_memory -= 1

    await run_ahead(plans(20), read, consume)
    assert flow._READS <= most_read <= flow._READS + 1
    assert most_in_memory == flow._READS + 1


@pytest.mark.parametrize("where", ["plan", "read", "consume"])
async def test_what_fails_is_raised_as_itself_after_everything_before_it(where: str) -> None:
    consumed: list[int] = []

    async def some() -> AsyncGenerator[int, None]:
        for number in range(10):
            if where == "plan" and number == 6:
                raise SourceError("a plan")
            yield number

    async def read(number: int) -> int:
        if where == "read" and number == 6:
            raise BlockMissing(bytes(32))
        return number

    async def consume(number: int) -> None:
        if where == "consume" and number == 6:
            raise OSError("a disk")
        consumed.append(number)

    with pytest.raises((SourceError, BlockMissing, OSError)):
        await run_ahead(some(), read, consume)
    assert consumed == list(range(6))
