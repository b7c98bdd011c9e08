"""Jobs and their turns, in any order of submitting, finishing, failing, cancelling and being killed.

Each example is one script that runs in virtual time. What must hold: a job that was accepted ends, or is
taken up again after a crash; no two jobs with one key ever run at once; those with one key run in the order in
which they were asked for; and the same id is the same job.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.core.errors import NotFound, StoreError
from replicator.jobs.history import JobHistory
from replicator.jobs.runner import JobContext, JobKind, JobRunner
from replicator.testing.determinism import run_in_virtual_time
from tests.support.clocks import FakeMonotonic, FakeWallClock

KEYS = st.sampled_from(["", "a", "b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), KEYS, st.sampled_from([0.0, 1.0, 5.0]), st.booleans()),
        st.tuples(st.just("repeat"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 7.0])),
        st.tuples(st.just("kill")),
    ),
    max_size=25,
)


class Jobs:
    """A node's jobs over several lives, and a book of what they did."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeWallClock()
        self.history = JobHistory(path, clock=self.clock)
        self.asked: dict[str, str] = {}
        self.begun: dict[str, list[str]] = defaultdict(list)
        self.running: dict[str, set[str]] = defaultdict(set)
        self.cancelled: set[str] = set()

    async def work(self, context: JobContext) -> dict[str, Any]:
        key, name = context.args["key"], context.job_id
        assert not key or not self.running[key], f"{name} runs beside {self.running[key]}"
        self.running[key].add(name)
        if name not in self.begun[key]:
            self.begun[key].append(name)
        try:
            await trio.sleep(context.args["seconds"])
            if context.args["fails"]:
                raise StoreError("no room")
            return {"done": 1}
        finally:
            self.running[key].discard(name)

    async def live(self, steps: list[tuple[Any, ...]], *, to_the_end: bool) -> list[tuple[Any, ...]]:
        """One life: until it is killed. Returns the steps that are left."""
        runner = JobRunner(
            self.history, {"work": JobKind(self.work, lambda args: str(args["key"]))}, clock=FakeMonotonic()
        )
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            run: Callable[[], Any] = lambda: runner.run(started=started)  # noqa: E731
            nursery.start_soon(run)
            await started.wait()
            while steps:
                step, steps = steps[0], steps[1:]
                match step:
                    case ("submit", key, seconds, fails):
                        self.clock.advance(1)
                        name = f"job-{len(self.asked)}"
                        self.asked[name] = key
                        runner.submit("work", {"key": key, "seconds": seconds, "fails": fails}, job_id=name)
                    case ("repeat", number) if self.asked:
                        name = sorted(self.asked)[number % len(self.asked)]
                        runner.submit("work", {"key": "other", "seconds": 99, "fails": True}, job_id=name)
                    case ("cancel", number) if self.asked:
                        name = sorted(self.asked)[number % len(self.asked)]
                        try:
                            runner.cancel(name)
                            self.cancelled.add(name)
                        except NotFound:
                            assert self.history.get(name).state not in ("queued", "running")
                    case ("wait", seconds):
                        await trio.sleep(seconds)
                    case ("kill",):
                        break
            else:
                if to_the_end:
                    for name in self.asked:
                        await runner.wait(name)
            nursery.cancel_scope.cancel()
        return steps


@given(steps=STEPS)
@settings(max_examples=60)
def test_whatever_happens_each_job_ends_once_and_in_its_turn(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        jobs = Jobs(Path(folder) / "jobs.sqlite")

        async def main() -> None:
            left = steps
            while left:
                left = await jobs.live(left, to_the_end=False)
            await jobs.live([], to_the_end=True)

        run_in_virtual_time(main, seed=1)
        for name, key in jobs.asked.items():
            row = jobs.history.get(name)
            assert row.args["key"] == key, "an id keeps its first meaning"
            assert row.state in ("done", "failed", "cancelled")
            assert row.state != "cancelled" or name in jobs.cancelled
            if row.state == "failed":
                assert row.args["fails"] and row.error is not None and row.error["code"] == "store"
        for key, begun in jobs.begun.items():
            asked = [name for name, of in jobs.asked.items() if of == key and name in begun]
            assert not key or begun == asked, "first come, first served"
        assert not jobs.history.unfinished()
        jobs.history.close()
