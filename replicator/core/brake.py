"""A brake on deletion: time that has not been lived through does not end a grace.

A grace, and what a keep rule calls an hour or a day, are counted by the wall clock, and a wall clock
can be set: by a person, by a dead battery, by a time server that is wrong (zrepl, sanoid#815, Garage's
Jepsen runs). One that leaps ahead by ten years ends every grace at once. So the wall clock is held
against one that cannot be set: the time that this machine has been up, suspended or not. If the two
part by more than an hour, nothing is deleted until

- the wall clock is back where it should be, or
- it has gone steadily for as long as a grace lasts: nothing is condemned meanwhile, so every sentence
  has had its grace in lived time by then, or
- a person says that it is right.

How long a machine was off only the wall clock says. If that is more than an hour it is waited for in the
same way, unless the kernel says that a time service has set the clock.

`watched` is pure; `ClockBrake` keeps what it says.
"""

import ctypes
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from replicator.core.errors import CatalogError, StoreError
from replicator.core.facts import read_fact
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock
from replicator.core.units import format_span

LEAP_S: Final = 3600.0
"""More than any correction of a clock that is looked after, and no more than a grace may lose."""
_FORGIVEN_S: Final = 86_400.0
"""Small corrections are forgiven after so long, or a year of them would add up to a leap. So a clock may creep by an
hour a day, and a grace of a day loses no more."""
_STEADY_S: Final = 60.0
"""A clock that is put right by more than this at once does not go steadily."""
_LIVED_MIN_S: Final = 3600.0
"""Waited for at least, however short the grace: a clock that leaps tends to leap again."""
_KEEP_EVERY_S: Final = 300.0
"""What a crash may forget of the time that was lived."""
_FACT: Final = "clock.watch"


