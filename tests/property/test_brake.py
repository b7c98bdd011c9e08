"""The brake on deletion: whatever is done to the wall clock, no grace ends before it was lived through."""

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from replicator.core.brake import LEAP_S, ClockBrake, Reading, Watch, watched
from tests.support.clocks import FakeMonotonic, FakeWallClock

HOUR_S, DAY_S, YEAR_S = 3600.0, 86_400.0, 365.25 * 86_400.0
GRACE_S = DAY_S
ALLOWED_S = 4 * LEAP_S
"""From an hour behind to an hour ahead while it is trusted, and that again if what it crept is forgiven in between."""

steps = st.one_of(
    st.tuples(st.just("pass"), st.floats(1, 3 * DAY_S)),
    st.tuples(st.just("pass"), st.floats(1, 2 * HOUR_S)),
    st.tuples(st.just("set"), st.floats(-2 * HOUR_S, 2 * HOUR_S)),
    st.tuples(st.just("set"), st.floats(-10 * YEAR_S, 10 * YEAR_S)),
    st.tuples(st.just("right"), st.just(0.0)),
    st.tuples(st.just("reboot"), st.floats(0, 3 * DAY_S)),
)


class Machine:
    """A machine whose clock can be set, beside the true time."""

    def __init__(self) -> None:
        self.true_s = self.skew_s = self.booted_s = 0.0
        self.boots = 0
        self.watch: Watch | None = None

    def do(self, step: tuple[str, float]) -> None:
        what, amount = step
        if what == "pass":
            self.true_s += amount
        elif what == "set":
            self.skew_s += amount
        elif what == "right":
            self.skew_s = 0.0
        else:
            self.true_s += amount
            self.booted_s, self.boots = self.true_s, self.boots + 1

    @property
    def wall_s(self) -> float:
        return 20 * YEAR_S + self.true_s + self.skew_s

    def look(self) -> str:
        now = Reading(str(self.boots), self.true_s - self.booted_s, int(self.wall_s * 1e9))
        self.watch = watched(self.watch, now, newest_ns=0, is_vouched=False, must_live_s=GRACE_S)
        return self.watch.why


@given(st.lists(steps, max_size=40))
def test_no_sentence_is_carried_out_before_its_grace_was_lived_whatever_is_done_to_the_clock(
    days: list[tuple[str, float]],
) -> None:
    machine = Machine()
    sentences: list[tuple[float, float]] = []
    for step in [("pass", 1.0), *days]:
        machine.do(step)
        if machine.look():
            continue
        for true_s, wall_s in sentences:
            if machine.wall_s - wall_s >= GRACE_S:
                assert machine.true_s - true_s >= GRACE_S - ALLOWED_S
        sentences.append((machine.true_s, machine.wall_s))


@given(st.lists(st.sampled_from([HOUR_S, -HOUR_S]), min_size=60, max_size=400))
def test_a_clock_that_leaps_an_hour_each_minute_is_never_further_from_the_truth_than_an_hour_while_it_is_trusted(
    leaps: list[float],
) -> None:
    machine = Machine()
    machine.look()
    for leap in leaps:
        machine.do(("set", leap))
        machine.do(("pass", 60.0))
        if not machine.look():
            assert abs(machine.skew_s) <= LEAP_S


@given(st.lists(st.floats(1, DAY_S), min_size=1, max_size=30), st.floats(-0.0002, 0.0002))
def test_a_clock_that_is_merely_a_little_quick_or_slow_is_never_distrusted(spans: list[float], rate: float) -> None:
    machine = Machine()
    machine.look()
    for span in spans * 20:
        machine.do(("pass", span))
        machine.do(("set", span * rate))
        assert not machine.look()


def brake(
    facts: "Facts", clock: FakeWallClock, lived: FakeMonotonic, *, boot: str = "a", newest_ns: int = 0
) -> ClockBrake:
    return ClockBrake(facts, wall=clock, lived=lived, boot=boot, newest_ns=newest_ns, must_live_s=GRACE_S)


class Facts:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def fact(self, name: str) -> str | None:
        return self.kept.get(name)

    def set_fact(self, name: str, value: str) -> None:
        self.kept[name] = value


