"""A reader's pin: what is being read is not collected, also if its snapshot is deleted meanwhile.

A pin is a lease, and a lease that nobody renews is lost: so as long as the work goes on, a task
beside it renews the pin. If the process was stopped for longer than a lease lasts, a new pin is
taken and the work goes on: what is gone by then is said by the read that misses it, by name,
and never guessed.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from replicator.core.errors import LeaseLost
from replicator.core.logging import get_logger
from replicator.core.nursery import open_work_nursery
from replicator.store.ports import BlockStore

_USES_A_LEASE = 3
"""Renewed so often in its length: one that is late does no harm."""


@asynccontextmanager
async def pinned(store: BlockStore, holder: str) -> AsyncIterator[None]:
    """Hold on, for as long as the block lasts, to everything that any snapshot needs at its beginning.

    Begin it *before* looking up what to read: whatever is found then was needed when the pin began.
    """
    lease = store.begin(holder)

    async def keep() -> None:
        nonlocal lease
        while True:
            await trio.sleep(lease.lasts_s / _USES_A_LEASE)
            try:
                store.renew(lease)
            except LeaseLost:
                get_logger().warning("pin.lost", holder=holder, then="taking a new one")
                lease = store.begin(holder)

    try:
        async with open_work_nursery() as nursery:
            nursery.start_soon(keep)
            yield
            nursery.cancel_scope.cancel()
    finally:
        store.end(lease)
