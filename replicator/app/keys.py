"""Changing this site's own key: made now, told to the peers, and shown from the middle of the overlap on.

The new key waits in `identity.next` beside the old one. In the first half of the overlap the
site still shows the old key, so that peers that have not heard yet can be told; in the second
half it shows the new one, and peers whose clocks differ by less than that half are never
surprised. When it is time the node puts itself together anew with the new key; whatever it
was doing carries on, as after any restart.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from protocol.ids import SiteId
from replicator.app.config import StateFolder
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import Succession
from replicator.core.errors import ConfigError
from replicator.core.files import sync_directory, write_durably
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock
from replicator.core.workers import Idle, Outcome
from replicator.net.identity import Identity
from replicator.net.link import Link
from replicator.sync.neighbours import Neighbours

_SWITCH: Final = "new_key.switch_ns"
_LOOK_S: Final = 1.0
_HALF_NS_MOST: Final = 366 * 86_400 * 10**9
"""Of an overlap whose length is not known any more."""


class KeyPlace(Protocol):
    """Where a site keeps its key, the next one, and what it has stated about its keys."""

    def load(self) -> Identity:
        """The key of this site."""
        ...

    def generate(self) -> Identity: ...

    def keep_next(self, fresh: Identity) -> None:
        """Durably, beside the one that is in use."""
        ...

    def has_next(self) -> bool: ...

    def move_up(self) -> None:
        """Let the next key take the place of the one in use: at once, or not at all."""
        ...

    def remember(self, one: Succession) -> None:
        """Beside the key as well: without it a lost catalogue could not tell that older records are this site's own."""
        ...

    def remembered(self) -> list[Succession]:
        """Raises `ConfigError` if what is written down cannot be read."""
        ...


