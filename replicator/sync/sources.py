"""From whom to fetch what: a queue of batches that several sites work off together.

Each source takes the next batch when it has room, so a fast one does more of the work and nobody
plans shares. What one source lacked is tried at the others, and the sender, who has all of it,
takes the batches first that most others lacked: the rarest first, so that at the end it
is not the only one with work left.

A source that falls silent loses its batch to the others, and after two such times its place. The sender keeps its
place: only what all others lack is left to it, and now and then a batch, to see whether it is awake again. At
the end, when there is nothing left to take, an idle source takes over from one that is half as
fast. Nobody waits for the slowest, and no block is asked of two sites at once.

There may be no sender: a receive whose offerer is gone (`orphans.py`). Then nobody is known to have all of it, so
nobody is dismissed for lacking some, and what all have said that they lack is given up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.ids import BlockId, SiteId
from replicator.net.link import Link

SILENT_S: Final = 3.0
"""A request that brought nothing for this long is taken away, if somebody else could answer it."""
STRIKES_MAX: Final = 2
TRY_AGAIN_S: Final = 10.0
"""How long a silent source is left alone before it is given a batch again: at worst, that one takes `SILENT_S` more."""
STEAL_AGE_S: Final = 0.5
_STEAL_FACTOR: Final = 2.0
_LACKS_MAX: Final = 0.5
"""A source that lacks more than this share of what it was asked is not worth its round trips."""
_LACKS_AFTER: Final = 256


@dataclass(slots=True)
class Batch:
    """Blocks to ask for in one go, and who has said that it lacks them."""

    ids: list[BlockId]
    lacked_by: frozenset[SiteId] = frozenset()


@dataclass(slots=True, eq=False)
class Request:
    """A batch under way at one source."""

    source: "Source"
    waiting: set[BlockId]
    scope: trio.CancelScope
    began: float
    is_silent: bool = False


@dataclass(slots=True, eq=False)
class Source:
    """A site that answers `WantBlocks`."""

    link: Link
    is_sender: bool
    blocks: int = 0
    bytes: int = 0
    """Of blocks, as they arrive: known sooner than blocks are proven."""
    lacked: int = 0
    strikes: int = 0
    is_over: bool = False
    is_passed: bool = False
    """A faster one has taken over from it: it takes nothing more while others can."""
    is_silent: bool = False
    """It has left us waiting, and nothing has been heard of it since."""
    tried_at: float = 0.0
    began: float | None = None
    heard_at: float = 0.0
    """When any of its requests last brought something."""

    @property
    def site(self) -> SiteId:
        return self.link.peer

    def note_bytes(self, count: int) -> None:
        self.bytes += count
        self.note_heard()

    def note_heard(self) -> None:
        """It lives."""
        self.heard_at = trio.current_time()
        self.is_silent = False

    def note_silent(self) -> None:
        """It left us waiting for `SILENT_S`, and others could go on."""
        if not self.is_silent:
            self.is_silent, self.tried_at = True, trio.current_time()

    @property
    def is_behind(self) -> bool:
        return self.is_passed or self.is_silent

    def rate(self, now: float) -> float:
        """Bytes a second so far, and never nothing."""
        return (self.bytes + 1) / max(now - (self.began or now), STEAL_AGE_S)

    def lacks_most(self) -> bool:
        return not self.is_sender and self.lacked > max(_LACKS_AFTER, _LACKS_MAX * (self.blocks + self.lacked))


def _may_have(source: Source, batch: Batch) -> bool:
    return source.is_sender or source.site not in batch.lacked_by


class Sources:
    """The queue, and who works on it. Decides, and does no I/O."""

    def __init__(self, sender: Link | None, others: Iterable[Link]) -> None:
        self.all = [Source(link, False) for link in others]
        if sender is not None:
            self.all.insert(0, Source(sender, True))
        self._has_sender = sender is not None
        self._queue: list[Batch] = []
        self._under_way: list[Request] = []
        self._changed = trio.Event()
        self.is_whole = False
        """Nothing will be put any more but what comes back: the time to take over from slow ones."""

    @property
    def live(self) -> list[Source]:
        return [source for source in self.all if not source.is_over]

    @property
    def sender(self) -> Source | None:
        return self.all[0] if self._has_sender else None

    @property
    def queued_count(self) -> int:
        return len(self._queue)

    def put(self, batch: Batch) -> None:
        if batch.ids:
            self._queue.append(batch)
            self.wake()

    def retire_if_useless(self, source: Source) -> None:
        """One that is silent again and again, or lacks most of what somebody else is sure to have."""
        is_worn_out = source.strikes >= STRIKES_MAX and not source.is_sender
        if is_worn_out or (self._has_sender and source.lacks_most()):
            source.is_over = True

    def hopeless(self) -> list[Batch]:
        """Take out of the queue what every source that is left has said that it lacks. A sender lacks nothing."""
        live = self.live
        over = [one for one in self._queue if not any(_may_have(source, one) for source in live)]
        for batch in over:
            self._queue.remove(batch)
        return over

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        await self._changed.wait()

    def next_for(self, source: Source) -> Batch | None:
        """The batch that this source should ask for now: the sender takes the rarest, the others the commonest."""
        fit = [one for one in self._queue if _may_have(source, one)]
        if source.is_behind and not self._is_to_be_tried(source, fit):
            # What every better one lacks is left to it, or nobody would ever ask for that.
            better = [one for one in self.live if not one.is_behind]
            fit = [one for one in fit if not any(_may_have(other, one) for other in better)]
        if not fit:
            return None
        choose = max if source.is_sender else min
        batch = choose(fit, key=lambda one: len(one.lacked_by))
        self._queue.remove(batch)
        return batch

    def _is_to_be_tried(self, source: Source, fit: Sequence[Batch]) -> bool:
        """Whether a silent source gets a batch to see if it is awake: never the last one, for which all would wait."""
        now = trio.current_time()
        if not source.is_silent or len(fit) < 2 or now - source.tried_at < TRY_AGAIN_S:
            return False
        source.tried_at = now
        return True

    def begin(self, source: Source, batch: Batch, scope: trio.CancelScope) -> Request:
        request = Request(source, set(batch.ids), scope, trio.current_time())
        source.began = source.began or trio.current_time()
        self._under_way.append(request)
        return request

    def end(self, request: Request) -> None:
        self._under_way.remove(request)
        self.wake()

    def silent(self) -> list[Request]:
        """Requests to take away. Under an incoming cap everybody is slow, and nobody is to blame for it."""
        now = trio.current_time()
        return [
            one
            for one in self._under_way
            if now - max(one.began, one.source.heard_at) > SILENT_S and self.could_do_without(one.source)
        ]

    def could_do_without(self, source: Source) -> bool:
        """Whether somebody else is there. Under a cap of ours, slowness is no reason to look for one."""
        return not source.link.is_paced and any(one is not source for one in self.live)

    def take_over(self, source: Source) -> Request | None:
        """The request of another source that this idle one would work off at twice the speed, if there is any."""
        if not self.is_whole or source.is_silent:
            return None
        now = trio.current_time()
        slower = [
            one
            for one in self._under_way
            if one.source is not source
            and one.waiting
            and now - one.began > STEAL_AGE_S
            and self.could_do_without(one.source)
            and source.rate(now) > _STEAL_FACTOR * one.source.rate(now)
        ]
        chosen = min(slower, key=lambda one: one.source.rate(now), default=None)
        if chosen is not None:
            chosen.source.is_passed = True
        return chosen


__all__ = ["SILENT_S", "STEAL_AGE_S", "STRIKES_MAX", "TRY_AGAIN_S", "Batch", "Request", "Source", "Sources"]
