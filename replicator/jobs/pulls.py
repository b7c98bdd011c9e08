"""Looking, for each pull of ours, whether the peer has something new. The destination owns the schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import ProtocolError
from replicator.catalog.catalog import Catalog
from replicator.catalog.model import SiteSync
from replicator.catalog.terms import PULL
from replicator.core.errors import PeerError, ReplicatorError
from replicator.core.logging import get_logger
from replicator.core.ports import WallClock
from replicator.core.workers import Idle, Outcome
from replicator.net.mesh import Mesh
from replicator.sync.pull import Remote, list_remote, plan_pull

_LOOK_S: Final = 15.0
"""How often a peer is asked whether there is something new, if no promise asks for more."""
_LEAST_S: Final = 1.0
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was there at the last look."""

    at: float
    pending: tuple[Remote, ...]


class Pulls:
    """The worker that looks, and what it saw."""

    name = "pulls"

    def __init__(self, *, catalog: Catalog, mesh: Mesh, clock: WallClock, wake_scheduler: Callable[[], None]) -> None:
        self._catalog = catalog
        self._mesh = mesh
        self._clock = clock
        self._wake = wake_scheduler
        self._seen: dict[str, Seen] = {}

    def pending(self, sync: SiteSync) -> list[Remote]:
        """What is known to be there and is not here, newest first."""
        seen = self._seen.get(sync.sync_id)
        return [] if seen is None else [r for r in seen.pending if not self._has(r.record.snapshot_id)]

    def has_pending(self, sync: SiteSync) -> bool:
        return bool(self.pending(sync))

    def _has(self, snapshot_id: bytes) -> bool:
        return self._catalog.has_or_had(snapshot_id)

    async def step(self) -> Outcome:
        syncs = [sync for sync in self._catalog.syncs() if sync.terms.direction == PULL and not sync.paused]
        for gone in self._seen.keys() - {sync.sync_id for sync in syncs}:
            del self._seen[gone]
        for sync in syncs:
            if sync.terms.open_hours.at(self._clock.now_ns()) and self._is_time(sync):
                await self._look(sync)
        return Idle(_LEAST_S if syncs else _LOOK_S)

    def _is_time(self, sync: SiteSync) -> bool:
        seen = self._seen.get(sync.sync_id)
        every_s = max(_LEAST_S, min(_LOOK_S, sync.terms.rpo_s / 3 or _LOOK_S))
        return seen is None or trio.current_time() - seen.at >= every_s

    async def _look(self, sync: SiteSync) -> None:
        link = self._mesh.link_to(sync.peer)
        found: tuple[Remote, ...] = ()
        if link is not None:
            try:
                with trio.fail_after(_PATIENCE_S):
                    remote = await list_remote(link)
                found = tuple(
                    plan_pull(
                        remote,
                        terms=sync.terms,
                        is_ours=self._catalog.is_own_key(self._mesh.identity.site_id),
                        have=self._has,
                    )
                )
            except (PeerError, ProtocolError, ReplicatorError, trio.TooSlowError) as error:
                get_logger().warning("pull.no_list", peer=link.name, error=str(error) or "too slow")
        self._seen[sync.sync_id] = Seen(trio.current_time(), found)
        if found:
            self._wake()
