"""Reading that heals: the reader waits a moment and gets the right bytes.

Everything that gives data back (restore, serving a peer, walking a manifest) reads through
here. A block that is broken or gone is fetched from a peer, proven, put back into the store,
and handed on as it came; so one read both answers and mends.
"""

from collections.abc import Sequence
from typing import Final

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer
from replicator.core.errors import BlockMissing
from replicator.core.ports import Offload
from replicator.repair.ask import Healer
from replicator.store.ports import BlockStore, Bodies

_TRIES: Final = 3
_WAIT_S: Final = 10.0
"""A peer that is being restarted is back within this; a reader would rather wait than fail."""


class HealingReader:
    """`BlockReader` over a local store and its peers. Without a healer it only says what is broken."""

    def __init__(self, store: BlockStore, *, offload: Offload, healer: Healer | None) -> None:
        self._store = store
        self._offload = offload
        self._healer = healer

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        """The bodies of all of `ids`. Raises `BlockMissing` for the first that nobody has."""
        bodies = await self._offload.run(self._store.read, ids)
        if not bodies.faults:
            return bodies.sound
        tries_left = _TRIES
        while bodies.faults and self._healer is not None and tries_left:
            tries_left -= 1
            brought = await self._healer.bring(bodies.faults)
            bodies.sound.update(brought)
            # The others may have been mended by somebody else meanwhile.
            lacking = [fault.block_id for fault in bodies.faults if fault.block_id not in brought]
            again = await self._offload.run(self._store.read, lacking) if lacking else Bodies()
            bodies.sound.update(again.sound)
            bodies.faults = again.faults
            if bodies.faults and not await self._healer.wait_for_help(_WAIT_S):
                break
        if bodies.faults:
            lost = bodies.faults[0]
            raise BlockMissing(
                lost.block_id,
                hint=f"It is {lost.cause.value} here, and no connected peer has it ({len(bodies.faults)} such blocks).",
            )
        return bodies.sound
