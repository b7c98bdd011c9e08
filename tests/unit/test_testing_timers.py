"""Waiting without Trio's scopes: the same moments, the same cancellation, on the mesh's clock and on any other."""

import math

import pytest
import trio
import trio.testing

from replicator.testing import run_in_virtual_time
from replicator.testing.timers import Bell, sleep, sleep_through


def test_a_sleep_ends_at_its_moment_and_in_the_order_of_moments() -> None:
    async def main() -> list[tuple[str, float]]:
        ended: list[tuple[str, float]] = []

        async def one(name: str, seconds: float) -> None:
            await trio.sleep(seconds)
            ended.append((name, trio.current_time()))

        async def by_scope(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await trio.sleep_forever()
            ended.append(("scope", trio.current_time()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "late", 3.0)
            nursery.start_soon(one, "early", 1.0)
            nursery.start_soon(by_scope, 2.0)
            nursery.start_soon(one, "at once", 0)
        return ended

    assert run_in_virtual_time(main, seed=1) == [("at once", 0.0), ("early", 1.0), ("scope", 2.0), ("late", 3.0)]


def test_what_is_due_in_one_moment_comes_in_an_order_that_the_seed_decides() -> None:
    async def main() -> str:
        order: list[str] = []

        async def timer() -> None:
            await trio.sleep(1)
            order.append("timer")

        async def scope() -> None:
            with trio.move_on_after(1):
                await trio.sleep_forever()
            order.append("scope")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timer)
            nursery.start_soon(scope)
        return " ".join(order)

    assert {run_in_virtual_time(main, seed=seed) for seed in range(20)} == {"timer scope", "scope timer"}


@pytest.mark.parametrize("is_virtual", [True, False])
def test_a_sleep_can_be_cancelled_and_one_that_is_patient_cannot(*, is_virtual: bool) -> None:
    async def main() -> list[float]:
        ended: list[float] = []
        for wait in (sleep, sleep_through):
            began = trio.current_time()
            with trio.move_on_after(1):
                await wait(5)
            ended.append(trio.current_time() - began)
        await trio.sleep(10)  # The entry of the first one comes by, and wakes nobody.
        return ended

    clock = trio.testing.MockClock(autojump_threshold=0)
    assert (run_in_virtual_time(main, seed=1) if is_virtual else trio.run(main, clock=clock)) == [1.0, 5.0]


@pytest.mark.parametrize("is_virtual", [True, False])
@pytest.mark.parametrize("until", [7.0, math.inf])
def test_a_bell_ends_the_wait_before_its_moment(until: float, *, is_virtual: bool) -> None:
    async def main() -> float:
        bell = Bell()

        async def ring() -> None:
            await trio.sleep(2)
            bell.ring()
            bell.ring()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ring)
            await bell.wait(until)
        ended = trio.current_time()
        await trio.sleep(10)  # Nor does its entry wake anybody who waits for something else.
        assert trio.current_time() == ended + 10
        return ended

    clock = trio.testing.MockClock(autojump_threshold=0)
    assert (run_in_virtual_time(main, seed=1) if is_virtual else trio.run(main, clock=clock)) == 2.0


def test_a_moment_that_has_passed_is_a_pause_in_which_others_run() -> None:
    async def main() -> list[str]:
        order: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note, order)
            await Bell().wait(0.0)
            await Bell().wait(-1.0, is_patient=True)
            order.append("we")
        return order

    assert run_in_virtual_time(main, seed=1) == ["other", "we"]


async def _note(order: list[str]) -> None:
    order.append("other")


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_nobody_sleeps_for_less_than_nothing(seconds: float) -> None:
    async def main() -> None:
        await trio.sleep(seconds)

    with pytest.raises(ValueError, match="negative"):
        run_in_virtual_time(main, seed=1)
