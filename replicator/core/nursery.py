"""A nursery for the inside of one piece of work.

Trio wraps whatever its children raise into groups, which is right for a nursery that serves
many at once. Inside one receive or one restore the children are one piece of work and the
caller wants *its* error: the first that is not a cancellation.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_work_nursery() -> AsyncIterator[trio.Nursery]:
    """Like `trio.open_nursery`, but raises the first real error as itself."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        _, real = group.split(trio.Cancelled)
        if real is None:
            raise
        raise _first(real) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner
