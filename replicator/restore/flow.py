"""Reading runs ahead of writing: the next batches are fetched and proven while this one is written."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, Generic, TypeVar, cast

import trio

from protocol.limits import MIB
from replicator.core.errors import ReplicatorError

BATCH_BYTES: Final = 8 * MIB
BATCH_ENTRIES: Final = 256
"""What one read of the store and one trip to a worker thread carry."""
_READS: Final = 3
"""Batches that are being read, or have been, behind the one that the writer has or waits for: what is not here comes
from another site, so a second question is on its way while the first is answered. Four are in memory."""

_P = TypeVar("_P")
_B = TypeVar("_B")


class _Slot(Generic[_B]):
    """A batch's place in the order."""

    def __init__(self) -> None:
        self.is_read = trio.Event()
        self.batch: _B | None = None
        self.failed: Exception | None = None


async def run_ahead(
    plans: AsyncGenerator[_P, None],
    read: Callable[[_P], Awaitable[_B]],
    consume: Callable[[_B], Awaitable[None]],
) -> None:
    """Read what every plan names, several at once, and consume the batches one after the other in the order of plans.

    Raises what any of the three raises, not wrapped in a group, once everything before it has been consumed.
    """
    send, receive = trio.open_memory_channel[_Slot[_B]](_READS)

    async def fill(slot: _Slot[_B], plan: _P) -> None:
        try:
            slot.batch = await read(plan)
        except (ReplicatorError, OSError) as error:
            slot.failed = error
        slot.is_read.set()

    async def produce(nursery: trio.Nursery) -> None:
        slot = _Slot[_B]()
        async with send:
            try:
                async with aclosing(plans):
                    async for plan in plans:
                        await send.send(slot)  # Waits for room: nothing else bounds how far reading runs ahead.
                        nursery.start_soon(fill, slot, plan)
                        slot = _Slot[_B]()
            except (ReplicatorError, OSError) as error:
                slot.failed = error
                slot.is_read.set()
                await send.send(slot)

    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce, nursery)
        async for slot in receive:
            await slot.is_read.wait()
            failed = slot.failed
            if failed is None:
                try:
                    await consume(cast(_B, slot.batch))
                except (ReplicatorError, OSError) as error:
                    failed = error
            if failed is not None:
                nursery.cancel_scope.cancel()
                break
    receive.close()
    if failed is not None:
        raise failed
