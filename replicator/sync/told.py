"""What a snapshot will take, added up by its receiver while the difference is told.

A push is planned by asking the other site what it lacks. Whoever fetches knows that of itself, and learns what is new
from the difference, which has to come in any case: so a plan costs it no byte, and is there when the last
entry has been told and most of the blocks have not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.ids import BlockId


@dataclass(slots=True)
class Told:
    """Bytes are what blocks unpack to: how they will be packed, nobody has said."""

    from_base: bool = False
    changed_bytes: int = 0
    """Of all blocks that the difference names. One that it names in two places counts twice."""
    missing_bytes: int = 0
    missing_blocks: int = 0
    """Also the nodes of large files' maps, whose sizes are not told."""
    _sizes: dict[BlockId, int] = field(default_factory=dict)
    """Of blocks that are named and not looked up yet: a batch of them."""

    def name(self, ids: Sequence[BlockId], sizes: Sequence[int]) -> None:
        self._sizes.update(zip(ids, sizes, strict=True))

    def look_up(self, ids: Sequence[BlockId], missing: Sequence[BlockId]) -> None:
        """Of `ids`, the `missing` are not here."""
        self.missing_bytes += sum(self._sizes.get(block, 0) for block in missing)
        self.missing_blocks += len(missing)
        self.changed_bytes += sum(self._sizes.pop(block, 0) for block in ids)
