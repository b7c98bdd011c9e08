"""A night that is stopped goes on where it was, and only with the source that it was begun with."""

from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.markers import SOMETIMES, Markers
from tests.simulation.night import Night, OtherSource, source_digest
from tests.simulation.world import Outcome


def outcome(seed: int, *, problem: str = "", reached: str = "pruned") -> Outcome:
    markers = Markers()
    markers.reached.update({reached: 2})
    return Outcome(seed=seed, problem=problem, digest="ab", virtual_s=10.5, cpu_s=0.5, lines=7, markers=markers)


def test_what_was_found_before_is_counted_and_not_run_again(tmp_path: Path) -> None:
    first = Night(tmp_path / "night", source="a")
    first.add(outcome(4))
    first.add(outcome(6, problem="lost one\nand more"))
    again = Night(tmp_path / "night", source="a")
    assert again.remaining(range(3, 8)) == [3, 5, 7]
    again.add(outcome(5, reached="swept"))
    assert Night(tmp_path / "night", source="a").tally == again.tally
    assert again.tally.markers.reached == Counter({"pruned": 4, "swept": 2})
    lines = list(again.tally.lines(with_counts=True))
    assert lines[:2] == ["FAILED scripts/sim --seed 6", "    lost one"]
    assert "        4 pruned" in "\n".join(lines)
    assert len(again.tally.missed()) == len(SOMETIMES) - 2


def test_a_world_whose_line_was_cut_short_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "night"
    night = Night(path, source="a")
    night.add(outcome(1))
    night.add(outcome(2))
    path.write_bytes(path.read_bytes()[:-5])
    again = Night(path, source="a")
    assert again.remaining([1, 2]) == [2]
    again.add(outcome(2))
    assert Night(path, source="a").remaining([1, 2]) == []


def test_another_source_makes_other_worlds(tmp_path: Path) -> None:
    Night(tmp_path / "night", source="a").add(outcome(1))
    with pytest.raises(OtherSource, match="begun with another source"):
        Night(tmp_path / "night", source="b")


def test_the_source_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "protocol").mkdir()
    (tmp_path / "protocol" / "ids.py").write_text("a = 1")
    before = source_digest(tmp_path)
    assert source_digest(tmp_path) == before
    (tmp_path / "protocol" / "ids.py").write_text("a = 2")
    assert source_digest(tmp_path) != before
