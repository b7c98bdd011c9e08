"""Randomness, time and a place to compute, for a world that can be repeated."""

import random
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from replicator.testing.timers import sleep_through

_T = TypeVar("_T")
_A = TypeVarTuple("_A")
_BEGAN_NS = 1_767_225_600 * 10**9
"""Where wall clocks stand when a mesh begins: the first of January 2026."""


class SeededEntropy:
    """`Entropy` that says the same again for the same seed. For tests only: anybody can foresee it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def token(self, count: int) -> bytes:
        return self._chance.randbytes(count)


class MemoryClock:
    """A machine's wall clock: it runs as the mesh's time does, and may be set."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._began_s = monotonic()
        self.skew_s = 0.0
        """How much this clock is ahead of the truth."""

    def now_ns(self) -> int:
        return _BEGAN_NS + int((self._monotonic() - self._began_s + self.skew_s) * 1e9)


class InlineOffload:
    """`Offload` without threads: the work is done in the task that asks, between two pauses of its own length.

    As with a thread, who is cancelled before the work begins does without it, and who is cancelled later still
    waits for its end; and work that was asked for first may well end last.
    """

    def __init__(self, pause_s: Callable[[], float]) -> None:
        self._pause_s = pause_s

    async def run(self, work: Callable[[Unpack[_A]], _T], *args: *_A) -> _T:
        if pause_s := self._pause_s():
            await trio.lowlevel.checkpoint_if_cancelled()
            await sleep_through(pause_s)
        else:
            await trio.lowlevel.checkpoint()
        answer = work(*args)
        await sleep_through(self._pause_s())
        return answer
