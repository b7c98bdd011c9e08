"""One bandwidth budget for the whole node: who may send how fast, to whom, and for which job.

Each bulk byte passes up to three buckets in its direction: the node's, the peer's, and that of
the job which is under way with the peer. The buckets are shared by all links, so several syncs
at once cannot exceed the node's rule together. Changing a rule changes the rate of a bucket
that is already in use: links stay up.

What comes *in* cannot be slowed by not reading it: a repair would wait behind it, and what is
on its way has been sent. Credit slows a sender down only after a stream's first megabytes. So
a site *tells* the peers that are sending to it how fast they may (`PaceNotice`), and each of
them keeps that as one more bucket. Several senders share the budget: first equally, then what
one does not use goes to the others. The buckets for what comes in stay, as a guard against
a peer that does not listen.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from protocol.ids import SiteId
from replicator.core.throttle import BURST_S, Monotonic, RateRule, TokenBucket
from replicator.net.link import Link, Pace

OUT: Final = "out"
IN: Final = "in"
WAYS: Final = (OUT, IN)
NODE: Final = b""
"""The scope of the rule for all peers together."""
TOLD_S: Final = 30.0
"""How long what a peer has told holds, unless it says so again: it may have been started anew, without a rule."""
TELL_AGAIN_S: Final = 10.0
_USED_LITTLE: Final = 0.7
"""Who uses less than this of its share gives the rest to the others, but for some room to grow."""
_ROOM: Final = 1.3
_LEAST: Final = 0.05
"""Of an equal share: what one that sends next to nothing keeps, so that it can come back."""


@dataclass(slots=True)
class _OfPeer:
    """The buckets of one peer, by way."""

    peer: dict[str, TokenBucket]
    job: dict[str, TokenBucket]
    told: TokenBucket
    """What the peer has told us that it can take."""
    told_at: float = 0.0
    receiving: int = 0
    """Receives from it that are under way."""
    passed_bytes: int = 0
    used_rate: float = 0.0
    job_rates: dict[str, list[int]] = field(default_factory=dict)


class Pacing:
    """The buckets of a node, and the rules that set them."""

    def __init__(self, *, monotonic: Monotonic, rate_out: int = 0, rate_in: int = 0) -> None:
        self._monotonic = monotonic
        self.node = {
            OUT: TokenBucket(rate_out, clock=monotonic, burst_s=BURST_S),
            IN: TokenBucket(rate_in, clock=monotonic, burst_s=BURST_S),
        }
        self._configured = {OUT: rate_out, IN: rate_in}
        self._rules: dict[tuple[bytes, str], RateRule] = {}
        self._peers: dict[SiteId, _OfPeer] = {}
        self._measured_at = monotonic()

    def _of(self, site: SiteId) -> _OfPeer:
        if site not in self._peers:
            make: Callable[[], TokenBucket] = lambda: TokenBucket(0, clock=self._monotonic, burst_s=BURST_S)  # noqa: E731
            ways = {way: make() for way in WAYS}
            self._peers[site] = _OfPeer(ways, {way: make() for way in WAYS}, make())
        return self._peers[site]

    # -- what binds -----------------------------------------------------------------------

    def pace_for(self, site: SiteId, *, is_first: bool) -> Pace:
        """What binds a new link to the peer. With its first one, what was told over earlier ones counts no more."""
        one = self._of(site)
        if is_first:
            one.told.set_rate(0)
        return Pace((self.node[OUT], one.peer[OUT], one.job[OUT], one.told), (self.node[IN], one.peer[IN], one.job[IN]))

    def limit_bytes(self, site: SiteId, way: str, *, now_ns: int | None = None, job_rate: int = 0) -> int:
        """The rate that binds traffic with the peer, now or at another hour: the lowest that applies; 0 for none."""
        one = self._of(site)
        if now_ns is None:
            rates = [self.node[way].rate_bytes, one.peer[way].rate_bytes]
        else:
            rates = [self._rate_at(NODE, way, now_ns), self._rate_at(site, way, now_ns)]
        rates += [job_rate, one.told.rate_bytes if way == OUT else 0]
        return min((rate for rate in rates if rate), default=0)

    def _rate_at(self, scope: bytes, way: str, now_ns: int) -> int:
        rule = self._rules.get((scope, way))
        if rule is not None:
            return rule.at(now_ns)
        return self.node[way].rate_bytes if scope == NODE else 0

    def is_binding(self, site: SiteId, way: str) -> bool:
        """Whether a rule, and not the network or a disk, is what traffic with the peer waits for just now."""
        one = self._of(site)
        buckets = [self.node[way], one.peer[way], one.job[way], *([one.told] if way == OUT else [])]
        if way == IN and one.receiving and (limit := self.limit_bytes(site, IN)):
            return one.used_rate > _USED_LITTLE * limit or any(bucket.is_binding for bucket in buckets)
        return any(bucket.is_binding for bucket in buckets)

    # -- rules ----------------------------------------------------------------------------

    def set_rules(self, rules: dict[tuple[bytes, str], RateRule], *, now_ns: int) -> None:
        """Replace all rules, by scope (a site id, or `NODE`) and way. A node's rate without a rule stays as it is."""
        for scope, way in self._rules.keys() - rules.keys():
            if scope != NODE:
                self._of(SiteId(scope)).peer[way].set_rate(0)
        self._rules = dict(rules)
        self.apply(now_ns)

    def reset_node(self) -> None:
        """What the configuration file says counts again."""
        for way in WAYS:
            self.node[way].set_rate(self._configured[way], burst_s=BURST_S)

    def apply(self, now_ns: int) -> None:
        """Let the hour of the week take effect."""
        for (scope, way), rule in self._rules.items():
            bucket = self.node[way] if scope == NODE else self._of(SiteId(scope)).peer[way]
            if bucket.rate_bytes != rule.at(now_ns) or bucket.burst_s != rule.burst_s:
                bucket.set_rate(rule.at(now_ns), burst_s=rule.burst_s)

    @contextmanager
    def job(self, site: SiteId, way: str, rate_bytes: int) -> Iterator[None]:
        """While the block lasts, traffic with the peer is also bound by the rule of the job that causes it.

        Jobs with one peer take turns, so the peer's bulk traffic is the job's.
        """
        one = self._of(site)
        rates = one.job_rates.setdefault(way, [])
        if rate_bytes:
            rates.append(rate_bytes)
        one.job[way].set_rate(min(rates, default=0), burst_s=BURST_S)
        try:
            yield
        finally:
            if rate_bytes:
                rates.remove(rate_bytes)
            one.job[way].set_rate(min(rates, default=0))

    # -- what comes in --------------------------------------------------------------------

    def told(self, site: SiteId, rate_bytes: int) -> None:
        """The peer can take so much from us; 0 for all we have."""
        one = self._of(site)
        one.told.set_rate(rate_bytes)
        one.told_at = self._monotonic()

    @contextmanager
    def receiving(self, site: SiteId) -> Iterator[None]:
        """Bulk data of the peer is about to come in, until the block ends."""
        one = self._of(site)
        one.receiving += 1
        try:
            yield
        finally:
            one.receiving -= 1

    def measure(self) -> None:
        """See how much of its share each sender has used since the last look, and forget what is not said any more."""
        now = self._monotonic()
        spent_s, self._measured_at = now - self._measured_at, now
        for one in self._peers.values():
            passed = one.peer[IN].statistics().passed_bytes
            if spent_s > 0:
                one.used_rate = (passed - one.passed_bytes) / spent_s
            one.passed_bytes = passed
            if now - one.told_at > TOLD_S:
                one.told.set_rate(0)

    def shares(self) -> dict[SiteId, int]:
        """What each site that is sending to us may send, all together no more than the node's rule. 0 is no limit."""
        active = [site for site, one in self._peers.items() if one.receiving]
        wanted = {site: self._cap(site) for site in active}
        return plan_shares(self.node[IN].rate_bytes, wanted, {s: self._peers[s].used_rate for s in active})

    def _cap(self, site: SiteId) -> int:
        one = self._peers[site]
        rates = [one.peer[IN].rate_bytes, one.job[IN].rate_bytes]
        return min((rate for rate in rates if rate), default=0)


