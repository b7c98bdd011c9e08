"""When a site sync is due, in which words it stands, and what no change of the clock does to it."""

import re
from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import SiteId, VolumeId
from replicator.catalog.model import SiteSync
from replicator.catalog.terms import SyncTerms, check_terms, decode_terms, encode_terms, next_cron_ns
from replicator.core.errors import UsageError
from replicator.core.timetable import parse_windows
from replicator.jobs.due import decide
from replicator.jobs.line import PriorityLine
from replicator.monitor.syncs import state_of
from replicator.sync.plan import Sample, plan_duration_s

S = 10**9
NOW = 1_795_600_000 * S  # 2026-11-25, a Wednesday, 09:46:40 UTC.
BERLIN = ZoneInfo("Europe/Berlin")


def sync(terms: SyncTerms | None = None, **changes: object) -> SiteSync:
    values: dict[str, object] = {
        "sync_id": "s", "volume_id": VolumeId(b""), "peer": SiteId(bytes(32)), "keep": "", "paused": False,
        "last_success_ns": None, "last_error": "", "failures": 0, "next_try_ns": 0, "terms": terms or SyncTerms(),
    }  # fmt: skip
    return SiteSync(**{**values, **changes})  # type: ignore[arg-type]


def moment(*parts: int, fold: int = 0) -> int:
    return int(datetime(*parts, tzinfo=BERLIN, fold=fold).timestamp()) * S  # type: ignore[arg-type,misc]


# -- schedules ----------------------------------------------------------------------------------


def test_each_snapshot_at_once_is_due_when_there_is_one() -> None:
    assert decide(sync(), NOW, has_pending=True).is_due
    assert not decide(sync(), NOW, has_pending=False).is_due
    assert not decide(sync(paused=True), NOW, has_pending=True).is_due


def test_a_schedule_is_planned_first_and_runs_when_its_time_has_come_once() -> None:
    terms = SyncTerms(cron="0 10 * * *")
    first = decide(sync(terms), NOW, has_pending=True)
    assert not first.is_due and first.next_run_ns == NOW + 800 * S
    on_time = decide(sync(terms, next_run_ns=first.next_run_ns), first.next_run_ns, has_pending=True)
    assert on_time.is_due and on_time.next_run_ns == first.next_run_ns + 86_400 * S
    again = decide(sync(terms, next_run_ns=on_time.next_run_ns), first.next_run_ns + S, has_pending=True)
    assert not again.is_due and again.next_run_ns == on_time.next_run_ns


def test_times_missed_while_the_node_was_down_are_made_up_for_once() -> None:
    terms = SyncTerms(cron="*/5 * * * *")
    late = decide(sync(terms, next_run_ns=NOW - 86_400 * S), NOW, has_pending=True)
    assert late.is_due and NOW < late.next_run_ns <= NOW + 300 * S


def test_what_fails_on_a_schedule_is_tried_again_before_the_next_time() -> None:
    terms = SyncTerms(cron="0 2 * * *")
    coming = next_cron_ns(terms.cron, "UTC", after_ns=NOW)
    failed = sync(terms, next_run_ns=coming, failures=1, next_try_ns=NOW + 5 * S)
    assert not decide(failed, NOW, has_pending=True).is_due
    assert decide(failed, NOW + 5 * S, has_pending=True).is_due


def test_what_was_due_while_its_window_was_shut_runs_when_it_opens() -> None:
    terms = SyncTerms(cron="0 9 * * *", windows="22:00-06:00")
    due = sync(terms, next_run_ns=NOW - 60 * S)
    waiting = decide(due, NOW, has_pending=True)
    assert not waiting.is_due and waiting.waits_for_window and waiting.next_run_ns == due.next_run_ns
    assert decide(due, NOW + 13 * 3600 * S, has_pending=True).is_due


