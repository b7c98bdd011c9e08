"""What every engine's shelves do alike: beginning an epoch, and saying who is at work."""

from collections.abc import Sequence
from typing import Protocol

from protocol.ids import BlockId
from replicator.store.leases import Leases
from replicator.store.ports import Mark


class EpochRoom(Protocol):
    """The parts of an engine that this needs."""

    leases: Leases

    def flush(self) -> None: ...
    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]: ...


class EpochShelves:
    """The part of `Shelves` that is the same whatever the blocks lie on."""

    def __init__(self, room: EpochRoom) -> None:
        self._epoch_room = room

    def open_epoch(self, *, is_rehearsal: bool) -> Mark:
        """Who is alive is read before the epoch begins: a writer that begins in between counts as one from after it."""
        room = self._epoch_room
        room.flush()
        oldest = room.leases.oldest_epoch()
        if is_rehearsal:
            return Mark(room.leases.epoch + 1, oldest)
        epoch = room.leases.advance()
        self._keep_epoch(epoch)
        return Mark(epoch, oldest)

    def _keep_epoch(self, epoch: int) -> None:
        """Make it durable."""
        raise NotImplementedError

    def holders(self) -> list[str]:
        return self._epoch_room.leases.holders()

    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]:
        return self._epoch_room.rescue(ids)
