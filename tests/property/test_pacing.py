"""One budget for all: whatever flows at once, the node's rule holds over any ten seconds, and is used."""

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ids import SiteId
from replicator.core.throttle import frame_goal_bytes, longest_delay_s, parse_rule
from replicator.net.pacing import IN, NODE, OUT, TOLD_S, Pacing, plan_shares
from tests.support.clocks import FakeMonotonic

SITES = [SiteId(bytes([n]) * 32) for n in range(4)]
WINDOW_S = 10.0
FRAME = 1024 * 1024


class Wire:
    """Writers that take turns as those of links do: each waits for its buckets, takes, and sends, in virtual time."""

    def __init__(self, clock: FakeMonotonic, pacing: Pacing, sites: list[SiteId]) -> None:
        self.clock = clock
        self.paces = {site: pacing.pace_for(site, is_first=True).outgoing for site in sites}
        self.sent: list[tuple[float, SiteId, int]] = []

    def run(self, seconds: float, *, late_s: float = 0.0) -> None:
        """Every writer always has something to send. A busy machine wakes each of them `late_s` too late."""
        end = self.clock.now + seconds
        turn = 0
        while self.clock.now < end:
            # Whoever waits the least is woken first; of several, each gets its turn.
            order = [*self.paces][turn % len(self.paces) :] + [*self.paces][: turn % len(self.paces)]
            site = min(order, key=lambda one: longest_delay_s(self.paces[one]))
            if (delay := longest_delay_s(self.paces[site])) > 0:
                self.clock.now += delay + late_s
                continue
            size = frame_goal_bytes(self.paces[site], FRAME)
            for bucket in self.paces[site]:
                bucket.take(size)
            self.sent.append((self.clock.now, site, size))
            turn += 1

    def most_in_a_window(self, *, after: float = 0.0, of: SiteId | None = None) -> int:
        marks = [(at, size) for at, site, size in self.sent if at >= after and of in (None, site)]
        most = total = first = 0
        for at, size in marks:
            total += size
            while marks[first][0] <= at - WINDOW_S:
                total -= marks[first][1]
                first += 1
            most = max(most, total)
        return most

    def total(self, *, after: float = 0.0, of: SiteId | None = None) -> int:
        return sum(size for at, site, size in self.sent if at >= after and of in (None, site))


RATES = st.integers(300_000, 100_000_000)


@settings(deadline=None, max_examples=60)
@given(rate=RATES, peers=st.integers(1, 4), late_s=st.sampled_from([0.0, 0.005, 0.1]))
def test_several_syncs_at_once_keep_one_budget_within_five_percent_over_any_ten_seconds_and_use_it(
    rate: int, peers: int, late_s: float
) -> None:
    clock = FakeMonotonic()
    pacing = Pacing(monotonic=clock, rate_out=rate)
    wire = Wire(clock, pacing, SITES[:peers])
    began = clock.now
    wire.run(35, late_s=late_s)
    assert wire.most_in_a_window() <= 1.05 * rate * WINDOW_S
    assert wire.total() >= 0.95 * rate * (clock.now - began)


@settings(deadline=None, max_examples=40)
@given(node=RATES, peer=RATES, job=RATES)
def test_node_peer_and_job_bind_together_and_the_lowest_decides(node: int, peer: int, job: int) -> None:
    clock = FakeMonotonic()
    pacing = Pacing(monotonic=clock, rate_out=node)
    pacing.set_rules({(SITES[0], OUT): parse_rule(f"{peer}B/s")}, now_ns=0)
    wire = Wire(clock, pacing, SITES[:1])
    lowest = min(node, peer, job)
    with pacing.job(SITES[0], OUT, job):
        assert pacing.limit_bytes(SITES[0], OUT, job_rate=job) == lowest
        began = clock.now
        wire.run(25)
    assert wire.most_in_a_window() <= 1.05 * lowest * WINDOW_S
    assert wire.total() >= 0.95 * lowest * (clock.now - began)
    clock.now += 60.0  # What is owed has been waited off.
    began = clock.now
    wire.run(25)
    free = min(node, peer)
    assert 0.95 * free * (clock.now - began) <= wire.total(after=began) <= 1.05 * free * (clock.now - began) + free