@given(offset=st.integers(-(10**9), 10**9), cron=st.sampled_from(["0 10 * * *", "*/7 * * * *", "30 2 * * 1-5"]))
def test_a_clock_that_jumps_silences_no_schedule_and_doubles_none(offset: int, cron: str) -> None:
    """Whatever clock planned it: after one look the plan is at most one period of the schedule away."""
    terms = SyncTerms(cron=cron, zone="Europe/Berlin")
    planned = sync(terms, next_run_ns=NOW + offset * S)
    decision = decide(planned, NOW, has_pending=True)
    assert NOW < decision.next_run_ns <= next_cron_ns(cron, "Europe/Berlin", after_ns=NOW)
    assert decision.is_due == (offset <= 0)
    assert not decide(sync(terms, next_run_ns=decision.next_run_ns), NOW, has_pending=True).is_due


def test_half_past_two_runs_once_on_the_night_when_it_comes_twice_and_right_after_when_it_does_not_come() -> None:
    at, runs = moment(2026, 10, 24, 12), []
    while (at := next_cron_ns("30 2 * * *", "Europe/Berlin", after_ns=at)) < moment(2026, 10, 27, 12):
        runs.append(at)
    assert runs == [moment(2026, 10, 25, 2, 30), moment(2026, 10, 26, 2, 30), moment(2026, 10, 27, 2, 30)]
    within = moment(2026, 10, 25, 2, 10, fold=1)  # Between the two.
    assert next_cron_ns("30 2 * * *", "Europe/Berlin", after_ns=within) == moment(2026, 10, 26, 2, 30)
    assert next_cron_ns("30 2 * * *", "Europe/Berlin", after_ns=moment(2026, 3, 28, 12)) == moment(2026, 3, 29, 3, 0)


AUTUMN = st.integers(1_792_880_000, 1_792_900_000)  # Around 03:00 on 25 October 2026 in Berlin.


@given(
    at=st.one_of(AUTUMN, st.integers(1_700_000_000, 1_900_000_000)),
    cron=st.sampled_from(["* * * * *", "30 2 * * *", "0 */3 * * *"]),
)
def test_the_next_time_is_always_later(at: int, cron: str) -> None:
    for zone in ("UTC", "Europe/Berlin", "Australia/Lord_Howe"):
        assert next_cron_ns(cron, zone, after_ns=at * S) > at * S


@pytest.mark.parametrize(
    "terms",
    [
        SyncTerms(cron="every day"), SyncTerms(cron="0 2 30 2 *"), SyncTerms(zone="Mars"), SyncTerms(priority=10),
        SyncTerms(windows="at night"), SyncTerms(rpo_s=0.5), SyncTerms(rate="fast"), SyncTerms(prefix="a/b"),
        SyncTerms(cron="* * * * *", rpo_s=60), SyncTerms(direction="sideways"),
        SyncTerms(direction="pull", do_not_expire=True),
    ],
)  # fmt: skip
def test_terms_that_cannot_be_kept_are_refused(terms: SyncTerms) -> None:
    with pytest.raises(UsageError):
        check_terms(terms)


def test_terms_are_stored_and_found_again() -> None:
    terms = SyncTerms(tenants=("acme",), tags=("a", "b"), cron="0 2 * * *", windows="sat,sun", do_not_expire=True)
    assert decode_terms(encode_terms(terms)) == terms
    assert decode_terms("{}") == SyncTerms()
    assert msgspec.json.decode(encode_terms(SyncTerms())) == {}


# -- words --------------------------------------------------------------------------------------


WORDS = r"idle|waiting for window|throttled|syncing|retrying \(\d+, next at \d\d:\d\d:\d\dZ\)|blocked \(.+\)"


@given(
    paused=st.booleans(), running=st.booleans(), throttled=st.booleans(), pending=st.booleans(),
    failures=st.integers(0, 9), person=st.booleans(), windows=st.sampled_from(["", "sun"]),
)  # fmt: skip
def test_a_sync_stands_in_one_of_six_words_and_is_never_idle_while_something_is_wrong(
    paused: bool, running: bool, throttled: bool, pending: bool, failures: int, person: bool, windows: str
) -> None:
    one = sync(
        SyncTerms(windows=windows), paused=paused, failures=failures, needs_person=person, last_error="no",
        next_try_ns=NOW + 60 * S,
    )  # fmt: skip
    state = state_of(one, is_running=running, is_throttled=throttled, has_pending=pending, now_ns=NOW)
    assert re.fullmatch(WORDS, state)
    assert "offline" not in state
    if state == "idle":
        assert not pending or not (failures or windows)
    if paused:
        assert state.startswith("blocked (paused")


