"""What will happen in a world, decided before it begins.

A plan is a value: the same seed makes the same plan, and a plan with some steps left out is a plan
too. So a failing seed can be shrunk by leaving out steps, and replayed by naming its seed and
what was left out. Every number that a step needs is drawn here, so that leaving one out changes
nothing about the others.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

ACTIVE_S: Final = 75.0
"""How long a round is lively before it becomes quiet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and how often in a round. All off by default."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    fragments: bool = False
    """Bytes arrive in pieces of any length."""
    resets: int = 0
    cuts: int = 0
    cuts_one_way: int = 0
    clogs: int = 0
    crashes: int = 0
    """At whatever moment, with part of the unsynced writes lost."""
    crashes_at_steps: int = 0
    """Just before or just after something becomes durable."""
    stops: int = 0
    rots: int = 0
    losses: int = 0
    metadata_rots: int = 0
    full_disks: int = 0
    full_databases: int = 0
    clock_jumps: int = 0
    lies: int = 0
    lost_catalogs: int = 0
    deletes: int = 0
    revocations: int = 0
    releases: int = 0
    """Sites that come back with another release: the one before, or this one again."""
    rotations: int = 0
    narrowings: int = 0
    """Rights that a peer loses for a while."""
    burns: int = 0
    """Sites that are gone with all that was on them."""

    @classmethod
    def drawn(cls, chance: random.Random) -> "Faults":
        """Each sort is there or not there at all: worlds with everything in them hide what two sorts do together."""
        drawn = cls(
            delay_s=chance.choice((0.0, 0.002, 0.05)),
            jitter_s=chance.choice((0.0, 0.0, 0.02)),
            fragments=chance.random() < 0.5,
        )
        for field in fields(cls):
            # Who burns is drawn with the tenants, after all this.
            if field.type is int and field.name != "burns" and chance.random() < 0.45:
                drawn = replace(drawn, **{field.name: 1 if field.name == "lost_catalogs" else chance.randint(1, 3)})
        return drawn


