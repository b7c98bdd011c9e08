"""Hours of the week in the operator's own time zone, over changes of the clock."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.core.errors import UsageError
from replicator.core.throttle import parse_rule
from replicator.core.timetable import parse_span_of_week, parse_windows

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_NS = 3600 * 10**9


def ns(*parts: int, zone: ZoneInfo = BERLIN, fold: int = 0) -> int:
    return int(datetime(*parts, tzinfo=zone, fold=fold).timestamp()) * 10**9  # type: ignore[arg-type,misc]


def test_a_rule_holds_at_its_hours_and_the_default_at_all_others() -> None:
    rule = parse_rule("20MB/s; mon-fri 08:00-18:00 2MB/s; sat 00:00-24:00 none", zone="Europe/Berlin")
    assert rule.at(ns(2026, 11, 25, 7, 59)) == 20_000_000  # A Wednesday.
    assert rule.at(ns(2026, 11, 25, 8, 0)) == 2_000_000
    assert rule.at(ns(2026, 11, 25, 17, 59)) == 2_000_000
    assert rule.at(ns(2026, 11, 25, 18, 0)) == 20_000_000
    assert rule.at(ns(2026, 11, 28, 12, 0)) == 0
    assert rule.at(ns(2026, 11, 29, 12, 0)) == 20_000_000


def test_of_two_rules_for_an_hour_the_last_counts() -> None:
    rule = parse_rule("none; mon-sun 00:00-24:00 5MB/s; wed 10:00-11:00 1MB/s")
    assert rule.at(ns(2026, 11, 25, 10, 30, zone=ZoneInfo("UTC"))) == 1_000_000
    assert rule.at(ns(2026, 11, 25, 11, 30, zone=ZoneInfo("UTC"))) == 5_000_000


def test_a_window_past_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    night = parse_windows("fri 22:00-06:00", zone="Europe/Berlin")
    assert not night.at(ns(2026, 11, 27, 5, 0))  # Friday morning.
    assert night.at(ns(2026, 11, 27, 22, 0)) and night.at(ns(2026, 11, 28, 5, 59))
    assert not night.at(ns(2026, 11, 28, 6, 0)) and not night.at(ns(2026, 11, 28, 23, 0))


def test_an_hour_that_comes_twice_is_the_same_hour_both_times_and_one_that_does_not_come_is_not_there() -> None:
    window = parse_windows("02:00-03:00", zone="Europe/Berlin")
    autumn = [ns(2026, 10, 25, 0, 0) + n * HOUR_NS for n in range(25)]  # A day of 25 hours.
    assert sum(window.at(at) for at in autumn) == 2
    spring = [ns(2026, 3, 29, 0, 0) + n * HOUR_NS for n in range(23)]
    assert sum(window.at(at) for at in spring) == 0
    usual = [ns(2026, 7, 1, 0, 0) + n * HOUR_NS for n in range(24)]
    assert sum(window.at(at) for at in usual) == 1


def test_eight_in_the_morning_is_eight_in_the_morning_in_summer_and_in_winter() -> None:
    rule = parse_rule("none; 08:00-18:00 1MB/s", zone="America/New_York")
    new_york = ZoneInfo("America/New_York")
    for month in (1, 7):
        assert rule.at(ns(2026, month, 15, 8, 0, zone=new_york)) == 1_000_000
        assert rule.at(ns(2026, month, 15, 7, 59, zone=new_york)) == 0


SPANS = st.tuples(st.sampled_from(["", "mon-fri", "sat,sun", "fri-mon"]), st.integers(0, 1439), st.integers(0, 1440))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
# Around changes of the clock, which is where it is hard, and elsewhere.
MOMENTS = st.one_of(
    st.integers(1_790_000_000, 1_793_500_000), st.integers(1_774_000_000, 1_775_500_000), st.integers(0, 4_000_000_000)
)


@given(span=SPANS, zone=ZONES, at=MOMENTS)
def test_the_next_change_is_the_first_moment_at_which_something_else_holds(
    span: tuple[str, int, int], zone: str, at: int
) -> None:
    days, start, end = span
    if start == end:
        return
    table = parse_windows(f"{days} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}", zone=zone)
    now = at * 10**9
    change = table.next_change_ns(now)
    if change is None:
        assert all(table.at(now + n * 1800 * 10**9) == table.at(now) for n in range(0, 400, 7))
        return
    assert now < change and table.at(change) != table.at(now) == table.at(change - 10**9)
    step = max(1, (change - now) // 50)
    assert all(table.at(now + n * step) == table.at(now) for n in range(50))


@pytest.mark.parametrize(
    "text", ["", "mon", "25:00-26:00", "mon-foo 08:00-09:00", "08:00-08:00", "8-18", "a b c", "08:60-09:00"]
)
def test_what_is_no_time_of_the_week_is_refused(text: str) -> None:
    if text == "mon":
        assert parse_span_of_week(text).covers(datetime(2026, 11, 23, 12))
        return
    with pytest.raises(UsageError):
        parse_span_of_week(text)


@pytest.mark.parametrize(
    "text", ["fast", "1MB/s; sometimes 2MB/s", "1MB/s; mon-fri 08:00-18:00", "1MB/s; 2MB/s 08:00-18:00"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rule(text)


def test_a_zone_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="time zone"):
        parse_rule("1MB/s", zone="Mars/Olympus")


def test_a_window_that_is_nothing_is_always() -> None:
    always = parse_windows("", zone="UTC")
    assert always.at(0) and always.next_change_ns(0) is None
