"""Running jobs: each in a task of its own, those that must not meet one after the other.

Where an error ends up: in the job's row, with its code, exit code and hint. Nothing that a
job does takes the node down.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from replicator.core.errors import NotFound, ReplicatorError, UsageError
from replicator.core.logging import get_logger
from replicator.core.progress import Progress, ProgressView
from replicator.jobs.history import UNFINISHED, JobHistory, JobRow
from replicator.jobs.turns import Turns


@dataclass(slots=True)
class JobContext:
    """What a running job is given."""

    job_id: str
    kind: str
    args: dict[str, Any]
    progress: Progress
    is_again: bool = False
    """Whether it had begun already when the node stopped, or was killed."""


Executor = Callable[[JobContext], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of job: how it is run, and which jobs must not run at the same time."""

    run: Executor
    exclusive: Callable[[dict[str, Any]], str]
    """Jobs with the same non-empty answer run one after the other."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job and how far it is."""

    row: JobRow
    progress: ProgressView | None


class JobRunner:
    """Runs the jobs of one node."""

    def __init__(self, history: JobHistory, kinds: dict[str, JobKind], *, clock: Callable[[], float]) -> None:
        self._history = history
        self._kinds = kinds
        self._clock = clock
        self._nursery: trio.Nursery | None = None
        self._is_over = False
        self._contexts: dict[str, JobContext] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._turns = Turns()
        self._ended: dict[str, trio.Event] = {}

    async def run(self, *, started: trio.Event) -> None:
        """Take up what an earlier run left unfinished, and then whatever is submitted, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for row in self._history.unfinished():
                    self._start(row)
                started.set()
                await trio.sleep_forever()
            finally:
                # Before the nursery closes: from its last task's end on it takes nobody any more.
                self._is_over = True

    def submit(self, kind: str, args: dict[str, Any], *, job_id: str) -> JobView:
        """Enter a job durably and start it. Raises `UsageError` for a kind that there is not."""
        self._kind(kind)
        row = self._history.enter(job_id, kind, args)
        if row.state in UNFINISHED and job_id not in self._contexts:
            self._start(row)
        return self.view(job_id)

    def _kind(self, name: str) -> JobKind:
        if name not in self._kinds:
            raise UsageError(f"There is no kind of job {name!r}.", hint=f"Kinds: {', '.join(sorted(self._kinds))}.")
        return self._kinds[name]

    def _start(self, row: JobRow) -> None:
        assert self._nursery is not None, "jobs are submitted while the runner runs"
        if self._is_over:
            return  # The node is going down: the job is taken up at the next start.
        context = JobContext(
            row.job_id, row.kind, row.args, Progress(clock=self._clock), is_again=row.state == "running"
        )
        self._contexts[row.job_id] = context
        self._scopes[row.job_id] = trio.CancelScope()
        self._ended[row.job_id] = trio.Event()
        self._turns.line_up(self._key_of(row), row.job_id)
        self._nursery.start_soon(self._run_one, row, context)

    def _key_of(self, row: JobRow) -> str:
        kind = self._kinds.get(row.kind)
        try:
            return "" if kind is None else kind.exclusive(row.args)
        except (TypeError, ValueError, AttributeError, LookupError):
            return ""  # arguments that make no sense: running the job will say so, in the job's own row

    async def _run_one(self, row: JobRow, context: JobContext) -> None:
        log = get_logger(job=row.job_id, kind=row.kind)
        scope = self._scopes[row.job_id]
        began = trio.current_time()
        state, result, error = "cancelled", None, None
        try:
            with scope:
                await trio.lowlevel.checkpoint()  # It may have been cancelled before its first step.
                kind = self._kind(row.kind)
                async with self._turns.turn(self._key_of(row), row.job_id):
                    self._history.start(row.job_id)
                    result = await kind.run(context)
                    state = "done"
        except* ReplicatorError as group:
            state, error = "failed", describe_error(_first(group))
        except* OSError as group:
            problem = _first(group)
            state, error = "failed", {"code": "os", "message": str(problem), "hint": "", "exit_code": 74}
        except* Exception as group:
            log.exception("job.bug")
            message = f"An internal error: {_first(group)!r}."
            hint = "Please report it with the log line `job.bug`."
            state, error = "failed", {"code": "internal", "message": message, "hint": hint, "exit_code": 70}
        if state == "cancelled" and not scope.cancelled_caught:
            return  # the node is going down: the job stays unfinished, and is taken up at the next start
        self._turns.leave(self._key_of(row), row.job_id)
        self._history.finish(row.job_id, state, result=result, error=error)
        self._forget(row.job_id)
        took_s = round(trio.current_time() - began, 3)
        if error is not None:
            log.warning("job.failed", error=error["message"], code=error["code"], took_s=took_s)
        else:
            log.info(f"job.{state}", **{**_brief(result), "took_s": took_s})

    def _forget(self, job_id: str) -> None:
        self._contexts.pop(job_id, None)
        self._scopes.pop(job_id, None)
        self._ended.pop(job_id).set()

    async def wait(self, job_id: str) -> JobRow:
        """The job, once it has ended."""
        if (event := self._ended.get(job_id)) is not None:
            await event.wait()
        return self._history.get(job_id)

    def cancel(self, job_id: str) -> None:
        """Stop a job at its next wait. Raises `NotFound` if it is not running."""
        if job_id not in self._scopes:
            raise NotFound(f"Job {job_id!r} is not running.")
        self._scopes[job_id].cancel()

    def is_active(self, kind: str, key: str) -> bool:
        """Whether a job of this kind with this exclusion key is queued or running."""
        return any(
            context.kind == kind and self._kind(kind).exclusive(context.args) == key
            for context in self._contexts.values()
        )

    def view(self, job_id: str) -> JobView:
        row = self._history.get(job_id)
        context = self._contexts.get(job_id)
        return JobView(row, context.progress.view() if context is not None else None)

    async def view_soon(self, job_id: str, *, wait_s: float) -> JobView:
        """The job once it has ended, or as it is after `wait_s`."""
        if wait_s > 0:
            with trio.move_on_after(wait_s):
                await self.wait(job_id)
        return self.view(job_id)

    def views(self, *, limit: int) -> list[JobView]:
        return [self.view(row.job_id) for row in self._history.newest(limit=limit)]

    @property
    def trouble(self) -> str:
        """Why jobs are no longer written down; empty while they are."""
        return self._history.trouble

    def running(self) -> list[JobView]:
        return [self.view(job_id) for job_id in list(self._contexts)]


def describe_error(error: BaseException) -> dict[str, Any]:
    """An error as the API tells it."""
    assert isinstance(error, ReplicatorError)
    return {"code": error.code, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


def _brief(result: dict[str, Any] | None) -> dict[str, Any]:
    """The numbers of a result, for one log line."""
    return {key: value for key, value in (result or {}).items() if isinstance(value, int | float | str)}
