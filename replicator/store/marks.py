"""What is spoken for, as a collector remembers it.

Marks are the first 8 bytes of ids: an accidental match keeps a dead block, never drops a live
one, and a hundred million blocks are 800 MB instead of ten times that.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from protocol.ids import BLOCK_ID_BYTES

Marks = npt.NDArray[np.uint64]
"""Ascending, each once."""


class MarkSet:
    """Collects ids that are spoken for."""

    def __init__(self) -> None:
        self._parts: list[Marks] = []

    def add(self, packed: bytes) -> None:
        """Mark a run of ids."""
        self._parts.append(prefixes(packed))

    def finish(self) -> Marks:
        """All marks so far. More may be added, and this be asked again."""
        self._parts = [np.unique(np.concatenate(self._parts))] if self._parts else []
        return self._parts[0] if self._parts else np.empty(0, np.uint64)


def prefixes(packed: bytes) -> Marks:
    """The first 8 bytes of each id in a run."""
    return np.frombuffer(packed, dtype=">u8")[:: BLOCK_ID_BYTES // 8].astype(np.uint64)


def are_marked(marks: Marks, keys: Marks) -> npt.NDArray[np.bool_]:
    """For each key whether it is among the marks."""
    if not len(marks):
        return np.zeros(len(keys), dtype=bool)
    at = np.minimum(np.searchsorted(marks, keys), len(marks) - 1)
    found: npt.NDArray[np.bool_] = marks[at] == keys
    return found


def packed_batches(ids: Iterable[bytes], batch: int = 4096) -> Iterator[bytes]:
    """Join ids to runs for `MarkSet.add`."""
    held: list[bytes] = []
    for block in ids:
        held.append(block)
        if len(held) >= batch:
            yield b"".join(held)
            held = []
    if held:
        yield b"".join(held)
