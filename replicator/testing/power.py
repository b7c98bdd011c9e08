"""The switch of a machine. What was durable before it is turned off is there afterwards, and nothing else.

Every durable step of a machine (a commit of a database, a flush of the store) asks here first and
reports afterwards, so a test can pull the plug exactly before or after the k-th of them. Once it
is off, whatever of the old node still runs (a `finally`, a cancelled task) reaches no disk.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PowerCut(BaseException):
    """The machine is off. Not an `Exception`: nothing in a node can cope with it."""


class Power:
    """One life of a machine. `on_cut` is called once, when it ends by a power cut."""

    def __init__(self) -> None:
        self.is_on = True
        self.on_cut: Callable[[], None] = lambda: None
        self.steps = 0
        self.cut_at: int | None = None
        """Pull the plug at this step; even numbers are before something is durable, odd ones after it."""

    def cut(self) -> None:
        if self.is_on:
            self.is_on = False
            self.on_cut()

    def step(self) -> None:
        """Raises `PowerCut`."""
        if self.is_on and self.cut_at is not None and self.steps >= self.cut_at:
            self.cut()
        self.steps += 1
        if not self.is_on:
            raise PowerCut

    @contextmanager
    def durable(self) -> Iterator[None]:
        """Round a durable step. Raises `PowerCut`."""
        self.step()
        yield
        self.step()
