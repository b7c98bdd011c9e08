"""Whom to ask for sound copies: whoever has answered best, and of several that answer alike, whoever has least to do.

A peer that was slow once is asked last from then on, until it has answered again; now and then the order is turned
around to give it that chance. Three lies, and a peer is not asked for ten minutes.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import trio

from protocol.ids import SiteId
from replicator.core.logging import get_logger
from replicator.core.ports import Entropy, fraction
from replicator.net.link import Link

PATIENCE_S: Final = 15.0
"""A peer that brings nothing for so long has failed, and is asked last until it has answered again."""
_LIES_MAX: Final = 3
_BANISHED_S: Final = 600.0
_CHANCE: Final = 0.1
_CHANCE_EVERY_S: Final = 60.0
"""A question to a peer that does not answer costs its patience: of hundreds in a row not every tenth shall."""


@dataclass(slots=True)
class _Standing:
    """How a peer has served us."""

    answered_s: float = 0.0
    """Seconds a block, lately."""
    lies: int = 0
    banished_until: float = 0.0
    under_way: int = 0
    asked_at: float = float("-inf")


class Peers:
    """The connected peers, as those who are asked for blocks."""

    def __init__(self, links: Callable[[], Sequence[Link]], entropy: Entropy) -> None:
        self.links = links
        self._entropy = entropy
        self._standing: dict[SiteId, _Standing] = {}

    def choose(self, *, without: AbstractSet[SiteId]) -> Link | None:
        """Whom to ask now; None if everybody who is connected and believed has been asked."""
        now = trio.current_time()
        links = [one for one in self.links() if one.peer not in without and self._of(one).banished_until <= now]
        links.sort(key=self._cost)
        if not links:
            return None
        last = links[-1]
        if self._of(last).asked_at <= now - _CHANCE_EVERY_S and fraction(self._entropy) < _CHANCE:
            return last
        return links[0]

    def all_believed_in_s(self) -> float:
        """In how many seconds everybody may be asked again; 0 if nobody is banished."""
        now = trio.current_time()
        return max(
            (one.banished_until - now for one in self._standing.values() if one.banished_until > now), default=0.0
        )

    def _cost(self, link: Link) -> tuple[float, int]:
        """How long one more question is likely to take; who has not been asked yet is thought to be quick."""
        standing = self._of(link)
        return standing.answered_s * (standing.under_way + 1), standing.under_way

    def _of(self, link: Link) -> _Standing:
        return self._standing.setdefault(link.peer, _Standing())

    def begin(self, link: Link) -> None:
        standing = self._of(link)
        standing.under_way += 1
        standing.asked_at = trio.current_time()

    def end(self, link: Link) -> None:
        self._of(link).under_way -= 1

    def note_answer(self, link: Link, *, a_block_s: float) -> None:
        standing = self._of(link)
        standing.answered_s = 0.7 * standing.answered_s + 0.3 * a_block_s

    def note_failure(self, link: Link, why: str) -> None:
        self._of(link).answered_s = PATIENCE_S
        get_logger().warning("repair.peer_failed", peer=link.name, error=why)

    def note_lie(self, link: Link, why: str) -> None:
        standing = self._of(link)
        standing.lies += 1
        get_logger().error("repair.peer_lied", peer=link.name, why=why, lies=standing.lies)
        if standing.lies >= _LIES_MAX:
            standing.banished_until = trio.current_time() + _BANISHED_S
            standing.lies = 0