def plan_shares(budget: int, caps: dict[SiteId, int], used: dict[SiteId, float]) -> dict[SiteId, int]:
    """Divide a budget: nobody over its own cap (0: none), nobody over what it lately used plus room to grow, and the
    rest equally. The sum never exceeds the budget."""
    if not budget:
        return dict(caps)
    equal = budget / max(1, len(caps))
    bounds: dict[SiteId, float] = {}
    for site, cap in caps.items():
        is_slow = 0 < used.get(site, 0.0) < _USED_LITTLE * equal
        bounds[site] = min(cap or budget, max(_ROOM * used[site], _LEAST * equal) if is_slow else budget)
    shares: dict[SiteId, float] = {}
    left, open_sites = float(budget), sorted(caps, key=lambda site: bounds[site])
    for number, site in enumerate(open_sites):
        share = min(bounds[site], left / (len(open_sites) - number))
        shares[site] = share
        left -= share
    for number, site in enumerate(sorted(caps, key=lambda site: caps[site] or budget)):
        # What nobody else has asked for is no use to anybody unless the slow may have it after all.
        more = min((caps[site] or budget) - shares[site], left / (len(caps) - number))
        shares[site] += max(0.0, more)
        left -= max(0.0, more)
    return {site: max(1, int(share)) for site, share in shares.items()}


@dataclass(frozen=True, slots=True)
class Told:
    """What a link was told last, and when."""

    rate_bytes: int = 0
    at: float = 0.0


def links_to_tell(
    links: Sequence[Link], shares: dict[SiteId, int], told: dict[int, Told], *, now: float
) -> list[tuple[Link, int]]:
    """Which links must be told another rate, or the same one again. `told` goes by the id of the link object."""
    found: list[tuple[Link, int]] = []
    for link in links:
        rate, last = shares.get(link.peer, 0), told.get(id(link), Told())
        before = last.rate_bytes
        # A little less than before is told at once; a little more can wait until it is worth a message.
        is_news = rate != before and (rate == 0 or before == 0 or rate < before or rate > 1.05 * before)
        if is_news or (before and now - last.at > TELL_AGAIN_S):
            found.append((link, rate))
    return found
