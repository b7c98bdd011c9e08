"""Which snapshots stay: by what arrived when, in UTC, and in the order in which they were taken."""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import SiteId, SnapshotId, VolumeId
from replicator.catalog.catalog import Catalog
from replicator.catalog.retention import (
    Candidate,
    CopyGuard,
    is_as_generous,
    parse_keep,
    plan_retention,
)
from replicator.core.errors import UsageError
from replicator.jobs.arrivals import QUOTA_PER_HOUR, quota_of, set_quota
from tests.support.clocks import FakeWallClock

HOUR = 3600 * 10**9
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 10**9


def one(sequence: int, received_ns: int, held: str = "") -> Candidate:
    return Candidate(SnapshotId(sequence.to_bytes(16, "big")), sequence, received_ns, held)


def kept(rule: str, candidates: list[Candidate]) -> list[int]:
    """Sequences that stay, newest first."""
    return [
        int.from_bytes(verdict.snapshot_id, "big") for verdict in plan_retention(rule, candidates) if verdict.reason
    ]


PARTS = st.tuples(st.integers(1, 30), st.sampled_from(["", "h", "d", "w", "m", "y"]))
RULES = st.lists(PARTS, max_size=4).map(lambda parts: ",".join(f"{count}{unit}" for count, unit in parts))
TIMES = st.lists(st.integers(0, 4 * 10**18), max_size=40)  # 1970 to 2096, in any order: clocks jump.
HELD = st.sets(st.integers(0, 39))


def candidates_of(times: list[int], held: set[int]) -> list[Candidate]:
    return [one(n + 1, at, "because" if n in held else "") for n, at in enumerate(times)]


@given(rule=RULES, times=TIMES, held=HELD)
def test_the_newest_and_the_held_stay_whatever_the_rule_and_the_clock(
    rule: str, times: list[int], held: set[int]
) -> None:
    stays = kept(rule, candidates_of(times, held))
    assert {n + 1 for n in held if n < len(times)} <= set(stays)
    if times:
        assert stays[0] == len(times)
    if not rule:
        assert len(stays) == len(times)


@given(rule=RULES, times=TIMES, held=HELD, order=st.randoms())
def test_the_verdict_does_not_depend_on_the_order_of_asking(rule: str, times: list[int], held: set[int], order) -> None:  # type: ignore[no-untyped-def]
    candidates = candidates_of(times, held)
    shuffled = candidates[:]
    order.shuffle(shuffled)
    assert plan_retention(rule, candidates) == plan_retention(rule, shuffled)


@given(parts=st.lists(PARTS, min_size=1, max_size=4), more=st.integers(1, 20), times=TIMES, data=st.data())
def test_a_more_generous_rule_never_keeps_less(
    parts: list[tuple[int, str]], more: int, times: list[int], data: st.DataObject
) -> None:
    candidates = candidates_of(times, set())
    at = data.draw(st.integers(0, len(parts) - 1))
    wider = [(count + more if n == at else count, unit) for n, (count, unit) in enumerate(parts)]

    def text(rule: list[tuple[int, str]]) -> str:
        return ",".join(f"{count}{unit}" for count, unit in rule)

    assert set(kept(text(parts), candidates)) <= set(kept(text(wider), candidates))
    assert set(kept(text(parts), candidates)) <= set(kept(text([*parts, (more, "d")]), candidates))


@given(rule=RULES, times=TIMES)
def test_what_was_let_go_is_not_missed_by_the_next_look(rule: str, times: list[int]) -> None:
    """Pruning twice is pruning once: no shelf is emptied by what an earlier run removed."""
    candidates = candidates_of(times, set())
    stays = set(kept(rule, candidates))
    assert set(kept(rule, [c for c in candidates if c.sequence in stays])) == stays


