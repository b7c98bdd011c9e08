"""Which blocks snapshots need, remembered without a disk."""

from protocol.ids import BlockId
from replicator.index.tokens import Packed


class MemorySets:
    """`IdSets` from memory."""

    def __init__(self) -> None:
        self._sets: dict[BlockId, bytes] = {}

    def get(self, root: BlockId) -> Packed | None:
        ids = self._sets.get(root)
        return None if ids is None else memoryview(ids)

    def put(self, root: BlockId, ids: bytes) -> None:
        self._sets[root] = ids
