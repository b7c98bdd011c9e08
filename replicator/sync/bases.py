"""Bases of differences that could not be read: the next difference is told from another one, or from nothing.

A snapshot that is whole must not wait for one that is not. Which side's copy of a base is broken shows
only in the middle of a difference, when the base has been agreed on. So that try fails, what it failed at
is remembered here, and the next try leaves that base out until the block can be read again.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer
from replicator.core.errors import BlockMissing
from replicator.core.ports import Offload
from replicator.store.ports import BlockReader, BlockStore

_REMEMBERED_MAX: Final = 256
"""More broken roots than a site has in its differences at once; the oldest is forgotten, and tried once more."""


class Bases:
    """Which of our roots are no base just now."""

    def __init__(self, store: BlockStore, offload: Offload) -> None:
        self._store = store
        self._offload = offload
        self._lacking: dict[BlockId, BlockId] = {}

    def note(self, root: BlockId, lacking: bytes) -> None:
        """A difference from this root ended at a block that could not be had."""
        self._lacking.pop(root, None)
        while len(self._lacking) >= _REMEMBERED_MAX:
            self._lacking.pop(next(iter(self._lacking)))
        self._lacking[root] = BlockId(lacking)

    async def unfit(self, roots: Iterable[BlockId]) -> set[BlockId]:
        """Those of the roots that cannot be a base. Looks at each that was noted again."""
        noted = {root: self._lacking[root] for root in roots if root in self._lacking}
        if not noted:
            return set()
        found = await self._offload.run(self._store.read, list(dict.fromkeys(noted.values())))
        faults = {fault.block_id for fault in found.faults}
        for root, block in noted.items():
            if block not in faults:
                self._lacking.pop(root, None)
        return {root for root, block in noted.items() if block in faults}


class BaseReader:
    """Reads the nodes of one of our bases, and nothing else: what it ends at, the base lacks."""

    def __init__(self, reader: BlockReader, bases: Bases, root: BlockId | None) -> None:
        self._reader = reader
        self._bases = bases
        self._root = root

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        """As any reader. Raises `BlockMissing`, which is noted."""
        try:
            return await self._reader.read(ids)
        except BlockMissing as error:
            if self._root is not None:
                self._bases.note(self._root, error.block_id)
            raise
