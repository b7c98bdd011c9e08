"""Which files the ledger consists of, and what it knows of each segment: one small file, replaced whole.

    magic, version, zero, generation, first log, next number,
    blocks, sealed bytes, body bytes, runs, segments                     72 bytes
    for each run, 32 bytes       number, level, rows, first head
    for each segment, 28 bytes   number, known bytes, live blocks, live bytes, verified at
    checksum of all before                                               4 bytes

A run or a log that it does not name is a left-over of a crash, and is removed when the ledger is opened.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

from replicator.core.files import write_durably
from replicator.store.ledger.errors import LedgerDamaged, failure

MAGIC: Final = b"\x89RLGR\r\n\x1a"
_HEADER: Final = struct.Struct("<8sIIQQQQQQII")
_RUN: Final = struct.Struct("<QQQQ")
_SEGMENT: Final = struct.Struct("<IIIQq")
_CRC: Final = struct.Struct("<I")
_VERSION: Final = 1
assert _HEADER.size == 72


@dataclass(slots=True)
class SegmentState:
    """What the ledger knows of one segment."""

    known_bytes: int = 0
    """Everything before this offset is accounted for."""
    live_blocks: int = 0
    live_bytes: int = 0
    """Sealed bytes of the blocks whose place is here."""
    verified_ns: int = 0
    """When all of it was last proven; 0 for never."""


@dataclass(frozen=True, slots=True)
class RunName:
    """A run as the manifest knows it."""

    number: int
    level: int
    rows: int
    first_head: int


@dataclass(slots=True)
class Totals:
    """Sums over the blocks that are here."""

    blocks: int = 0
    sealed_bytes: int = 0
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of the file. `runs` are in the order in which a look-up asks them."""

    generation: int = 0
    first_log: int = 1
    next_number: int = 1
    totals: Totals = field(default_factory=Totals)
    runs: tuple[RunName, ...] = ()
    segments: dict[int, SegmentState] = field(default_factory=dict)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Replace it, durably. Raises `StoreError`."""
    totals = manifest.totals
    parts = [
        _HEADER.pack(
            MAGIC, _VERSION, 0, manifest.generation, manifest.first_log, manifest.next_number, totals.blocks,
            totals.sealed_bytes, totals.body_bytes, len(manifest.runs), len(manifest.segments),
        )
    ]  # fmt: skip
    parts += [_RUN.pack(run.number, run.level, run.rows, run.first_head) for run in manifest.runs]
    parts += [
        _SEGMENT.pack(number, one.known_bytes, one.live_blocks, one.live_bytes, one.verified_ns)
        for number, one in sorted(manifest.segments.items())
    ]
    content = b"".join(parts)
    try:
        write_durably(path, content + _CRC.pack(crc32(content)))
    except OSError as error:
        path.with_name(path.name + ".new").unlink(missing_ok=True)
        raise failure(f"Writing {path}", error) from error


def read_manifest(path: Path) -> Manifest | None:
    """None if there is none. Raises `LedgerDamaged`, or `StoreError` if the disk does not answer."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(f"Reading {path}", error) from error
    if len(data) < _HEADER.size + _CRC.size or _CRC.unpack(data[-_CRC.size :])[0] != crc32(data[: -_CRC.size]):
        raise LedgerDamaged(f"{path} is damaged.")
    magic, version, _, generation, first_log, next_number, blocks, sealed, body, runs, segments = _HEADER.unpack_from(
        data
    )
    runs_end = _HEADER.size + runs * _RUN.size
    end = runs_end + segments * _SEGMENT.size
    if magic != MAGIC or version != _VERSION or end + _CRC.size != len(data):
        raise LedgerDamaged(f"{path} is not a manifest of a ledger of this release.")
    return Manifest(
        generation=generation,
        first_log=first_log,
        next_number=next_number,
        totals=Totals(blocks, sealed, body),
        runs=tuple(RunName(*one) for one in _RUN.iter_unpack(data[_HEADER.size : runs_end])),
        segments={one[0]: SegmentState(*one[1:]) for one in _SEGMENT.iter_unpack(data[runs_end:end])},
    )
