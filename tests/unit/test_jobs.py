"""Jobs: entered durably, run once, carried on after a crash, and never the end of a node."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from replicator.core.errors import NotFound, StoreFull, UsageError
from replicator.jobs.history import JobHistory
from replicator.jobs.runner import JobContext, JobKind, JobRunner
from tests.support.clocks import FakeMonotonic, FakeWallClock

Work = Callable[[JobContext], Awaitable[dict[str, Any]]]


class Bench:
    """A runner with one kind of job, `work`, that does what the test says."""

    def __init__(self, history: JobHistory, work: Work, exclusive: str) -> None:
        self.history = history
        self.ran: list[str] = []

        async def run(context: JobContext) -> dict[str, Any]:
            self.ran.append(context.job_id)
            return await work(context)

        self.jobs = JobRunner(history, {"work": JobKind(run, lambda args: exclusive)}, clock=FakeMonotonic())

    def submit(self, job_id: str, **args: Any) -> None:
        self.jobs.submit("work", args, job_id=job_id)


async def nothing(context: JobContext) -> dict[str, Any]:
    return {"took_s": 1, "text": "done"}


async def for_ever(context: JobContext) -> dict[str, Any]:
    await trio.sleep_forever()
    return {}


@asynccontextmanager
async def a_bench(path: Path, work: Work = nothing, *, exclusive: str = "") -> AsyncIterator[Bench]:
    history = JobHistory(path / "jobs.sqlite", clock=FakeWallClock())
    bench = Bench(history, work, exclusive)
    try:
        async with trio.open_nursery() as nursery:
            started = trio.Event()

            async def run() -> None:
                await bench.jobs.run(started=started)

            nursery.start_soon(run)
            await started.wait()
            yield bench
            nursery.cancel_scope.cancel()
    finally:
        history.close()


async def test_a_job_is_entered_run_and_keeps_its_result_even_one_named_like_a_field_of_the_log(tmp_path: Path) -> None:
    """`took_s` in a result ended the node: every restore and every collection has one."""
    async with a_bench(tmp_path) as bench:
        bench.submit("a", x=1)
        row = await bench.jobs.wait("a")
        assert (row.state, row.args, row.result, row.error) == ("done", {"x": 1}, {"took_s": 1, "text": "done"}, None)


async def test_who_waits_for_a_job_hears_of_its_end_at_once_and_of_no_end_when_the_time_is_over(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def a_while(context: JobContext) -> dict[str, Any]:
        await trio.sleep(context.args["seconds"])
        return {}

    async with a_bench(tmp_path, a_while) as bench:
        bench.submit("short", seconds=0.4)
        began = trio.current_time()
        assert (await bench.jobs.view_soon("short", wait_s=1.0)).row.state == "done"
        assert trio.current_time() - began == pytest.approx(0.4)
        bench.submit("long", seconds=10.0)
        began = trio.current_time()
        assert (await bench.jobs.view_soon("long", wait_s=1.0)).row.state == "running"
        assert trio.current_time() - began == pytest.approx(1.0)
        for at_once in (0.0, -1.0, math.nan):
            assert (await bench.jobs.view_soon("long", wait_s=at_once)).row.state == "running"
        assert trio.current_time() - began == pytest.approx(1.0)
        with pytest.raises(NotFound):
            await bench.jobs.view_soon("never", wait_s=1.0)


async def test_the_same_id_twice_is_one_job_also_after_it_has_ended(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        for _ in range(3):
            bench.submit("a")
        await bench.jobs.wait("a")
        bench.submit("a")
        await bench.jobs.wait("a")
        assert bench.ran == ["a"]


async def test_a_job_that_was_cut_by_the_end_of_the_node_is_run_again_at_the_next_start(tmp_path: Path) -> None:
    async with a_bench(tmp_path, for_ever, exclusive="k") as bench:
        bench.submit("running", n=1)
        await trio.testing.wait_all_tasks_blocked()
        bench.submit("queued", n=2)
        await trio.testing.wait_all_tasks_blocked()
        assert [bench.history.get(one).state for one in ("running", "queued")] == ["running", "queued"]
    async with a_bench(tmp_path) as bench:
        assert [(await bench.jobs.wait(one)).state for one in ("running", "queued")] == ["done", "done"]
        assert sorted(bench.ran) == ["queued", "running"]


async def test_a_job_of_a_kind_that_this_release_does_not_know_fails_and_the_node_comes_up(tmp_path: Path) -> None:
    history = JobHistory(tmp_path / "jobs.sqlite", clock=FakeWallClock())
    history.enter("old", "from the future", {})
    history.close()
    async with a_bench(tmp_path) as bench:
        row = await bench.jobs.wait("old")
        assert row.state == "failed" and row.error is not None and "from the future" in row.error["message"]
        assert not bench.jobs.is_active("work", "")


@pytest.mark.parametrize(
    ("raised", "code", "exit_code"),
    [(StoreFull("full"), "store_full", 73), (OSError(5, "I/O error"), "os", 74), (ZeroDivisionError(), "internal", 70)],
)
async def test_what_a_job_raises_is_its_own_end_and_nobody_elses(
    tmp_path: Path, raised: Exception, code: str, exit_code: int
) -> None:
    async def work(context: JobContext) -> dict[str, Any]:
        if context.args:
            return {}
        async with trio.open_nursery():
            raise raised

    async with a_bench(tmp_path, work) as bench:
        bench.submit("bad")
        bench.submit("good", fine=True)
        bad = await bench.jobs.wait("bad")
        assert bad.state == "failed" and bad.error is not None
        assert (bad.error["code"], bad.error["exit_code"]) == (code, exit_code)
        assert (await bench.jobs.wait("good")).state == "done"


async def test_a_job_is_cancelled_while_it_runs_while_it_waits_and_before_it_began(tmp_path: Path) -> None:
    async with a_bench(tmp_path, for_ever, exclusive="k") as bench:
        bench.submit("runs")
        await trio.testing.wait_all_tasks_blocked()
        bench.submit("waits")
        await trio.testing.wait_all_tasks_blocked()
        bench.submit("fresh")
        for one in ("fresh", "waits", "runs"):
            bench.jobs.cancel(one)
        for one in ("runs", "waits", "fresh"):
            assert (await bench.jobs.wait(one)).state == "cancelled"
        assert bench.ran == ["runs"]
        with pytest.raises(NotFound):
            bench.jobs.cancel("runs")


async def test_jobs_with_the_same_key_take_turns_and_others_do_not_wait(tmp_path: Path) -> None:
    most = now = 0

    async def work(context: JobContext) -> dict[str, Any]:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await trio.sleep(0.01)
        now -= 1
        return {}

    for exclusive, expected in (("k", 1), ("", 4)):
        most = 0
        async with a_bench(tmp_path, work, exclusive=exclusive) as bench:
            for number in range(4):
                bench.submit(f"{exclusive}{number}")
            for number in range(4):
                await bench.jobs.wait(f"{exclusive}{number}")
        assert most == expected


async def test_an_unknown_kind_is_refused_before_it_is_entered(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        with pytest.raises(UsageError, match="nonsense"):
            bench.jobs.submit("nonsense", {}, job_id="x")
        with pytest.raises(NotFound):
            bench.history.get("x")


async def test_a_full_disk_does_not_keep_a_job_from_running_and_telling_its_result(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.submit("before")
        await bench.jobs.wait("before")

        def refuse(*_: object) -> None:
            raise StoreFull("no room")

        bench.history._insert = refuse  # type: ignore[method-assign]
        bench.submit("restore me")
        row = await bench.jobs.wait("restore me")
        assert (row.state, row.result) == ("done", {"took_s": 1, "text": "done"})
        assert {row.job_id for row in bench.history.newest(limit=10)} == {"before", "restore me"}


def test_a_damaged_table_is_put_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    history = JobHistory(path, clock=FakeWallClock())
    history.enter("a", "work", {})
    history.close()
    path.write_bytes(b"garbage" * 1000)
    history = JobHistory(path, clock=FakeWallClock())
    assert history.newest(limit=5) == []
    history.close()
    assert path.with_name("jobs.sqlite.damaged").exists()


async def test_a_job_that_is_cancelled_before_its_first_step_does_not_hold_up_the_line(tmp_path: Path) -> None:
    async with a_bench(tmp_path, exclusive="k") as bench:
        bench.submit("cancelled", n=1)
        bench.jobs.cancel("cancelled")
        bench.submit("next", n=2)
        with trio.fail_after(10):
            assert (await bench.jobs.wait("next")).state == "done"
        assert (await bench.jobs.wait("cancelled")).state == "cancelled"


async def test_a_job_that_was_running_when_the_node_was_killed_knows_that_it_runs_again(tmp_path: Path) -> None:
    async with a_bench(tmp_path, for_ever) as bench:
        bench.submit("begun")
        await trio.testing.wait_all_tasks_blocked()
    again: dict[str, bool] = {}

    async def note(context: JobContext) -> dict[str, Any]:
        again[context.job_id] = context.is_again
        return {}

    async with a_bench(tmp_path, note) as bench:
        bench.submit("fresh")
        for name in ("begun", "fresh"):
            await bench.jobs.wait(name)
    assert again == {"begun": True, "fresh": False}


async def test_a_job_that_is_submitted_while_the_node_goes_down_waits_for_the_next_start(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        pass
    history = JobHistory(tmp_path / "jobs.sqlite", clock=FakeWallClock())
    bench.jobs._history = history
    bench.submit("late")
    history.close()
    async with a_bench(tmp_path) as bench:
        assert (await bench.jobs.wait("late")).state == "done"


class _WhenItEnds(trio.abc.Instrument):
    """Calls in the step in which a task has ended, before anybody else gets a turn."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self._name = name
        self._act = act
        self.problems: list[RuntimeError] = []

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if self._name in task.name:
            try:
                self._act()
            except RuntimeError as problem:  # Trio would only log it.
                self.problems.append(problem)


async def test_a_job_that_is_submitted_between_the_end_of_the_last_one_and_of_the_node_waits_too(
    tmp_path: Path,
) -> None:
    """The nursery takes nobody from its last task's end on, a step before whoever runs it goes on."""
    async with a_bench(tmp_path, for_ever) as bench:
        bench.submit("last")
        await trio.testing.wait_all_tasks_blocked()
        at_the_end = _WhenItEnds("_run_one", lambda: bench.submit("late"))
        trio.lowlevel.add_instrument(at_the_end)
    trio.lowlevel.remove_instrument(at_the_end)
    assert at_the_end.problems == []
    async with a_bench(tmp_path) as bench:
        assert [(await bench.jobs.wait(one)).state for one in ("last", "late")] == ["done", "done"]
