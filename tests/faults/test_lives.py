"""One store through many lives, and a full disk under a node: short slices of the night's work."""

import os

import pytest

from tests.faults.full_disk import cycle_full_disk
from tests.faults.mesh import play_mesh
from tests.faults.points import Judged
from tests.faults.same_store import live
from tests.faults.stage import Stage


def test_the_same_store_survives_one_kill_after_the_other(stage: Stage) -> None:
    lives = live(stage, rounds=15, seed=3)
    assert lives.problem == ""
    assert lives.rounds == 15


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_restores_everything_and_is_emptied_without_room() -> None:
    cycles = cycle_full_disk(1, seed=1)
    assert cycles.problem == ""
    assert cycles.restores_at_zero >= 2


@pytest.mark.parametrize("kind", ["kill", "errors"])
def test_a_node_that_dies_in_a_receive_a_repair_or_a_rebuild_is_back_and_finishes(stage: Stage, kind: str) -> None:
    judged: list[Judged] = []
    play_mesh(stage, rounds=2, seed=1, kind=kind, on_judged=judged.append)
    assert [f"{one.point}: {one.problem}" for one in judged if one.problem] == []