class KeyFolder:
    """`KeyPlace` in a state folder."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def load(self) -> Identity:
        return Identity.load(self._state.identity)

    def generate(self) -> Identity:
        return Identity.generate()

    def keep_next(self, fresh: Identity) -> None:
        fresh.save(self._state.next_identity)

    def has_next(self) -> bool:
        return self._state.next_identity.exists()

    def move_up(self) -> None:
        self._state.next_identity.replace(self._state.identity)
        sync_directory(self._state.identity.parent)

    def remember(self, one: Succession) -> None:
        parts = [one.old.hex(), one.new.hex(), one.until_ns, one.sequence_max, one.by_old.hex(), one.by_new.hex()]
        path = self._state.key_history
        before = path.read_bytes() if path.exists() else b""
        write_durably(path, before + json.dumps(parts).encode() + b"\n")

    def remembered(self) -> list[Succession]:
        path = self._state.key_history
        if not path.exists():
            return []
        try:
            return [_succession(*json.loads(line)) for line in path.read_text().splitlines()]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}.", hint="Restore it from a copy.") from error


def _succession(old: str, new: str, until_ns: int, sequence_max: int, by_old: str, by_new: str) -> Succession:
    sites = SiteId(bytes.fromhex(old)), SiteId(bytes.fromhex(new))
    return Succession(*sites, until_ns, sequence_max, bytes.fromhex(by_old), bytes.fromhex(by_new))


def rotate(keys: KeyPlace, neighbours: Neighbours, catalog: Catalog, *, overlap_s: float, now_ns: int) -> None:
    """Make a new key and begin to tell of it. Raises `UsageError`."""
    fresh = keys.generate()
    # The file comes before the statement: a statement without its key would be an end without a successor.
    one = neighbours.plan_new_key(fresh.site_id, fresh.sign, overlap_s=overlap_s, keep=lambda: keys.keep_next(fresh))
    keys.remember(one)
    _plan_switch(catalog, at_ns=now_ns + int(overlap_s * 1e9 / 2), half_ns=int(overlap_s * 1e9 / 2))
    get_logger().info("key.rotating", old=one.old.hex()[:12], new=one.new.hex()[:12], overlap_s=overlap_s)


def see_through(keys: KeyPlace, catalog: Catalog, *, ours: SiteId, now_ns: int) -> bool:
    """A change that was cut after its statement and before its plan: by a power cut, or a disk that was just full.

    Peers have noted the statement and will drop the old key when it says so. Without a plan the new one would never
    be shown, and this site would be a stranger everywhere. To be called where there is no plan; returns whether there
    is one now.
    """
    if not keys.has_next():
        return False
    one = next((one for one in catalog.successions() if one.old == ours), None)
    if one is None:
        return False
    if (one.old, one.new) not in {(known.old, known.new) for known in keys.remembered()}:
        keys.remember(one)
    half_ns = max(0, one.until_ns - now_ns) // 2
    _plan_switch(catalog, at_ns=now_ns + half_ns, half_ns=half_ns)
    get_logger().warning("key.seen_through", why="the change had been cut between its statement and its plan")
    return True


def recall_successions(keys: KeyPlace, catalog: Catalog) -> None:
    """Enter what is written down beside the key. Raises `ConfigError` if that cannot be read."""
    known = keys.remembered()
    for one in known:
        catalog.add_succession(one)
    if known and keys.has_next():
        # The catalogue knew when; without it the end of the overlap is soon enough, and never too late.
        _plan_switch(catalog, at_ns=known[-1].until_ns - 10**9, half_ns=_HALF_NS_MOST)


def describe_keys(
    neighbours: Neighbours, catalog: Catalog, *, site_id: SiteId, name: str, now_ns: int
) -> dict[str, Any]:
    """Which key this site has, and which one comes."""
    one = neighbours.own_succession()
    page: dict[str, Any] = {"name": name, "site_id": site_id.hex(), "next_site_id": None}
    if one is not None:
        switch, _ = _switch(catalog) or (one.until_ns, 0)
        page |= {
            "next_site_id": one.new.hex(),
            "shown_in_s": round((switch - now_ns) / 1e9, 1),
            "old_dead_in_s": round((one.until_ns - now_ns) / 1e9, 1),
            "noted_by": sorted(catalog.peers.name_of(site) for site in one.told),
            "not_noted_by": sorted(peer.name for peer in catalog.peers.all() if peer.site_id not in one.told),
        }
    return page


def _plan_switch(catalog: Catalog, *, at_ns: int, half_ns: int) -> None:
    catalog.set_fact(_SWITCH, f"{at_ns} {half_ns}")


def _switch(catalog: Catalog) -> tuple[int, int] | None:
    """When the new key is to be shown, and half of the overlap; None if no key is under way."""
    said = (catalog.fact(_SWITCH) or "").split()
    return (int(said[0]), int(said[1])) if said else None


def is_time(catalog: Catalog, *, now_ns: int) -> bool:
    switch = _switch(catalog)
    return switch is not None and now_ns >= switch[0]


def bring_closer(catalog: Catalog, *, now_ns: int) -> bool:
    """A key that is due later than half of the overlap from now was planned by a clock that has been set back since:
    it would be waited for until that day comes. Returns whether it was so."""
    switch = _switch(catalog)
    if switch is None or switch[0] - now_ns <= switch[1]:
        return False
    _plan_switch(catalog, at_ns=now_ns + switch[1], half_ns=switch[1])
    return True


def adopt_next_key(keys: KeyPlace, catalog: Catalog, *, now_ns: int) -> Identity:
    """At a start: take the new key if its time has come. Safe to be cut at any point, and to repeat."""
    if is_time(catalog, now_ns=now_ns) and keys.has_next():
        keys.move_up()
    identity = keys.load()
    current = identity.site_id
    for one in catalog.successions():
        if one.new == current:
            catalog.rename_site(one.old, one.new)
    # Not while another key waits: an earlier change is no reason to forget when the next one is due.
    if catalog.fact(_SWITCH) and not keys.has_next():
        catalog.set_fact(_SWITCH, "")
    return identity


class KeyKeeping:
    """The worker that tells peers of new keys, ends old ones, and sees when our own has to change."""

    name = "keys"

    def __init__(
        self,
        neighbours: Neighbours,
        *,
        keys: KeyPlace,
        ours: SiteId,
        catalog: Catalog,
        links: Callable[[], Sequence[Link]],
        clock: WallClock,
        trust_changed: Callable[[], None],
        on_time: Callable[[], None],
    ) -> None:
        self._neighbours = neighbours
        self._keys = keys
        self._ours = ours
        self._catalog = catalog
        self._links = links
        self._clock = clock
        self._trust_changed = trust_changed
        self._on_time = on_time

    async def step(self) -> Outcome:
        await self._neighbours.tell_keys(self._links())
        if self._neighbours.end_overlaps():
            self._trust_changed()
        now = self._clock.now_ns()
        if _switch(self._catalog) is None and not see_through(self._keys, self._catalog, ours=self._ours, now_ns=now):
            return Idle(_LOOK_S)
        if bring_closer(self._catalog, now_ns=now):
            get_logger().warning("key.brought_closer", why="the clock was set back since the change was begun")
        if is_time(self._catalog, now_ns=now):
            self._on_time()
        return Idle(_LOOK_S)
