"""Wrong clocks under real nodes, and routes that die between them: short slices of the night's work."""

import pytest

from tests.faults.clocks import NoCompiler, leap_clocks
from tests.faults.cuts import cut_routes
from tests.support.namespaces import why_no_hosts


def test_a_clock_that_leaps_by_ten_years_deletes_nothing_and_stops_nothing_else() -> None:
    try:
        leapt = leap_clocks(2, seed=3)
    except NoCompiler as error:
        pytest.skip(str(error))
    assert leapt.problem == ""
    assert leapt.rounds == 2 and leapt.refused == 2


def test_routes_that_die_are_gone_around_or_waited_for_and_nothing_is_left_over() -> None:
    if why := why_no_hosts():
        pytest.skip(why)
    cuts = cut_routes(1, seed=4)
    assert cuts.problem == ""
    assert cuts.rounds == 1