def test_the_last_of_each_hour_stays_and_a_pause_empties_no_shelf() -> None:
    candidates = [one(n + 1, START + n * HOUR // 4) for n in range(16)]  # Four hours, four each.
    assert kept("3h", candidates) == [16, 12, 8]
    late = [*candidates, one(17, START + 1000 * HOUR)]
    assert kept("3h", late) == [17, 16, 12]


def test_days_weeks_months_and_years_are_those_of_the_calendar() -> None:
    candidates = [one(n + 1, START + n * 24 * HOUR) for n in range(400)]
    days = {n: datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=n - 1) for n in range(1, 401)}
    assert kept("7d", candidates) == [400, 399, 398, 397, 396, 395, 394]
    assert all(days[n].weekday() == 6 for n in kept("3w", candidates)[1:])
    assert all((days[n] + timedelta(days=1)).day == 1 for n in kept("5m", candidates)[1:])
    assert [days[n].year for n in kept("9y", candidates)] == [2027, 2026]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_the_zone_of_the_machine_changes_nothing(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    candidates = [one(n + 1, START + n * HOUR // 2) for n in range(24 * 60)]  # Over a change to summer time.
    expected = {rule: kept(rule, candidates) for rule in ("24h", "30d", "5w")}
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert {rule: kept(rule, candidates) for rule in expected} == expected
        assert len(kept("48h", candidates)) == 48
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_day_on_which_the_clock_was_ten_years_ahead_does_not_eat_what_follows() -> None:
    """By time, the snapshots of that day were the newest, and every later one went at once."""
    ahead = START + 10 * 365 * 24 * HOUR
    candidates = [one(1, START), one(2, ahead), one(3, ahead + HOUR), one(4, ahead + 2 * HOUR)]
    candidates += [one(n, START + n * HOUR) for n in range(5, 9)]
    assert kept("3", candidates) == [8, 7, 6]
    assert kept("3h", candidates) == [8, 7, 6]


def test_a_day_on_which_the_clock_was_ten_years_behind_eats_nothing_either() -> None:
    behind = START - 10 * 365 * 24 * HOUR
    candidates = [one(n, START + n * HOUR) for n in range(1, 5)] + [one(5, behind), one(6, START + 6 * HOUR)]
    assert kept("4h", candidates) == [6, 5, 4, 3]


@pytest.mark.parametrize(
    "text", ["24x", "h", "-1d", "0", "0d", "1.5h", "3 d", "24h;7d", "ten", "1e3", "9999999h", "24h,x"]
)
def test_a_rule_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_keep(text)
    assert "24h,7d" in caught.value.hint


def test_a_rule_is_read_with_spaces_and_capitals_and_an_empty_one_keeps_all() -> None:
    assert parse_keep(" 24H , 7d,10,") == [(24, "h"), (7, "d"), (10, "")]
    assert parse_keep("") == []


# -- copies, and a source that was taken over --------------------------------------------------

GUARD = CopyGuard(frozenset({START // HOUR, START // HOUR + 48}))
MINUTE = HOUR // 60


def guarded(rule: str, candidates: list[Candidate], guard: CopyGuard = GUARD) -> list[int]:
    verdicts = plan_retention(rule, candidates, guard=guard)
    return [int.from_bytes(verdict.snapshot_id, "big") for verdict in verdicts if verdict.reason]


def test_of_copies_the_first_stays_whatever_comes_after_it() -> None:
    candidates = [one(n + 1, START + n * HOUR) for n in range(24)]
    assert guarded("2", candidates) == [24, 23, 1]


def test_a_plain_number_cannot_be_filled_in_a_minute() -> None:
    """The last of each of three days stays beside it."""
    good = [one(n + 1, START + n * 6 * HOUR) for n in range(12)]  # Three days of four.
    junk = [one(100 + n, START + 73 * HOUR + n * MINUTE) for n in range(10)]
    assert kept("9", [*good, *junk]) == list(range(109, 100, -1)), "as it was without the guard"
    assert guarded("9", [*good, *junk], CopyGuard()) == [*range(109, 99, -1), 12, 8, 1], "and the first of this hour"


@pytest.mark.parametrize("rule", ["10", "24h", "2h,3d", "1d", "24h,7d,4w"])
def test_a_flood_within_an_hour_pushes_out_nothing_but_itself(rule: str) -> None:
    good = [one(n + 1, START + n * HOUR) for n in range(48)]
    first, last = one(100, START + 48 * HOUR + 1), one(700, START + 48 * HOUR + 59 * MINUTE)
    junk = [one(101 + n, START + 48 * HOUR + n * (MINUTE // 20) + 2) for n in range(590)]
    flooded = guarded(rule, [*good, first, *junk, last])
    assert {100, 700} <= set(flooded), "the first and the last of the hour"
    assert not {101 + n for n in range(590)} & set(flooded)
    quiet = guarded(rule, [*good, first, last])
    assert set(quiet) <= set(flooded), "what would be kept without the flood is kept with it"


def test_only_an_hour_that_is_crowded_is_treated_so_and_without_a_rule_nothing_goes() -> None:
    came = [one(n + 1, START + n * MINUTE) for n in range(20)]
    assert guarded("30", came) == [20, 1]
    assert guarded("30", came, CopyGuard()) == list(range(20, 0, -1))
    assert guarded("", came) == list(range(20, 0, -1))


def test_a_snapshot_that_is_held_stays_in_the_middle_of_a_flood() -> None:
    over = [one(n + 1, START + n * MINUTE, "for the court" if n == 7 else "") for n in range(30)]
    assert guarded("30", over) == [30, 8, 1]


@given(rule=RULES, times=TIMES, held=HELD)
def test_where_there_is_no_flood_the_guard_only_ever_adds(rule: str, times: list[int], held: set[int]) -> None:
    candidates = candidates_of(times, held)
    assert set(kept(rule, candidates)) <= set(guarded(rule, candidates, CopyGuard()))


@given(rule=RULES, other=RULES, times=TIMES)
def test_a_rule_that_is_called_as_generous_keeps_at_least_as_much(rule: str, other: str, times: list[int]) -> None:
    candidates = candidates_of(times, set())
    if is_as_generous(rule, other):
        assert set(kept(rule, candidates)) >= set(kept(other, candidates))


def test_what_is_as_generous_and_what_is_not() -> None:
    assert is_as_generous("48h,7d,1w", "24h,7d") and is_as_generous("", "24h") and is_as_generous("24h", "24h")
    assert not is_as_generous("1", "24h") and not is_as_generous("24h", "") and not is_as_generous("24h,6d", "24h,7d")


def test_a_quota_leaves_room_for_what_a_continuous_sync_has_promised_and_for_no_flood(tmp_path: Path) -> None:
    volume, other, peer = VolumeId(b"v" * 16), VolumeId(b"w" * 16), SiteId(b"p" * 32)
    with closing(Catalog(tmp_path / "catalog.sqlite", clock=FakeWallClock())) as catalog:
        assert quota_of(catalog, volume) == QUOTA_PER_HOUR
        for every_s, least, most in ((3600, 120, 120), (30, 360, 720), (5, 2160, 4320), (1, 120, 4320)):
            catalog.expect(volume, peer, every_s=every_s)
            assert least <= quota_of(catalog, volume) <= most
        assert quota_of(catalog, other) == QUOTA_PER_HOUR
        set_quota(catalog, volume, 7)
        assert quota_of(catalog, volume) == 7, "what this site's operator says is not the source's to change"
