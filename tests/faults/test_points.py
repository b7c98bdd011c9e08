"""A short slice of the points; `scripts/torture kill-points` and `errors` play as many as there is time for."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.flushes import first_flushes
from tests.faults.judge import Promised, judge_store
from tests.faults.points import PHASES, Judged, census, draw, play
from tests.faults.stage import Stage

KILLS, ERRORS_PLAYED = 20, 20


@pytest.fixture(scope="module")
def counts(stage: Stage) -> dict[str, dict[str, int]]:
    return {phase: census(stage, phase, 1) for phase in PHASES}


def assert_good(judged: list[Judged]) -> None:
    problems = [f"{one.point}: {one.problem}" for one in judged if one.problem]
    assert problems == []
    assert sum(one.reached for one in judged) >= 0.7 * len(judged), "hardly a point was reached"


def test_a_kill_at_any_call_of_any_phase_loses_nothing_acknowledged(
    stage: Stage, counts: dict[str, dict[str, int]]
) -> None:
    assert_good([play(stage, one) for one in itertools.islice(draw(counts, random.Random(1), kind="kill"), KILLS)])


def test_an_error_at_any_call_is_survived_or_refused_in_words(stage: Stage, counts: dict[str, dict[str, int]]) -> None:
    points = itertools.islice(draw(counts, random.Random(2), kind="errors"), ERRORS_PLAYED)
    assert_good([play(stage, one) for one in points])


def test_after_a_flush_that_failed_nothing_is_acknowledged_ever_again(stage: Stage) -> None:
    """PostgreSQL 2018: the kernel marks the pages clean, so the second flush succeeds and means nothing."""
    judged = list(first_flushes(stage, count=8, seed=1))
    assert_good(judged)
    assert len(judged) >= 12


def test_a_writer_stopped_past_its_lease_and_woken_after_a_collection_is_refused(stage: Stage, tmp_path: Path) -> None:
    """restic#3569, with real signals: what it was told is here has been collected when it wakes."""
    args = {"folder": str(tmp_path / "s"), "seed": 1, "clock_rate": 20_000}
    actor = stage.work("sleeper", args, said=tmp_path / "said")
    stage.wait_stopped(actor)
    time.sleep(0.1)
    os.kill(actor.pid, signal.SIGCONT)
    assert stage.wait_ended(actor) == 0, actor.errors()
    lines = actor.lines()
    assert "told 6" in lines
    assert "left 0" in lines, "the lease of a sleeping writer holds up collections for ever"
    assert any(line.startswith("error LeaseLost") for line in lines), lines
    promised = Promised.read(lines)
    assert len(promised.blocks) == 6, "the clean retry"
    judge_store(tmp_path / "s", promised)