@settings(deadline=None, max_examples=40)
@given(before=RATES, after=RATES)
def test_a_change_takes_effect_at_once_on_a_transfer_that_is_under_way(before: int, after: int) -> None:
    clock = FakeMonotonic()
    pacing = Pacing(monotonic=clock)
    pacing.set_rules({(NODE, OUT): parse_rule(f"{before}B/s")}, now_ns=0)
    wire = Wire(clock, pacing, SITES[:2])
    wire.run(12)
    pacing.set_rules({(NODE, OUT): parse_rule(f"{after}B/s")}, now_ns=0)
    changed = clock.now
    wire.run(25)
    assert wire.most_in_a_window(after=changed) <= 1.05 * after * WINDOW_S
    # A frame of the old rate may have to be paid off first.
    debt_s = frame_goal_bytes(wire.paces[SITES[0]], FRAME) / after + before / 20 / after
    assert wire.total(after=changed) >= 0.95 * after * (clock.now - changed - debt_s)


def test_the_hour_of_the_week_takes_effect_without_anybody_asking() -> None:
    clock = FakeMonotonic()
    pacing = Pacing(monotonic=clock)
    monday_8 = 1_795_420_800 * 10**9  # 2026-11-23 08:00 UTC.
    rule = parse_rule("8MB/s; mon-fri 08:00-18:00 1MB/s")
    pacing.set_rules({(NODE, OUT): rule}, now_ns=monday_8 - 10**9)
    wire = Wire(clock, pacing, SITES[:1])
    wire.run(12)
    assert wire.total() >= 0.95 * 8e6 * 12
    pacing.apply(monday_8)
    changed = clock.now
    wire.run(22)
    assert wire.most_in_a_window(after=changed) <= 1.05 * 1e6 * WINDOW_S


@given(
    budget=st.integers(0, 10**9),
    caps=st.lists(st.integers(0, 10**9), min_size=1, max_size=4),
    used=st.lists(st.floats(0, 1e9, allow_nan=False), min_size=4, max_size=4),
)
def test_shares_never_exceed_the_budget_nor_a_senders_own_cap(budget: int, caps: list[int], used: list[float]) -> None:
    of = dict(zip(SITES, caps, strict=False))
    shares = plan_shares(budget, of, dict(zip(SITES, used, strict=True)))
    assert shares.keys() == of.keys()
    if budget:
        assert sum(shares.values()) <= budget + len(caps)  # Nobody is told 0, which would mean no limit.
        assert all(share >= 1 for share in shares.values())
        assert all(not cap or shares[site] <= max(1, cap) for site, cap in of.items())
    else:
        assert shares == of


def test_what_a_slow_sender_does_not_use_goes_to_the_others() -> None:
    shares = plan_shares(9_000_000, dict.fromkeys(SITES[:3], 0), {SITES[0]: 100_000, SITES[1]: 3e6, SITES[2]: 3e6})
    assert shares[SITES[0]] == 150_000  # A little to come back with.
    assert shares[SITES[1]] == shares[SITES[2]] == 4_425_000


def test_a_sender_that_is_slow_and_alone_may_have_all_of_it() -> None:
    assert plan_shares(9_000_000, {SITES[0]: 0}, {SITES[0]: 100_000}) == {SITES[0]: 9_000_000}


def test_a_sender_counts_only_while_it_sends() -> None:
    pacing = Pacing(monotonic=FakeMonotonic(), rate_in=1_000_000)
    with pacing.receiving(SITES[0]):
        assert pacing.shares() == {SITES[0]: 1_000_000}
        with pacing.receiving(SITES[1]):
            assert pacing.shares() == {SITES[0]: 500_000, SITES[1]: 500_000}
        assert pacing.limit_bytes(SITES[0], IN) == 1_000_000
    assert pacing.shares() == {}


def test_what_a_peer_has_told_binds_until_its_links_end_or_it_says_it_no_more() -> None:
    clock = FakeMonotonic()
    pacing = Pacing(monotonic=clock, rate_out=5_000_000)
    pacing.pace_for(SITES[0], is_first=True)
    pacing.told(SITES[0], 700_000)
    assert pacing.limit_bytes(SITES[0], OUT) == 700_000
    pacing.pace_for(SITES[0], is_first=True)
    assert pacing.limit_bytes(SITES[0], OUT) == 5_000_000
    pacing.told(SITES[0], 700_000)
    pacing.pace_for(SITES[0], is_first=False)
    clock.now += TOLD_S - 1
    pacing.measure()
    assert pacing.limit_bytes(SITES[0], OUT) == 700_000
    clock.now += 2
    pacing.measure()
    assert pacing.limit_bytes(SITES[0], OUT) == 5_000_000
