"""Reading runs ahead of writing: the next batch is fetched and proven while this one is written."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

import trio

from protocol.limits import MIB
from replicator.core.errors import ReplicatorError

BATCH_BYTES: Final = 8 * MIB
BATCH_ENTRIES: Final = 256
"""What one read of the store and one trip to a worker thread carry."""
_AHEAD: Final = 1
"""Batches waiting between the reader and the writer. With one at either side, three are in memory."""

_T = TypeVar("_T")


async def run_ahead(batches: AsyncGenerator[_T, None], consume: Callable[[_T], Awaitable[None]]) -> None:
    """Consume every batch, one after the other. Raises what either side raises, not wrapped in a group."""
    failed: Exception | None = None
    send, receive = trio.open_memory_channel[_T](_AHEAD)

    async def produce() -> None:
        nonlocal failed
        try:
            async with send, aclosing(batches):
                async for batch in batches:
                    await send.send(batch)
        except (ReplicatorError, OSError) as error:
            failed = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        try:
            async for batch in receive:
                await consume(batch)
        except (ReplicatorError, OSError) as error:
            failed = error
            nursery.cancel_scope.cancel()
    receive.close()
    if failed is not None:
        raise failed
