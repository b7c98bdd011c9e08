"""A few power cuts on a recorded disk; `scripts/torture power` makes thousands."""

import pytest

from tests.faults.power import CutJudged, can_cut, cut_and_judge
from tests.faults.stage import Stage

why_not = can_cut()


@pytest.mark.skipif(bool(why_not), reason=why_not)
@pytest.mark.parametrize("work", ["commit", "collection", "ingest"])
def test_a_power_cut_at_any_moment_loses_nothing_acknowledged(stage: Stage, work: str) -> None:
    judged: list[CutJudged] = []
    cut_and_judge(stage, work, 1, 8, on_judged=judged.append)
    assert [one for one in judged if one.problem] == []
    assert sum(one.promised > 0 for one in judged) >= 4, "most cuts must come after something was promised"
