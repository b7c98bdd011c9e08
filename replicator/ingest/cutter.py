"""Where a file is cut into pieces. Only its content decides, so equal files share their blocks.

Two rules, in this order. On a grid of the shortest piece, cells that are nothing but zeros
are set apart: a run of them is one piece without a block, whether it lies in the file as a
hole or as written zeros. What lies between is cut by FastCDC, so that an insertion moves the
borders near it and no others.

A file is cut a window at a time. The last piece of a window may go on in the next, so it is
left for that one; the borders come out as if the file had been cut in one go.
"""

from typing import Final

from pyfastcdc import FastCDC

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.limits import MIB
from replicator.ingest.config import IngestConfig

ZERO_PIECE_MAX: Final = 1024 * MIB
"""Lengths have 32 bits. A terabyte of nothing is a thousand pieces."""

Piece = tuple[int, memoryview | None]
"""A length, and the bytes; None for zeros."""


class Cutter:
    """Cuts windows of files. Has no state: one serves all files and threads."""

    def __init__(self, config: IngestConfig) -> None:
        self.cell_bytes: Final = config.piece_bytes_min
        self._zeros: Final = bytes(self.cell_bytes)
        self._sizes = (config.piece_bytes_beyond_min, config.piece_bytes_min, config.piece_bytes_max)

    def cut(self, data: bytes, *, at: int, is_end: bool) -> list[Piece]:
        """The pieces of `data`, which lies in the file at `at`, where a piece begins.

        Unless it is the end of the file, `data` ends on the grid, and holds more than one longest piece.
        """
        if len(data) <= self.cell_bytes and is_end and at == 0:
            return self._short(data)
        pieces: list[Piece] = []
        view = memoryview(data)
        runs = self._runs(data, at)
        for number, (start, end, is_zero) in enumerate(runs):
            if is_zero:
                pieces.append((end - start, None))
                continue
            average, shortest, longest = self._sizes
            fastcdc = FastCDC(avg_size=average, min_size=shortest, max_size=longest)
            found = [view[start + c.offset : start + c.offset + c.length] for c in fastcdc.cut_buf(view[start:end])]
            if number + 1 == len(runs) and not is_end:
                found.pop()
            pieces += [(len(body), body) for body in found]
        return pieces

    def _short(self, data: bytes) -> list[Piece]:
        if not data:
            return []
        return [(len(data), None if self._zeros.startswith(data) else memoryview(data))]

    def _runs(self, data: bytes, at: int) -> list[tuple[int, int, bool]]:
        """Neighbouring cells of one sort: start and end in `data`, and whether they are zeros."""
        # A piece may begin inside a cell only if the cell is not zeros, so its rest is not asked again.
        head = min(-at % self.cell_bytes, len(data))
        runs = [(0, head, False)] if head else []
        for start in range(head, len(data), self.cell_bytes):
            end = min(start + self.cell_bytes, len(data))
            is_zero = data.startswith(
                self._zeros[: end - start] if end - start < self.cell_bytes else self._zeros, start
            )
            if runs and runs[-1][2] == is_zero:
                runs[-1] = (runs[-1][0], end, is_zero)
            else:
                runs.append((start, end, is_zero))
        return runs


class PieceList:
    """The pieces of one file, as they come in. Zeros that a window cut apart grow together again."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.ids: list[BlockId] = []
        self.size = 0
        self.zero_bytes = 0

    @classmethod
    def of(cls, lengths: list[int], ids: list[BlockId], *, size: int, zero_bytes: int) -> "PieceList":
        """One that another process has filled."""
        made = cls()
        made.lengths, made.ids, made.size, made.zero_bytes = lengths, ids, size, zero_bytes
        return made

    def add(self, length: int, block: BlockId) -> None:
        self.size += length
        if block == ZERO_BLOCK:
            self.zero_bytes += length
            if self.ids and self.ids[-1] == ZERO_BLOCK:
                length += self.lengths.pop()
                self.ids.pop()
            while length > ZERO_PIECE_MAX:
                self.lengths.append(ZERO_PIECE_MAX)
                self.ids.append(ZERO_BLOCK)
                length -= ZERO_PIECE_MAX
        self.lengths.append(length)
        self.ids.append(block)

    def values(self) -> list[bytes]:
        """What a map of pieces says of each."""
        return [block + length.to_bytes(4, "big") for block, length in zip(self.ids, self.lengths, strict=True)]
