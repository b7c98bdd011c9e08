"""Listening to a sender that tells a difference, and going on without it when it falls silent.

A sender may hang without dying: a disk that does not answer, a machine that swaps. Its link lives on pings and says
nothing, and a link that is really dead is known to be so only after `limits.SILENCE_S`. If somebody else who
is linked has the snapshot, there is no reason to wait for either. So after `SILENT_S` without a word, and without a
block on any other stream from there, the root of the map is asked of the others. Whoever has that has what is below
it, and the way down from the root (`descent.py`) needs nobody who tells a difference.

Nothing is lost if it was a false alarm. If nobody else has the root, we listen on; if the sender speaks before the
root has come, too; and afterwards it is still a source of blocks (`sources.py`).
"""

from collections.abc import Awaitable, Callable

import trio

from replicator.net.link import Item, Stream
from replicator.sync.sources import SILENT_S, STEAL_AGE_S, Sources


class FellSilent(Exception):
    """The sender says nothing more, and others have what it was about to tell."""


class Hearing:
    """One difference being listened to."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._waiting_since: float | None = None
        """None while we are busy with what was said: then it is not the sender who is slow."""
        self._scope = trio.CancelScope()

    async def receive(self, stream: Stream) -> Item | None:
        """As `Stream.receive`. Raises `FellSilent` if `watch` has found that others can go on."""
        self._scope, self._waiting_since = trio.CancelScope(), trio.current_time()
        try:
            # Only the wait is ever cancelled: whatever is done about an item is done whole.
            with self._scope:
                item = await stream.receive()
                if (sender := self._sources.sender) is not None:
                    sender.note_heard()
                return item
        finally:
            self._waiting_since = None
        raise FellSilent

    async def watch(self, bring_root: Callable[[], Awaitable[None]]) -> None:
        """Beside `receive`. Ends when somebody else can go on, or never. Raises what `bring_root` raises."""
        while True:
            await trio.sleep(STEAL_AGE_S)
            if self._is_silent():
                sender = self._sources.sender
                assert sender is not None
                sender.note_silent()
                await bring_root()
                if self._is_silent():
                    self._scope.cancel()
                    return

    def _is_silent(self) -> bool:
        sender = self._sources.sender
        if sender is None or self._waiting_since is None or not self._sources.could_do_without(sender):
            return False
        return trio.current_time() - max(self._waiting_since, sender.heard_at) > SILENT_S


__all__ = ["FellSilent", "Hearing"]
