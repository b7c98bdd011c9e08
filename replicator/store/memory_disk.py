"""What a simulated machine still has after it was switched off: segments of bytes, and tables.

Whoever simulates a bad disk makes a subclass and overrides `read_at` (give other bytes, give
none, raise `OSError`) or `write`: nothing in here knows of faults, and the store above cannot
tell a faulty disk from a good one in any other way than a real one could.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sortedcontainers import SortedDict

from protocol.errors import ProtocolError
from protocol.ids import BlockId
from protocol.wire.envelope import HEADER_BYTES, MAGIC, Header, unseal
from replicator.store.ports import Fault, Place


class Row(NamedTuple):
    """What the index says of a block."""

    header: Header
    place: Place


class Sentence(NamedTuple):
    epoch: int
    at_ns: int


@dataclass(slots=True)
class MemoryDisk:
    """The bytes, and the index of them."""

    bytes_max: int | None = None
    """Bytes of all segments that fit; None for no end."""
    epoch: int = 1
    segments: dict[int, bytearray] = field(default_factory=dict)
    number_taken: int = 0
    """The highest number of a segment that there ever was: none is given out twice."""
    rows: dict[BlockId, Row] = field(default_factory=SortedDict)  # `ids` hands them out in order
    in_segment: dict[int, dict[int, BlockId]] = field(default_factory=dict)
    """For each segment, what the index says lies at which offset; ascending."""
    broken: dict[BlockId, Fault] = field(default_factory=SortedDict)
    condemned: dict[BlockId, Sentence] = field(default_factory=SortedDict)
    verified_ns: dict[int, int] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    _lost: set[Place] = field(default_factory=set)

    # -- bytes ----------------------------------------------------------------------------

    def new_segment(self) -> int:
        self.number_taken += 1
        self.segments[self.number_taken] = bytearray()
        return self.number_taken

    def write(self, number: int, sealed: bytes) -> Place:
        """Add to the end of a segment, durably."""
        segment = self.segments[number]
        place = Place(number, len(segment), len(sealed))
        segment += sealed
        return place

    def read_at(self, place: Place) -> bytes:
        """What the disk gives for a place; shorter if it does not reach so far. May raise `OSError`."""
        if place in self._lost:
            return b""
        return bytes(self.segments.get(place.segment, b"")[place.offset : place.offset + place.length])

    def used_bytes(self) -> int:
        return sum(len(segment) for segment in self.segments.values())

    def rot(self, block: BlockId, *, bit: int) -> None:
        """Flip one bit of a sealed block, counted from its start and round its end."""
        place = self.rows[block].place
        self.segments[place.segment][place.offset + bit // 8 % place.length] ^= 1 << bit % 8

    def lose(self, block: BlockId) -> None:
        """The bytes of a block are gone, and nobody was told."""
        place = self.rows[block].place
        self.segments[place.segment][place.offset : place.offset + place.length] = bytes(place.length)
        self._lost.add(place)

    def sound_blocks(self, number: int) -> Iterator[Row]:
        """Every block that can be proven in a segment, by the segment's own bytes."""
        data, at = bytes(self.segments.get(number, b"")), 0
        while at + HEADER_BYTES <= len(data):
            try:
                header, _ = unseal(data, at)
            except ProtocolError:
                at = data.find(MAGIC, at + 1)
                if at < 0:
                    return
                continue
            yield Row(header, Place(number, at, header.sealed_bytes))
            at += header.sealed_bytes

    # -- the index ------------------------------------------------------------------------

    def enter(self, row: Row) -> None:
        """A block is here, and lies there and nowhere else. A sound copy also ends a quarantine."""
        block = row.header.block_id
        if block in self.rows:
            self.forget(block)
        self.rows[block] = row
        self.in_segment.setdefault(row.place.segment, SortedDict())[row.place.offset] = block
        self.broken.pop(block, None)

    def forget(self, block: BlockId) -> Row:
        row = self.rows.pop(block)
        inside = self.in_segment[row.place.segment]
        del inside[row.place.offset]
        if not inside:
            del self.in_segment[row.place.segment]
        return row

    def remove_segment(self, number: int) -> int:
        """Returns the bytes that this frees. Nothing may lie there any more by the index."""
        assert number not in self.in_segment
        self.verified_ns.pop(number, None)
        return len(self.segments.pop(number, b""))
