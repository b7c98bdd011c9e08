"""The image that is measured on: made from a seed, so that two runs anywhere see the same bytes.

Blocks of 64 KiB come in extents, as a file system lays them: of all blocks a fifth are zeros
(half of them holes), and a quarter of the rest repeat an earlier one. What is new is
incompressible and text-like, five to three.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.warm import warm

BLOCK: Final = 64 * 1024
_EXTENT_BLOCKS: Final = 16
_POOL_BYTES: Final = 32 * 1024 * 1024
_ZERO_SHARE: Final = 0.2
_REPEAT_SHARE: Final = 0.25
_TEXT_SHARE: Final = 3 / 8


def make_image(path: Path, *, gib: float, seed: int) -> int:
    """Write the image and return its size. One that was made before, in full, is taken as it is."""
    blocks = int(gib * 2**30) // BLOCK
    done = path.with_name(path.name + ".done")
    if not (done.exists() and path.exists() and path.stat().st_size == blocks * BLOCK):
        chance = random.Random(seed)
        pool = _text(chance)
        with path.open("wb") as file:
            for number, extent in _extents(blocks, chance, pool):
                if extent is not None:
                    os.pwrite(file.fileno(), extent, number * BLOCK)
            file.truncate(blocks * BLOCK)
            os.fsync(file.fileno())
        done.touch()
    warm(path)
    return blocks * BLOCK


@contextmanager
def changed_blocks(path: Path, *, share: float, seed: int) -> Iterator[int]:
    """That share of the blocks, each on its own somewhere, has fresh bytes, and is as it was afterwards.

    Yields how many.
    """
    chance = random.Random(seed)
    blocks = path.stat().st_size // BLOCK
    chosen = chance.sample(range(blocks), max(1, int(blocks * share)))
    before: dict[int, bytes] = {}
    with path.open("r+b") as file:
        try:
            for number in chosen:
                before[number] = os.pread(file.fileno(), BLOCK, number * BLOCK)
                os.pwrite(file.fileno(), chance.randbytes(BLOCK), number * BLOCK)
            os.fsync(file.fileno())
            yield len(chosen)
        finally:
            for number, content in before.items():
                os.pwrite(file.fileno(), content, number * BLOCK)
            os.fsync(file.fileno())


def _extents(blocks: int, chance: random.Random, pool: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Block numbers and what to write there; None for a hole."""
    kept: list[bytes] = []
    for number in range(0, blocks, _EXTENT_BLOCKS):
        count = min(_EXTENT_BLOCKS, blocks - number)
        if chance.random() < _ZERO_SHARE:
            yield number, None if chance.random() < 0.5 else bytes(count * BLOCK)
        elif kept and chance.random() < _REPEAT_SHARE:
            yield number, chance.choice(kept)[: count * BLOCK]
        else:
            fresh = _fresh(chance, pool, count, number)
            yield number, fresh
            # A few are remembered, so that making an image takes little memory.
            if len(kept) < 64:
                kept.append(fresh)
            else:
                kept[chance.randrange(64)] = fresh


def _fresh(chance: random.Random, pool: bytes, count: int, number: int) -> bytes:
    if chance.random() >= _TEXT_SHARE:
        return chance.randbytes(count * BLOCK)
    parts = []
    for at in range(number, number + count):
        start = chance.randrange(len(pool) - BLOCK)
        # The block's number makes it one of a kind.
        parts.append(b"%016d" % at + pool[start + 16 : start + BLOCK])
    return b"".join(parts)


def _text(chance: random.Random) -> bytes:
    """Words of an invented language, some far more frequent than others, as in any: LZ4 brings it to about half."""
    letters = "etaoinshrdlucmfwyp"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(4000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    text = " ".join(chance.choices(words, weights, k=_POOL_BYTES // 5))
    return text.encode()[:_POOL_BYTES]
