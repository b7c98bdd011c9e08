"""What the work needs from the world: time, randomness, and a place to compute.

They are ports so that a simulated world can own them. Everything takes them as constructor
arguments; only `replicator.app` names the real ones below.
"""

import os
import time
from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

import trio

_T = TypeVar("_T")
_A = TypeVarTuple("_A")


class WallClock(Protocol):
    """What the calendar says. Orders nothing: sequences do that."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970 in UTC."""
        ...


class Entropy(Protocol):
    """Unguessable bytes."""

    def token(self, count: int) -> bytes: ...


def fraction(entropy: Entropy) -> float:
    """A number from 0 up to, and without, 1: for pauses that must not be the same at two sites."""
    return int.from_bytes(entropy.token(6), "big") / 2**48


class Offload(Protocol):
    """Where work of over about a millisecond goes, so that it does not hold up everybody else."""

    async def run(self, work: Callable[[Unpack[_A]], _T], *args: *_A) -> _T:
        """Run `work(*args)` to its end; a cancelled caller still waits for it, so nothing runs unowned."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.time_ns()


class SystemEntropy:
    """The kernel's random numbers."""

    def token(self, count: int) -> bytes:
        return os.urandom(count)


class ThreadOffload:
    """Worker threads: the native calls in a batch (hash, LZ4, read, write) release the GIL.

    Why a bound: each running batch holds some megabytes, and more threads than cores only
    take turns. Those above the cores wait: for the disk, or for a process that works for them.
    """

    def __init__(self, threads_max: int | None = None) -> None:
        self._limiter = trio.CapacityLimiter(threads_max or (os.cpu_count() or 2) + 4)

    async def run(self, work: Callable[[Unpack[_A]], _T], *args: *_A) -> _T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)
