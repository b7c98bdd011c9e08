"""Batches go to worker threads side by side and come back in the order they were given.

The order matters because a manifest is built in key order; side by side matters because
hashing and packing release the interpreter, so two threads keep two cores busy. A flush
runs beside the batches, one at a time, and delays none of them.

Invariant: at most `in_flight_max` batches exist at once, so memory does not grow with the source.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

import trio

from replicator.core.errors import ReplicatorError
from replicator.core.ports import Offload
from replicator.ingest.sealer import Sealer

_R = TypeVar("_R")


class _Slot(Generic[_R]):
    """One batch on its way."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._answer: list[_R] = []
        self._error: Exception | None = None

    async def run(self, offload: Offload, work: Callable[[], _R]) -> None:
        # Kept for the one who waits: raised here, it would reach the caller wrapped in a group.
        try:
            self._answer.append(await offload.run(work))
        except (ReplicatorError, OSError) as error:
            self._error = error
        self._done.set()

    async def wait_answer(self) -> _R:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._answer.pop()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()


async def run_in_order(
    batches: AsyncGenerator[Callable[[], _R], None],
    take: Callable[[_R], Awaitable[None]],
    *,
    offload: Offload,
    in_flight_max: int,
    sealer: Sealer,
) -> None:
    """Run every batch on `offload`, and `take` each answer, in order. Commits now and then; the last commit is yours.

    Raises the first error of a batch, in order, or of a commit.
    """
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        waiting: deque[_Slot[_R]] = deque()
        commit: _Slot[None] | None = None
        try:
            async with aclosing(batches):
                async for work in batches:
                    slot: _Slot[_R] = _Slot()
                    waiting.append(slot)
                    nursery.start_soon(slot.run, offload, work)
                    if len(waiting) == in_flight_max:
                        await take(await waiting.popleft().wait_answer())
                        sealer.wake_ahead()
                    if sealer.is_commit_due and (commit is None or commit.is_done):
                        if commit is not None:
                            await commit.wait_answer()
                        commit = _Slot()
                        nursery.start_soon(commit.run, offload, sealer.commit)
            while waiting:
                await take(await waiting.popleft().wait_answer())
                sealer.wake_ahead()
            if commit is not None:
                await commit.wait_answer()
        except (ReplicatorError, OSError) as error:
            failed = error
            nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
