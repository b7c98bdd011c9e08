"""Who is writing, and since when.

A writer asks what is here, skips it, and publishes its root much later. In between, a
collection must not take away what the writer was told is here. So each writer holds a lease
that knows the collection epoch it began in, and a block condemned in epoch E is swept only
when no lease from E or before is alive.

A reader that needs the same (a restore of a snapshot that may be deleted meanwhile) holds a
lease as well, and calls it a pin.

A lease that is not used for `lease_s` is lost: a process that was stopped and woken must not
publish a root over blocks that were collected meanwhile (restic#3569). It is checked here, at
the store, on every write; the writer's own idea of it does not count.
"""

import threading
from collections.abc import Callable
from typing import Final

from replicator.core.errors import LeaseLost
from replicator.store.ports import Lease

LEASE_S: Final = 900.0
"""Longer than any single step between two uses (a slow read of one large file), shorter than a night."""


class Leases:
    """All leases of one store. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float], lease_s: float = LEASE_S) -> None:
        self._clock = clock
        self.lease_s = lease_s
        self._lock = threading.Lock()
        self._alive: dict[int, Lease] = {}
        self._last = 0
        self.epoch = 1

    def begin(self, holder: str) -> Lease:
        with self._lock:
            self._last += 1
            lease = Lease(self._last, holder, self.epoch, self._clock() + self.lease_s, lasts_s=self.lease_s)
            self._alive[lease.number] = lease
            return lease

    def end(self, lease: Lease) -> None:
        with self._lock:
            self._alive.pop(lease.number, None)
            lease.lost = True

    def break_all(self) -> None:
        """What the writers of this moment rely on is gone: each learns it at its next use."""
        with self._lock:
            for lease in self._alive.values():
                lease.lost = True
            self._alive.clear()

    def check(self, lease: Lease) -> None:
        """Renew the lease. Raises `LeaseLost` if it is too late for that."""
        with self._lock:
            if lease.lost or lease.number not in self._alive or self._clock() > lease.expires_s:
                lease.lost = True
                self._alive.pop(lease.number, None)
                raise LeaseLost(
                    f"{lease.holder} has lost its lease: silent for over {self.lease_s:g} s, or what it wrote is gone.",
                    hint="Run it again.",
                )
            lease.expires_s = self._clock() + self.lease_s

    def advance(self) -> int:
        """Start a collection: leases from now on belong to a new epoch. Returns that epoch."""
        with self._lock:
            self.epoch += 1
            return self.epoch

    def oldest_epoch(self) -> int:
        """The lowest epoch in which a lease that is still alive began; the next epoch if there is none."""
        with self._lock:
            now = self._clock()
            self._alive = {number: lease for number, lease in self._alive.items() if now <= lease.expires_s}
            return min((lease.epoch for lease in self._alive.values()), default=self.epoch + 1)

    def holders(self) -> list[str]:
        """Who holds a lease that is still alive."""
        with self._lock:
            now = self._clock()
            return sorted(lease.holder for lease in self._alive.values() if now <= lease.expires_s)