def pass_time(clock: FakeWallClock, lived: FakeMonotonic, seconds: float) -> None:
    clock.advance(seconds)
    lived.now += seconds


def test_a_leap_is_remembered_by_the_next_process_and_lifts_when_the_clock_is_right_again() -> None:
    facts, clock, lived = Facts(), FakeWallClock(), FakeMonotonic()
    assert not brake(facts, clock, lived).why()
    clock.advance(10 * YEAR_S)
    assert "ahead" in brake(facts, clock, lived).why()
    again = brake(facts, clock, lived)
    assert "ahead by 3652d" in again.why()
    clock.advance(-10 * YEAR_S)
    assert not again.why()


def test_a_clock_that_leapt_is_trusted_again_after_a_grace_of_steady_time_or_by_the_word_of_a_person() -> None:
    facts, clock, lived = Facts(), FakeWallClock(), FakeMonotonic()
    first = brake(facts, clock, lived)
    assert not first.why()
    clock.advance(-YEAR_S)
    assert "back" in first.why()
    for _ in range(23):
        pass_time(clock, lived, HOUR_S)
        assert first.why()
    assert 0 < first.left_s() <= HOUR_S
    clock.advance(120)  # Not steady: it begins anew.
    assert first.why() and first.left_s() == GRACE_S
    for _ in range(24):
        assert first.why()
        pass_time(clock, lived, HOUR_S)
    assert not first.why()
    clock.advance(YEAR_S)
    assert first.why()
    first.trust()
    assert not first.why() and not brake(facts, clock, lived).why()


def test_after_a_boot_a_clock_that_reads_less_than_before_is_not_trusted_and_one_after_a_short_boot_is() -> None:
    facts, clock, lived = Facts(), FakeWallClock(), FakeMonotonic()
    assert not brake(facts, clock, lived).why()
    clock.advance(300)
    lived.now = 60.0
    assert not brake(facts, clock, lived, boot="b").why()
    clock.advance(-DAY_S)
    lived.now = 60.0
    assert "back" in brake(facts, clock, lived, boot="c").why()


def test_how_long_a_machine_was_off_is_believed_once_a_time_service_vouches_for_the_clock() -> None:
    before = Watch(last=Reading("a", 1000.0, 0))
    month_ns = int(30 * DAY_S * 1e9)
    off = watched(before, Reading("b", 60.0, month_ns), newest_ns=0, is_vouched=False, must_live_s=GRACE_S)
    assert "was off for 29d 23h" in off.why
    later = Reading("b", 120.0, month_ns + 60 * 10**9)
    assert not watched(off, later, newest_ns=0, is_vouched=True, must_live_s=GRACE_S).why
    # But no service talks a running clock into a leap.
    leapt = watched(Watch(last=later), Reading("b", 121.0, 2 * month_ns), newest_ns=0, is_vouched=True, must_live_s=0)
    assert (
        leapt.why
        and watched(
            leapt, Reading("b", 180.0, 2 * month_ns + 59 * 10**9), newest_ns=0, is_vouched=True, must_live_s=GRACE_S
        ).why
    )


def test_a_node_that_is_moved_to_a_machine_that_has_been_up_for_a_year_is_not_distrusted_for_it() -> None:
    facts, clock, lived = Facts(), FakeWallClock(), FakeMonotonic()
    assert not brake(facts, clock, lived).why()
    clock.advance(HOUR_S)
    lived.now = YEAR_S
    assert not brake(facts, clock, lived, boot="b").why()


def test_with_nothing_remembered_the_newest_stamp_tells_a_clock_that_was_set_back() -> None:
    clock = FakeWallClock()
    newest_ns = clock.ns + int(2 * DAY_S * 1e9)
    assert "before what was stored last" in brake(Facts(), clock, FakeMonotonic(), newest_ns=newest_ns).why()


def test_what_is_kept_can_be_read_again() -> None:
    watch = Watch(last=Reading("a", 1.5, 7), drift_s=-3.0, why="x", steady_s=2.0, is_unvouched=True)
    facts = Facts()
    facts.set_fact("clock.watch", json.dumps(asdict(watch)))
    one = brake(facts, FakeWallClock(), FakeMonotonic())
    assert one.left_s() == GRACE_S - 2.0
