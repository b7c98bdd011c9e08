"""Flat cells: at a level k, 2^k sums, one for each value of the first k bits of a block id.

A block's *position* is the head of its id; what is *summed* there is its token, 128 keyed bits
that the makers of blocks cannot foresee. A token has two lanes of 64 bits. Lane A is what
sessions compare; lane B confirms the root, and is the second attempt if lane A ever misleads.

On the wire a cell is cut to a *record*: 20, 28 or 36 bits of sum and 4 bits of count. Cutting
commutes with adding, so a cut cell minus a cut cell is the cut difference. How wide a record has
to be depends on how many blocks its answer is looked up among: `diff.plan_width`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LANES: Final = 2
COUNT_BITS: Final = 4
COUNT_MASK: Final = np.uint64(2**COUNT_BITS - 1)
RECORD_BYTES_MIN: Final = 3
RECORD_BYTES: Final = 5
"""The widest record, and the one that lists and opening cells have."""
SUM_BITS: Final = 8 * RECORD_BYTES - COUNT_BITS
CHECK_MASK: Final = np.uint64(0xFFFF)
_WRAP: Final = 2**64


def sum_bits(width: int) -> int:
    """Bits of a sum that a record of `width` bytes holds."""
    return 8 * width - COUNT_BITS


def sum_mask(width: int) -> np.uint64:
    return np.uint64(2 ** sum_bits(width) - 1)


@dataclass(frozen=True, slots=True)
class Root:
    """A whole set in one cell: its size and both lanes' sums."""

    count: int
    sum_a: int
    sum_b: int

    def minus(self, other: "Root") -> "Root":
        return Root(self.count - other.count, (self.sum_a - other.sum_a) % _WRAP, (self.sum_b - other.sum_b) % _WRAP)


class Sums(NamedTuple):
    """Some cells of one lane, as a session compares them."""

    sums: U64
    counts: U64


@dataclass(frozen=True, slots=True)
class Cells:
    """All 2^level cells of a set, both lanes: 20 bytes a cell."""

    level: int
    sum_a: U64
    sum_b: U64
    counts: U32

    @classmethod
    def from_sorted(cls, level: int, heads: U64, lane_a: U64, lane_b: U64) -> "Cells":
        """The cells of blocks in the order of their ids: running sums."""
        edges = cell_edges(heads, level)
        counts = np.diff(edges).astype(np.uint32)
        return cls(level, sum_runs(lane_a, edges), sum_runs(lane_b, edges), counts)

    def lane(self, lane: int) -> U64:
        return self.sum_b if lane else self.sum_a

    def root(self) -> Root:
        sum_a, sum_b = self.sum_a.sum(dtype=np.uint64), self.sum_b.sum(dtype=np.uint64)
        return Root(int(self.counts.sum(dtype=np.uint64)), int(sum_a), int(sum_b))

    def is_same(self, other: "Cells") -> bool:
        return (
            self.level == other.level
            and np.array_equal(self.sum_a, other.sum_a)
            and np.array_equal(self.sum_b, other.sum_b)
            and np.array_equal(self.counts, other.counts)
        )


def cell_edges(heads: U64, level: int) -> I64:
    """Where each cell begins in ascending `heads`, and the end of the last."""
    assert level > 0, "numpy leaves a shift by 64 undefined"
    firsts = np.arange(1 << level, dtype=np.uint64) << np.uint64(64 - level)
    return np.append(np.searchsorted(heads, firsts), len(heads)).astype(np.int64)


def sum_runs(values: U64, edges: I64) -> U64:
    """The sum, modulo 2^64, of each run between neighbouring edges; a run may be empty."""
    running = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=running[1:])
    return np.diff(running[edges])


def expand_spans(starts: I64, stops: I64) -> tuple[I64, I64]:
    """All numbers of all spans in one run, and the edges of the spans in that run."""
    sizes = stops - starts
    edges = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=edges[1:])
    return np.arange(edges[-1], dtype=np.int64) + np.repeat(starts - edges[:-1], sizes), edges


def mix(suffixes: U64) -> U64:
    """Sixteen bits of a suffix that do not add up as suffixes do.

    The sum of three suffixes looks like a fourth one; the sum of their mixes does not look
    like its mix. Any product or shift alone would be nearly linear, and pass what it should catch.
    """
    mixed = (suffixes ^ (suffixes >> np.uint64(17))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed >> np.uint64(48)


def pack_records(values: U64, tags: U64, *, width: int = RECORD_BYTES) -> bytes:
    """`width` bytes each: 4 bits of count or tag at the low end, the rest is value. Higher bits are cut off."""
    words = ((values & sum_mask(width)) << np.uint64(COUNT_BITS)) | (tags & COUNT_MASK)
    return words.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :].tobytes()


def unpack_records(packed: bytes, *, width: int = RECORD_BYTES) -> tuple[U64, U64]:
    """Values and tags. The caller has checked that the length is a multiple of `width`."""
    wide = np.zeros((len(packed) // width, 8), np.uint8)
    wide[:, 8 - width :] = np.frombuffer(packed, np.uint8).reshape(-1, width)
    words = wide.view(">u8").reshape(-1).astype(np.uint64)
    return words >> np.uint64(COUNT_BITS), words & COUNT_MASK


def pack_checks(checks: U64) -> bytes:
    return (checks & CHECK_MASK).astype(">u2").tobytes()


def unpack_checks(packed: bytes) -> U64:
    return np.frombuffer(packed, ">u2").astype(np.uint64)