def test_the_words_say_when_and_why() -> None:
    failing = sync(failures=3, next_try_ns=NOW + 100 * S, last_error="The peer said no.")
    told = {"is_running": False, "is_throttled": False, "has_pending": True, "now_ns": NOW}
    assert state_of(failing, **told) == "retrying (3, next at 09:48:20Z)"  # type: ignore[arg-type]
    hopeless = sync(failures=1, needs_person=True, last_error="The peer said no.")
    assert state_of(hopeless, **told) == "blocked (The peer said no.)"  # type: ignore[arg-type]
    assert state_of(sync(SyncTerms(windows="sun")), **told) == "waiting for window"  # type: ignore[arg-type]


# -- the line to a peer -------------------------------------------------------------------------


def test_the_most_urgent_goes_first_then_who_asked_first_and_peers_do_not_wait_for_each_other() -> None:
    async def scenario() -> None:
        line, served = PriorityLine(), []

        async def one(key: bytes, priority: int, who: str) -> None:
            async with line.turn(key, priority=priority, who=who):
                served.append(who)
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for key, priority, who in (
                (b"a", 5, "first"), (b"a", 5, "second"), (b"a", 0, "urgent"), (b"a", 9, "last"), (b"b", 9, "other"),
            ):  # fmt: skip
                nursery.start_soon(one, key, priority, who)
                await trio.sleep(0.01)
            assert line.waiting(b"a") == ["first", "urgent", "second", "last"]
        assert served == ["first", "other", "urgent", "second", "last"]
        assert line._lines == {} == line._served

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_that_gives_up_leaves_the_line_to_the_others() -> None:
    async def scenario() -> None:
        line, served = PriorityLine(), []

        async def one(who: str, seconds: float) -> None:
            with trio.move_on_after(seconds):
                async with line.turn(b"a", priority=1, who=who):
                    served.append(who)
                    await trio.sleep(2)

        async with trio.open_nursery() as nursery:
            for who, seconds in (("first", 99.0), ("impatient", 1.0), ("third", 99.0)):
                nursery.start_soon(one, who, seconds)
                await trio.sleep(0.01)
        assert served == ["first", "third"] and line._lines == {} == line._served

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


# -- plans --------------------------------------------------------------------------------------


def test_a_plan_counts_only_open_hours_and_each_hours_own_limit() -> None:
    night = parse_windows("22:00-06:00", zone="UTC")

    def limit(_: int) -> int:
        return 1_000_000

    took = plan_duration_s(3_600_000_000, now_ns=NOW, rate_at=limit, usual_rate=0.0, open_hours=night)
    until_open = 12 * 3600 + 800
    assert took is not None and until_open + 3600 - 300 <= took <= until_open + 3600 + 300
    always = parse_windows("", zone="UTC")
    assert plan_duration_s(10**6, now_ns=NOW, rate_at=lambda _: 0, usual_rate=0.0, open_hours=always) is None
    assert plan_duration_s(10**6, now_ns=NOW, rate_at=lambda _: 0, usual_rate=1e5, open_hours=always) == 10
    assert plan_duration_s(10**18, now_ns=NOW, rate_at=limit, usual_rate=0.0, open_hours=always) is None


def test_a_sample_of_very_many_blocks_is_even_and_scales_up() -> None:
    import random

    rnd, sample = random.Random(7), Sample()
    for _ in range(200_000):
        sample.add(rnd.randbytes(32), 1000)  # type: ignore[arg-type]
    assert sample.level > 0 and len(sample.sizes) <= 32 * 1024
    assert sum(sample.sizes.values()) * sample.factor == pytest.approx(200_000_000, rel=0.03)
