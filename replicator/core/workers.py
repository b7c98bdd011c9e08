"""Background work has one shape, so that one runner can start, pace, list and stop all of it.

`step` does one unit and says how it went; between steps the worker may be stopped, and
nothing is lost. A worker that raises is logged, shown as failed, and tried again later: a
node does not die because its scrub met something it had not seen before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from replicator.core.errors import ReplicatorError
from replicator.core.logging import get_logger


@dataclass(frozen=True, slots=True)
class Busy:
    """There is more to do now."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """There is more to do, but not before so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do for so many seconds, or until woken."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to do ever again."""


Outcome = Busy | Throttled | Idle | Done


class Worker(Protocol):
    """One kind of background work."""

    @property
    def name(self) -> str: ...

    async def step(self) -> Outcome:
        """Do one unit of work."""
        ...


@dataclass(slots=True)
class WorkerState:
    """How a worker is, for `replicator status`."""

    name: str
    state: str = "starting"
    steps: int = 0
    last_error: str = ""


_RETRY_S: Final = 30.0


class WorkerRunner:
    """Runs every worker in one nursery."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._wakes = {worker.name: trio.Event() for worker in workers}
        self.states = {worker.name: WorkerState(worker.name) for worker in workers}

    def wake(self, name: str) -> None:
        """Let an idle worker look again now."""
        self._wakes[name].set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for worker in self._workers:
                nursery.start_soon(self._run_one, worker)

    async def _run_one(self, worker: Worker) -> None:
        state, log = self.states[worker.name], get_logger(worker=worker.name)
        while True:
            try:
                outcome = await worker.step()
                state.steps, state.last_error = state.steps + 1, ""
            except (ReplicatorError, OSError) as error:
                state.last_error = str(error)
                log.warning("worker.failed", error=str(error))
                outcome = Idle(_RETRY_S)
            except Exception as error:
                state.last_error = f"an internal error: {error!r}"
                log.exception("worker.bug")
                outcome = Idle(_RETRY_S)
            match outcome:
                case Busy():
                    state.state = "busy"
                    await trio.lowlevel.checkpoint()
                case Throttled(seconds):
                    state.state = "throttled"
                    await trio.sleep(seconds)
                case Idle(seconds):
                    state.state = "failed" if state.last_error else "idle"
                    self._wakes[worker.name] = trio.Event()
                    with trio.move_on_after(seconds):
                        await self._wakes[worker.name].wait()
                case Done():
                    state.state = "done"
                    return