@dataclass(frozen=True, slots=True)
class Reading:
    """Both clocks at one moment. The lived time of another boot does not compare."""

    boot: str
    lived_s: float
    wall_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is known of the wall clock."""

    last: Reading
    drift_s: float = 0.0
    """How far it is ahead of where it should be, since it was last taken to be right."""
    lived_s: float = 0.0
    """The time lived since then."""
    why: str = ""
    """What is wrong with it; empty while it is trusted."""
    steady_s: float = 0.0
    """How long it has gone steadily since it is not."""
    is_unvouched: bool = False
    """What is wrong is only that the machine was off, and who knows for how long."""


def watched(before: Watch | None, now: Reading, *, newest_ns: int, is_vouched: bool, must_live_s: float) -> Watch:
    """What `now` says of the wall clock.

    `newest_ns`: the latest time that anything here was stamped with. `is_vouched`: a time service has set the clock.
    """
    if before is None:
        behind_s = (newest_ns - now.wall_ns) / 1e9
        why = f"the clock reads {format_span(behind_s)} before what was stored last" if behind_s > LEAP_S else ""
        return Watch(last=now, drift_s=-behind_s if why else 0.0, why=why)
    is_same_boot = now.boot == before.last.boot
    wall_s = (now.wall_ns - before.last.wall_ns) / 1e9
    # After a boot at least so much. (A node that is moved to another machine may find one that was up for longer.)
    since_boot_s = min(now.lived_s, max(0.0, wall_s))
    passed_s = max(0.0, now.lived_s - before.last.lived_s) if is_same_boot else since_boot_s
    leap_s = wall_s - passed_s
    drift_s, lived_s = before.drift_s + leap_s, before.lived_s + passed_s
    was_off = not is_same_boot and leap_s > 0
    if abs(drift_s) <= LEAP_S:
        # Never wrong, or set right again: what it says now is what it would have said anyway.
        if lived_s > _FORGIVEN_S:
            return Watch(last=now)
        return Watch(last=now, drift_s=drift_s, lived_s=lived_s)
    if is_vouched and (before.is_unvouched or (was_off and not before.why)):
        return Watch(last=now)
    if not before.why:
        return Watch(
            last=now, drift_s=drift_s, lived_s=lived_s, why=_describe(drift_s, was_off=was_off), is_unvouched=was_off,
            steady_s=passed_s if was_off else 0.0,
        )  # fmt: skip
    is_steady = abs(leap_s) <= _STEADY_S or was_off
    steady_s = before.steady_s + max(0.0, passed_s - (0.0 if was_off else abs(leap_s))) if is_steady else 0.0
    if steady_s >= max(_LIVED_MIN_S, must_live_s):
        return Watch(last=now)
    return replace(
        before, last=now, drift_s=drift_s, lived_s=lived_s, steady_s=steady_s,
        is_unvouched=before.is_unvouched and (was_off or is_steady),
    )  # fmt: skip


def _describe(drift_s: float, *, was_off: bool) -> str:
    span = format_span(abs(drift_s))
    if was_off:
        return f"this machine was off for {span}, by a clock that nothing vouches for"
    return f"the clock went {'ahead' if drift_s > 0 else 'back'} by {span}"


class Facts(Protocol):
    """Where the watch is kept: `Catalog`."""

    def fact(self, name: str) -> str | None: ...
    def set_fact(self, name: str, value: str) -> None: ...


class ClockBrake:
    """Watches one node's wall clock. Thread-safe."""

    def __init__(
        self,
        facts: Facts,
        *,
        wall: WallClock,
        lived: Callable[[], float],
        boot: str,
        is_vouched: Callable[[], bool] = lambda: False,
        newest_ns: int,
        must_live_s: float,
    ) -> None:
        self._facts = facts
        self._wall = wall
        self._lived = lived
        self._boot = boot
        self._is_vouched = is_vouched
        self._newest_ns = newest_ns
        self._must_live_s = must_live_s
        self._lock = threading.Lock()
        self._watch = _kept(facts.fact(_FACT))
        self._written: Watch | None = None

    def why(self) -> str:
        """Look at the clocks. Why nothing that a clock decides may be deleted now; empty if it may."""
        with self._lock:
            before = self._watch
            now = Reading(self._boot, self._lived(), self._wall.now_ns())
            watch = watched(
                before, now, newest_ns=self._newest_ns, is_vouched=self._is_vouched(), must_live_s=self._must_live_s
            )
            self._note(watch, had=before.why if before else "")
            return watch.why

    def left_s(self) -> float:
        """How long it is until a clock that goes steadily is trusted again."""
        with self._lock:
            lived_s = self._watch.steady_s if self._watch is not None else 0.0
        return max(0.0, max(_LIVED_MIN_S, self._must_live_s) - lived_s)

    def trust(self) -> None:
        """A person has said that the wall clock is right."""
        with self._lock:
            now = Reading(self._boot, self._lived(), self._wall.now_ns())
            self._note(Watch(last=now), had=self._watch.why if self._watch else "")

    def _note(self, watch: Watch, *, had: str) -> None:
        self._watch = watch
        if watch.why != had:
            said = watch.why or "it can be trusted again"
            get_logger().warning("clock.watched", found=said, then="nothing is deleted" if watch.why else "")
        old = self._written
        is_news = old is None or old.why != watch.why or old.last.boot != watch.last.boot
        if old is None or is_news or abs(watch.last.lived_s - old.last.lived_s) >= _KEEP_EVERY_S:
            try:
                self._facts.set_fact(_FACT, json.dumps(asdict(watch)))
            except (CatalogError, StoreError):
                return  # It is known while the node runs; a catalogue that takes nothing deletes nothing either.
            self._written = watch


def _kept(text: str | None) -> Watch | None:
    if not text:
        return None
    return read_fact(text, Watch, name="the clock")


def lived_s() -> float:
    """How long this machine has been up, asleep or awake."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_name() -> str:
    """Another one after each boot. Where the kernel does not say it, each start counts as a boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown, {time.monotonic_ns()}"


_TIME_ERROR: Final = 5
_TIMEX_BYTES: Final = 512
"""More than `struct timex` of any platform."""


def is_set_by_service() -> bool:
    """Whether the kernel was told by a time service (ntpd, chrony, systemd-timesyncd) that the clock is right.

    `adjtimex(2)` with nothing to change; its answer is `TIME_ERROR` for a clock that nobody looks after.
    """
    try:
        ask = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return False
    return 0 <= int(ask(ctypes.create_string_buffer(_TIMEX_BYTES))) < _TIME_ERROR
