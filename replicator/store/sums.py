"""Sums of stretches: so that a scrub can prove a segment again without opening each of its blocks.

A stretch is a run of whole sealed blocks that was written, or proven, at once. Its BLAKE3 is kept beside
the segment. As long as the bytes have that sum they are the bytes that were proven then, every one of them:
headers, payloads, and what lies between. To hash a megabyte costs a third of unpacking and hashing sixteen
blocks, and lets go of the interpreter once instead of fifty times.

Sums only ever save work. Whatever does not have its sum, or has none, is proven block by block as if there
were no such file; so nothing here is flushed, and a file that is torn, old or gone does no harm. And since a sum
that was taken while writing would agree with a bit that flipped in memory just before, every fourth pass of a scrub
looks at no sum.

    magic    version segment count   then for each: start end digest   BLAKE3 of all before it
    8s       I       I       I                      I     I   32s      32s
"""

import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

_MAGIC: Final = b"\x89RSUM\r\n\x1a"
_HEADER: Final = struct.Struct(">8sIII")
_STRETCH: Final = struct.Struct(">II32s")
_DIGEST_BYTES: Final = 32
_BYTES_MAX: Final = 4 << 20
"""Of a file that is read: a stretch for every kilobyte of a segment."""


class Stretch(NamedTuple):
    """Bytes of one segment, from `start` to before `end`, and their sum."""

    start: int
    end: int
    digest: bytes


class SumFiles:
    """A file for each segment. What is wrong with one, or with the disk, is taken for "no sums"."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.sums"

    def load(self, number: int) -> list[Stretch]:
        """In the order in which they lie."""
        try:
            with self._path(number).open("rb") as file:
                data = file.read(_BYTES_MAX)
        except OSError:
            return []
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if len(body) < _HEADER.size or blake3(body).digest() != digest:
            return []
        if _HEADER.unpack_from(body) != (_MAGIC, 1, number, (len(body) - _HEADER.size) // _STRETCH.size):
            return []
        return [Stretch(*fields) for fields in _STRETCH.iter_unpack(body[_HEADER.size :])]

    def save(self, number: int, stretches: Iterable[Stretch]) -> None:
        kept = sorted(stretches)
        path = self._path(number)
        body = _HEADER.pack(_MAGIC, 1, number, len(kept)) + b"".join(_STRETCH.pack(*one) for one in kept)
        fresh = path.with_suffix(".new")
        with suppress(OSError):
            fresh.write_bytes(body + blake3(body).digest())
            os.replace(fresh, path)

    def remove(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            with suppress(OSError):
                self._path(number).unlink(missing_ok=True)
