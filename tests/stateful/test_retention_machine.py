"""A keep rule over months of snapshots, holds and wrong clocks, against a shelf that is filled by hand."""

from datetime import UTC, datetime

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.ids import SnapshotId
from replicator.catalog.retention import Candidate, plan_retention

RULES = st.sampled_from(["", "1", "3", "24h", "2h,2d", "3,2d,2w", "1d,1w,1m,1y", "5d,12m"])
SLOTS = {"h": "%Y-%m-%d %H", "d": "%Y-%m-%d", "w": "%G-%V", "m": "%Y-%m", "y": "%Y"}


def kept_by_hand(rule_text: str, snapshots: list[Candidate]) -> set[SnapshotId]:
    """What is said of a keep rule, done the slow way: shelf by shelf, the newest of each of its newest slots."""
    newest_first = sorted(snapshots, key=lambda one: one.sequence, reverse=True)
    kept = {one.snapshot_id for one in snapshots if one.held} | {one.snapshot_id for one in newest_first[:1]}
    if not rule_text:
        return {one.snapshot_id for one in snapshots}
    for part in rule_text.split(","):
        unit = part[-1] if part[-1].isalpha() else ""
        count = int(part.removesuffix(unit))
        shelf: dict[str, SnapshotId] = {}
        for index, one in enumerate(newest_first):
            moment = datetime.fromtimestamp(one.received_ns / 1e9, UTC)
            slot = moment.strftime(SLOTS[unit]) if unit else str(index)
            if slot not in shelf and len(shelf) == count:
                break
            shelf.setdefault(slot, one.snapshot_id)
        kept |= set(shelf.values())
    return kept


class RetentionMachine(RuleBasedStateMachine):
    @initialize(rule_text=RULES)
    def start(self, rule_text: str) -> None:
        self.rule_text = rule_text
        self.now_ns = 1_700_000_000 * 10**9
        self.skew_ns = 0
        self.sequence = 0
        self.here: dict[SnapshotId, Candidate] = {}

    @rule(hours=st.sampled_from([0.2, 1, 5, 24, 24 * 7, 24 * 40]))
    def wait(self, hours: float) -> None:
        self.now_ns += int(hours * 3600e9)

    @rule(days=st.sampled_from([0, 400, -400]))
    def set_the_clock(self, days: int) -> None:
        self.skew_ns = days * 86_400 * 10**9

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        for _ in range(count):
            self.sequence += 1
            name = SnapshotId(self.sequence.to_bytes(16, "big"))
            self.here[name] = Candidate(name, self.sequence, self.now_ns + self.skew_ns, "")
            self.now_ns += 60 * 10**9

    @rule(pick=st.integers(0, 99), reason=st.sampled_from(["", "an audit"]))
    @precondition(lambda self: self.here)
    def hold(self, pick: int, reason: str) -> None:
        name = sorted(self.here)[pick % len(self.here)]
        old = self.here[name]
        self.here[name] = Candidate(name, old.sequence, old.received_ns, reason)

    @rule(rule_text=RULES)
    def change_the_rule(self, rule_text: str) -> None:
        self.rule_text = rule_text

    @rule()
    @precondition(lambda self: self.here)
    def prune(self) -> None:
        verdicts = plan_retention(self.rule_text, list(self.here.values()))
        assert {one.snapshot_id for one in verdicts} == self.here.keys(), "each has one verdict"
        gone = {one.snapshot_id for one in verdicts if not one.reason}
        assert self.here.keys() - gone == kept_by_hand(self.rule_text, list(self.here.values()))
        self.here = {name: one for name, one in self.here.items() if name not in gone}
        again = plan_retention(self.rule_text, list(self.here.values()))
        assert all(one.reason for one in again), "what was kept is kept by the same rule a moment later"

    @invariant()
    @precondition(lambda self: getattr(self, "here", None))
    def the_newest_and_the_held_always_stay(self) -> None:
        kept = {one.snapshot_id for one in plan_retention(self.rule_text, list(self.here.values())) if one.reason}
        assert max(self.here) in kept
        assert {one.snapshot_id for one in self.here.values() if one.held} <= kept


TestRetention = RetentionMachine.TestCase
