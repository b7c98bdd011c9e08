"""Reading the difference of two runs of cells, and deciding where to look closer.

A cell where one block differs *is* that block: the difference of the sums is its suffix. What
remains are cells with several differences, and for those there is a choice of how far to
split them before it is cheaper to name everything in them. The choice here is always the one
of least expected bytes; the number of turns is bounded by the machine, not by this file.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import exp2, log2
from typing import Final, NamedTuple

import numpy as np

from protocol.limits import SUMMARY_LEVEL_MAX, SUMMARY_SAMPLES_MAX, SUMMARY_TURN_CELLS_MAX
from protocol.merkle.cells import (
    COUNT_MASK,
    RECORD_BYTES,
    RECORD_BYTES_MIN,
    U8,
    U64,
    Flags,
    Sums,
    sum_bits,
    sum_mask,
)

TOP_LEVEL: Final = 7
"""The level that opens a session: 640 bytes, and enough to finish one with a hundred differences."""

SAMPLE_CELLS: Final = 64
SAMPLE_BYTES: Final = 1
SAMPLE_BLIND: Final = 2.0 ** (-8 * SAMPLE_BYTES)
"""A sample need only say whether a cell differs. That it looks the same by chance has to be reckoned with: one such
cell in a level where all differ would else outweigh the levels that know better."""
_BEYOND_SAMPLES: Final = 2.25
"""An estimate goes so far (as a power of two) beyond the deepest sampled level: there, 64 cells of 64 differ."""
FIRST_SPLIT_BITS: Final = 3
"""Two differences that share a cell part in 7 of 8 cases, for 40 bytes."""

LAST_SPLIT_BITS: Final = 9
LAST_SPLIT_GAIN: Final = 1.5
"""How deep `plan_last` splits, and how much dearer the list must be. Of the pairs in open cells one in 512 stays
together, and then the session runs once more: that is worth a few bytes in a thousand, not a few in ten."""

LIST_SHARE: Final = 3
"""Over one difference in so many blocks, naming every block is no dearer than searching (5 bytes a block against
14 a difference, measured), and takes three turns instead of six."""

LIST_CELL_BLOCKS: Final = 16
"""Lists are cut into cells of about this many blocks. Short ids are matched within a cell, so two blocks are
taken for one with a chance of 2^-28 a cell, however many blocks there are and wherever they crowd."""

_CHECK_BYTES: Final = 2
_WIDTH_CROWD_BITS: Final = 10
"""Of the blocks that stand alone in their cell, one in so many (as a power of two) may be taken for another."""
_WIDTH_CHECKED_BITS: Final = 16
"""The same where no turn is left to look closer, only to list."""
_WIDTH_CHECKED_MIN_BITS: Final = 21
"""Two blocks of mine with one suffix leave their cell open, and meet again in the next one half of the time. So what
comes after a split of 20 bits has more, or the very blocks that were taken for each other are so again."""
_WIDTH_FIRST_BITS: Final = 4
_WIDTH_SPLIT_BITS: Final = -4
_WIDTH_PAIR_BITS: Final = 3
"""A session is misled, and runs once more, in two ways. A cell with two of mine and one of yours reads as one of mine
if a block of mine there has that suffix by chance: that depends on the size of the set, and at the load we aim at
one cell in a hundred of the first level is of that kind, and one in thirty thousand after a split. And a cell with one
of mine and one of yours reads as equal if both have one suffix: after a split that is one cell in 128. With these
widths one session in some hundred is misled at the worst sizes, for a fifth of the bytes."""


class Verdict(IntEnum):
    """What the difference of two cells tells."""

    SAME = 0
    THEIRS_EMPTY = 1
    MINE_EMPTY = 2
    MINE_SINGLE = 3
    """If I hold the suffix here, it is the one block that they lack."""
    THEIRS_SINGLE = 4
    """If they hold the suffix here, it is the one block that I lack. Only they can tell."""
    UNRESOLVED = 5


class Comparison(NamedTuple):
    verdicts: U8
    suffixes: U64
    """For the singles: the suffix of the block."""


def compare(mine: Sums, theirs: Sums, *, width: int) -> Comparison:
    """Subtract their cells (as cut for the wire) from mine (whole)."""
    mask = sum_mask(width)
    delta = (mine.sums - theirs.sums) & mask
    surplus = (mine.counts - theirs.counts) & COUNT_MASK
    same = (delta == 0) & (surplus == 0)
    rules: list[tuple[Flags, Verdict]] = [
        (same, Verdict.SAME),
        ((theirs.sums == 0) & (theirs.counts == 0), Verdict.THEIRS_EMPTY),
        (mine.counts == 0, Verdict.MINE_EMPTY),
        (surplus == 1, Verdict.MINE_SINGLE),
        (surplus == COUNT_MASK, Verdict.THEIRS_SINGLE),
    ]
    verdicts = np.select([rule for rule, _ in rules], [verdict for _, verdict in rules], Verdict.UNRESOLVED)
    suffixes = np.where(surplus == 1, delta, (np.uint64(0) - delta) & mask)
    return Comparison(verdicts.astype(np.uint8), suffixes)


def sample_levels(blocks: int) -> range:
    """Which levels a set of this size samples: every second one, down to where cells hold a block or two."""
    deepest = deepest_level(blocks)
    return range(TOP_LEVEL + 2, min(deepest - 2, TOP_LEVEL + 2 * SUMMARY_SAMPLES_MAX + 1), 2)


def sample_prefixes(nonce: bytes, level: int) -> U64:
    """The 64 neighbouring cells of a level that are sampled.

    The nonce chooses them: whoever makes blocks cannot know where we will look, and so cannot
    crowd the sample to make a small difference look large.
    """
    group = int.from_bytes(nonce[:8], "big") >> (64 - level) << 6 & ((1 << level) - 1)
    return np.arange(group, group + SAMPLE_CELLS, dtype=np.uint64)


class Sample(NamedTuple):
    """Of `seen` cells of a level, `differing` look different; one that differs looks the same with chance `blind`."""

    level: int
    seen: int
    differing: int
    blind: float


def estimate(samples: Sequence[Sample]) -> float:
    """How many blocks differ, most likely, if a cell of level k differs with a chance of 1 - e^(-d / 2^k).

    All levels speak at once: the one where about four cells in five differ says most, and its
    neighbours half as much. If every cell of every level differs, the answer is a lower bound.
    """
    guesses = np.arange(0.0, samples[-1].level + _BEYOND_SAMPLES, 1 / 16)
    likelihood = np.zeros(len(guesses))
    for level, seen, differing, blind in samples:
        shares = np.clip(-np.expm1(-np.exp2(guesses - level)) * (1 - blind), 1e-12, 1 - 1e-12)
        likelihood += differing * np.log(shares) + (seen - differing) * np.log1p(-shares)
    return exp2(float(guesses[likelihood.argmax()]))


def deepest_level(blocks: int) -> int:
    """Where cells hold a quarter of a block: below, two ids that still share a cell are no accident."""
    return min(max(blocks, 1).bit_length() + 1, SUMMARY_LEVEL_MAX)


class FirstStep(NamedTuple):
    """How to answer an opening summary: `level` 0 means with what it already shows."""

    level: int
    list_all: bool


def plan_first(differences: float, *, mine_count: int, theirs_count: int) -> FirstStep:
    """Answer from the top cells, send a whole level, or list everything."""
    least, most = sorted((mine_count, theirs_count))
    if least == 0:
        return FirstStep(0, False)
    # Whoever holds far more must not list: the other's list is short, and cells lead there.
    if differences * LIST_SHARE > most and mine_count <= 4 * theirs_count:
        return FirstStep(0, True)
    # About one difference in two cells: then nine cells in ten hold none or one.
    level = min(round(log2(differences) + 1), least.bit_length(), SUMMARY_TURN_CELLS_MAX.bit_length() - 1)
    return FirstStep(level if level > TOP_LEVEL + 1 else 0, False)


def plan_width(blocks: int, cells: int, *, held: int, with_checks: bool, is_first: bool) -> int:
    """Bytes of a record, for `cells` cells that hold `blocks` of our `held` ones; `is_first`: they split no others."""
    crowd = log2(max(blocks / max(cells, 1), 1.0))
    if with_checks:
        bits = max(crowd + _WIDTH_CHECKED_BITS, _WIDTH_CHECKED_MIN_BITS)
    else:
        margin = _WIDTH_FIRST_BITS if is_first else _WIDTH_SPLIT_BITS
        bits = max(crowd + _WIDTH_CROWD_BITS, log2(max(held, 1)) + margin, log2(max(cells, 1)) + _WIDTH_PAIR_BITS)
    fitting = (width for width in range(RECORD_BYTES_MIN, RECORD_BYTES) if sum_bits(width) >= bits)
    return next(fitting, RECORD_BYTES)


def plan_next(open_count: int, *, level: int, blocks: int, held: int, is_first: bool) -> int:
    """The level at which to look at `open_count` cells that hold `blocks` of ours; the same level means: list them.

    A split by 2^j costs 2^j cells each, and of the cells that come out of it about 1.5 / 2^j times as
    many as went in stay open, to be listed by the one who answers, or, if they are large, split once more.
    """
    list_bytes = blocks * RECORD_BYTES
    if is_first:
        split = open_count << FIRST_SPLIT_BITS
        width = plan_width(blocks, split, held=held, with_checks=False, is_first=False)
        is_cheaper = split * width < list_bytes and split <= SUMMARY_TURN_CELLS_MAX
        return min(level + FIRST_SPLIT_BITS, SUMMARY_LEVEL_MAX) if is_cheaper else level
    best, least = level, float(list_bytes)
    for bits in range(1, SUMMARY_LEVEL_MAX - level + 1):
        split = open_count << bits
        cell_bytes = plan_width(blocks, split, held=held, with_checks=True, is_first=False) + _CHECK_BYTES
        if split > SUMMARY_TURN_CELLS_MAX or split * cell_bytes > least:
            break
        rest = min(list_bytes / 2**bits, LAST_SPLIT_GAIN * (open_count << LAST_SPLIT_BITS) * RECORD_BYTES)
        cost = split * cell_bytes + rest * min(1.0, 1.5 / 2**bits)
        if cost < least:
            best, least = level + bits, cost
    return best


def plan_last(open_count: int, *, level: int, blocks: int, held: int) -> int:
    """In the last turn but one: the same level to list `open_count` cells, or one so deep that nothing shares a cell.

    Cells that are still open hold two differences, seldom three. The split's cells carry no checks: nobody is left to
    look closer, and whatever it cannot tell shows in the closing root.
    """
    split = open_count << LAST_SPLIT_BITS
    split_bytes = split * plan_width(blocks, split, held=held, with_checks=False, is_first=False)
    is_dear = blocks * RECORD_BYTES > LAST_SPLIT_GAIN * split_bytes
    return min(level + LAST_SPLIT_BITS, SUMMARY_LEVEL_MAX) if is_dear else level


def plan_list(open_count: int, *, level: int, blocks: int) -> int:
    """The level at which to list `blocks` blocks in `open_count` cells."""
    crowd = blocks // (open_count * LIST_CELL_BLOCKS)
    return min(level + max(crowd.bit_length() - 1, 0), SUMMARY_LEVEL_MAX)
