"""What a collection is going to do: values, decided once, the same for a dry run and for a real one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.ids import BlockId
from replicator.store.config import StoreConfig
from replicator.store.marks import Marks
from replicator.store.ports import Mark, Place, Shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do, decided from one mark, and changed by nobody."""

    mark: Mark
    marks: Marks
    at_ns: int
    revive: tuple[BlockId, ...]
    sweep: bytes
    """Ids in one run: what goes now."""
    sweep_bytes: int
    condemn: tuple[bytes, ...]
    """Runs of ids: what is sentenced now."""
    condemn_blocks: int
    condemn_bytes: int
    remove: tuple[Shelf, ...]
    """Segments without a live block once the sweep is done."""
    rewrite: tuple[Shelf, ...]
    """Segments that are mostly dead then, in the order in which they will be emptied."""
    share: float
    """How much of the store is sentenced by this run, by blocks or by bytes, whichever is more."""
    held: str
    """Why this is not carried out unless somebody confirms it; empty if it is."""
    writers: tuple[str, ...]


class Freed:
    """What a set of blocks takes, and in which segments."""

    def __init__(self) -> None:
        self.blocks = self.bytes = 0
        self.by_segment: dict[int, int] = {}

    def add(self, places: Iterable[Place]) -> None:
        for place in places:
            self.blocks += 1
            self.bytes += place.length
            self.by_segment[place.segment] = self.by_segment.get(place.segment, 0) + place.length

    def merge(self, other: "Freed") -> None:
        self.blocks, self.bytes = self.blocks + other.blocks, self.bytes + other.bytes
        for number, count in other.by_segment.items():
            self.by_segment[number] = self.by_segment.get(number, 0) + count


def plan_shelves(
    shelves: Sequence[Shelf], freed: dict[int, int], *, config: StoreConfig
) -> tuple[list[Shelf], list[Shelf]]:
    """Which segments go as they are, and which are emptied first, if `freed` bytes of each are dead as well.

    A segment that holds a broken block stays: the block may yet be healed from its own bytes.
    """
    remove: list[Shelf] = []
    rewrite: list[Shelf] = []
    for shelf in shelves:
        alive = shelf.live_bytes - freed.get(shelf.number, 0)
        if shelf.is_held or shelf.size_bytes <= shelf.overhead_bytes:
            continue
        if alive <= 0:
            remove.append(shelf)
        elif alive < shelf.size_bytes * (1 - config.dead_share_min):
            rewrite.append(shelf)
    return remove, rewrite


def why_held(share: float, share_max: float) -> str:
    if share <= share_max:
        return ""
    return f"{share:.0%} of the store would be condemned in one run; over {share_max:.0%} waits for a person"
