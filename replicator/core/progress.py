"""How far a piece of work is, how fast it goes, and when it will end."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_WINDOW_S: Final = 5.0
"""The rate is taken over this long: shorter jumps about, longer lags behind a change of the cap."""


@dataclass(frozen=True, slots=True)
class ProgressView:
    """What a person is shown. `total` is 0 while unknown; `eta_s` is None while it cannot be told."""

    phase: str
    done: int
    total: int
    unit: str
    rate: float
    eta_s: float | None
    detail: str


class Progress:
    """Counted by the one who works, read by everybody else through `view`."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()
        self.phase = "starting"
        self.unit = "bytes"
        self.done = 0
        self.total = 0
        self.detail = ""

    def begin(self, phase: str, *, unit: str = "bytes", total: int = 0) -> None:
        """Start counting afresh."""
        self.phase, self.unit, self.done, self.total, self.detail = phase, unit, 0, total, ""
        self._marks.clear()
        self._marks.append((self._clock(), 0))

    def advance(self, count: int) -> None:
        self.set_done(self.done + count)

    def set_done(self, done: int) -> None:
        self.done = done
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] > 0.1:
            self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()

    def view(self) -> ProgressView:
        rate = 0.0
        if self._marks:
            began, before = self._marks[0]
            elapsed = self._clock() - began
            rate = (self.done - before) / elapsed if elapsed > 0.05 else 0.0
        left = self.total - self.done
        eta = left / rate if rate > 0 and self.total and left >= 0 else None
        return ProgressView(self.phase, self.done, self.total, self.unit, rate, eta, self.detail)
