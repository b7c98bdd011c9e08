"""Connections that have not proven themselves yet: few, brief, and shared fairly between addresses.

Whoever can reach the port can open a connection and say nothing, or one byte a second. Three
things keep that from costing a peer its place: each stranger has ten seconds in all; of one
address only some may be at it at once; and of all of them together no more than a part of the
files that this process may open. Where one bound is met, the one that has dawdled longest is
cut: an honest site needs three round trips, so it is hardly ever that one.
"""

import resource
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from protocol.limits import HANDSHAKE_S

GREETING_MAX: Final = 128
PER_ADDRESS_MAX: Final = 16
"""Sites behind one NAT greet from one address: a few at once are usual, when that router comes back."""
_FILES_SHARE: Final = 4
"""Of the files that this process may open, one in so many is for strangers: the store and the peers need the others."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stranger:
    address: str
    scope: trio.CancelScope


class Greeting:
    """The strangers at the door."""

    def __init__(self, *, seconds: float = HANDSHAKE_S) -> None:
        self._seconds = seconds
        self._strangers: deque[_Stranger] = deque()
        self.cut_count = 0

    def __len__(self) -> int:
        return len(self._strangers)

    @property
    def most(self) -> int:
        return min(GREETING_MAX, max(PER_ADDRESS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _FILES_SHARE))

    @contextmanager
    def greet(self, address: str) -> Iterator[trio.CancelScope]:
        """The time in which a stranger must prove itself: cut short if too many others have come since."""
        of_address = [one for one in self._strangers if one.address == address]
        if len(of_address) >= PER_ADDRESS_MAX:
            self._cut(of_address[0])
        elif len(self._strangers) >= self.most:
            self._cut(self._strangers[0])
        with trio.move_on_after(self._seconds) as scope:
            stranger = _Stranger(address, scope)
            self._strangers.append(stranger)
            try:
                yield scope
            finally:
                if stranger in self._strangers:
                    self._strangers.remove(stranger)

    def _cut(self, stranger: _Stranger) -> None:
        self._strangers.remove(stranger)
        self.cut_count += 1
        stranger.scope.cancel()