@dataclass(frozen=True, slots=True)
class Step:
    """Something that somebody does, or that befalls somebody."""

    number: int
    round: int
    at_s: float
    verb: str
    site: int
    other: int
    amount: float
    """From 0 to 1: what it means is the verb's business."""
    pick: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Something that a site protects."""

    site: int
    path: str
    kind: str
    every_s: float
    keep: int
    """The newest that are kept; 0 for no rule."""
    to: tuple[int, ...]
    tenant: str = ""
    comes_later: bool = False
    """Nobody protects it in the beginning: its tenant comes (`tenants.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Onward:
    """A standing order for every volume of a site, or for those of some tenants."""

    source: int
    target: int
    is_push: bool
    tenants: tuple[str, ...] = ()
    """Nothing means all."""
    cron: str = ""
    rpo_s: float = 0.0
    windows: str = ""
    do_not_expire: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole world."""

    seed: int
    sites: int
    pairs: tuple[tuple[int, int], ...]
    onward: tuple[Onward, ...]
    """Sites that pass on what they have, and to whom."""
    volumes: tuple[Volume, ...]
    rates: tuple[int, ...]
    """Bytes a second that each site may send in bulk; 0 for no limit."""
    rates_in: tuple[int, ...]
    """The same for what comes to it from all others together."""
    old: tuple[int, ...]
    """Sites that begin with the release before, which offers no newer version of the protocol than it knew."""
    rounds: int
    faults: Faults
    steps: tuple[Step, ...]

    def without(self, numbers: frozenset[int]) -> "Plan":
        return replace(self, steps=tuple(step for step in self.steps if step.number not in numbers))


_DEEDS: Final = {
    "change": 24, "snapshot": 10, "snapshot_all": 2, "restore": 8, "scrub": 3, "repair": 2, "collect": 5,
    "collect_all": 4, "undo": 1, "verify": 1, "audit": 3, "hold": 3, "release": 1, "pause": 2, "resume": 2,
    "throttle": 2, "cancel": 2, "rejoin": 1, "tidy": 2,
}  # fmt: skip
_FAULT_VERBS: Final = {
    "resets": "reset", "cuts": "cut", "cuts_one_way": "cut_one_way", "clogs": "clog", "crashes": "crash",
    "crashes_at_steps": "crash_at_step", "stops": "stop", "rots": "rot", "losses": "lose",
    "metadata_rots": "rot_metadata",
    "full_disks": "fill_disk", "full_databases": "fill_database", "clock_jumps": "jump", "lies": "lie",
    "lost_catalogs": "lose_catalog", "deletes": "delete", "revocations": "revoke",
    "releases": "other_release", "rotations": "rotate", "narrowings": "narrow",
}  # fmt: skip


TENANTS: Final = ("acme", "globex")
_TENANT_VERBS: Final = {"label": 3, "refilter": 3, "leave": 2, "come": 3}
"""The most of each in a round of a world with tenants."""
_CRONS: Final = ("* * * * *", "*/2 * * * *")
_WINDOWS: Final = ("00:00-00:02", "00:01-00:03", "00:00-23:00")
"""A world begins at midnight, by its own clocks."""


def make_plan(seed: int, *, faults: Faults | None = None, deeds: Mapping[str, int] | None = None) -> Plan:
    """The world of a seed; `faults` and `deeds` (by weight) replace what it would draw."""
    weights = deeds or _DEEDS
    chance = random.Random(f"plan {seed}")
    sites = chance.choice((3, 3, 3, 4, 4, 5, 6, 7))
    pairs = _pairs(sites, chance)
    drawn = Faults.drawn(chance)
    rounds = chance.choice((2, 2, 3))
    volumes = tuple(_volume(number, sites, pairs, chance) for number in range(chance.randint(2, 4)))
    # Half of these are pushed, half are pulled.
    onward = tuple(Onward(source=a, target=b, is_push=(a + b) % 2 == 1) for a, b in pairs if chance.random() < 0.3)
    old = tuple(site for site in range(sites) if chance.random() < 0.5) if chance.random() < 0.35 else ()
    rates_in = tuple(chance.choice((0, 0, 0, 30_000)) for _ in range(sites))
    rates = tuple(chance.choice((0, 0, 20_000, 200_000)) for _ in range(sites))
    steps: list[Step] = []
    for number in range(rounds):
        count = chance.randint(15, 35)
        verbs = chance.choices(list(weights), weights=list(weights.values()), k=count)
        for name, verb in _FAULT_VERBS.items():
            verbs += [verb] * getattr(faults or drawn, name)
        steps += [_step(number, verb, sites, chance) for verb in verbs]
    plan = Plan(
        seed=seed,
        sites=sites,
        pairs=pairs,
        onward=onward,
        volumes=volumes,
        rates=rates,
        rates_in=rates_in,
        old=() if faults == Faults() else old,
        rounds=rounds,
        faults=faults or drawn,
        steps=tuple(steps),
    )
    # By a chance of their own: whatever comes to be drawn here leaves all that is above as it was.
    later = random.Random(f"later {seed}")
    if later.random() < 0.5 if deeds is None else bool(_TENANT_VERBS.keys() & deeds.keys()):
        plan = _with_tenants(plan, later, own_steps=deeds is None)
    if later.random() < 0.5 and deeds is None:
        plan = _on_schedules(plan, later)
    return _in_order(_with_takeovers(plan, later, burns=1 if later.random() < 0.3 else 0) if faults is None else plan)


def _with_tenants(plan: Plan, chance: random.Random, *, own_steps: bool) -> Plan:
    """Whose data each volume is, and orders that are only for some of it."""
    orders = {(one.source, one.target): one for one in plan.onward if chance.random() < 0.3}
    for a, b in plan.pairs:
        for source, target in ((a, b), (b, a)):
            if (source, target) not in orders and chance.random() < 0.5:
                filtered = Onward(
                    source=source, target=target, is_push=chance.random() < 0.7, tenants=(chance.choice(TENANTS),)
                )
                orders[source, target] = filtered
    volumes = [
        replace(one, tenant=chance.choice((*TENANTS, *TENANTS, "")), comes_later=chance.random() < 0.2)
        for one in plan.volumes
    ]
    steps = [
        _step(number, verb, plan.sites, chance)
        for number in range(plan.rounds if own_steps else 0)
        for verb, most in _TENANT_VERBS.items()
        for _ in range(chance.randint(0, most))
    ]
    return replace(plan, onward=tuple(orders.values()), volumes=tuple(volumes), steps=(*plan.steps, *steps))


def _on_schedules(plan: Plan, chance: random.Random) -> Plan:
    """Some standing orders run by the clock, continuously, or within hours only."""
    orders = [
        replace(
            one,
            cron=chance.choice(_CRONS) if (sort := chance.randrange(5)) == 0 else "",
            rpo_s=chance.choice((15.0, 45.0)) if sort == 1 and one.is_push else 0.0,
            windows=chance.choice(_WINDOWS) if sort in (0, 2) else "",
            do_not_expire=one.is_push and chance.random() < 0.3,
        )
        for one in plan.onward
    ]
    return replace(plan, onward=tuple(orders))


def _with_takeovers(plan: Plan, chance: random.Random, *, burns: int) -> Plan:
    """Sites that others go on for: because they burn, or because somebody wants it so."""
    verbs = ["burn"] * burns + ["take_over"] * (chance.random() < 0.3)
    steps = [_step(chance.randrange(plan.rounds), verb, plan.sites, chance) for verb in verbs]
    return replace(plan, faults=replace(plan.faults, burns=burns), steps=(*plan.steps, *steps))


def _in_order(plan: Plan) -> Plan:
    steps = sorted(plan.steps, key=lambda step: (step.round, step.at_s))
    return replace(plan, steps=tuple(replace(step, number=number) for number, step in enumerate(steps)))


def _pairs(sites: int, chance: random.Random) -> tuple[tuple[int, int], ...]:
    """A tree, so that all are connected, and some more."""
    pairs = {(chance.randrange(one), one) for one in range(1, sites)}
    for one in range(sites):
        for other in range(one + 1, sites):
            if chance.random() < (0.6 if sites < 5 else 0.15):
                pairs.add((one, other))
    return tuple(sorted(pairs))


def _volume(number: int, sites: int, pairs: tuple[tuple[int, int], ...], chance: random.Random) -> Volume:
    site = chance.randrange(sites)
    peers = sorted({a + b - site for a, b in pairs if site in (a, b)})
    to = tuple(peer for peer in peers if chance.random() < 0.7) or (peers[0],)
    return Volume(
        site=site,
        path=f"/srv/volume-{number}",
        kind=chance.choice(("tree", "tree", "image")),
        every_s=chance.choice((0.0, 7.0, 20.0, 45.0)),
        keep=chance.choice((0, 1, 3, 5)),
        to=to,
    )


def _step(number: int, verb: str, sites: int, chance: random.Random) -> Step:
    site = chance.randrange(sites)
    other = (site + chance.randrange(1, sites)) % sites
    return Step(-1, number, chance.uniform(0, ACTIVE_S), verb, site, other, chance.random(), chance.getrandbits(30))
