"""One row of the block table, in the three shapes in which it exists.

    in memory        id (32 bytes) → record (16 bytes)
    in a log         id, record                                  48 bytes
    in a run         head | tail, record                         8 + 40 bytes, in two columns

The *head* is the first eight bytes of an id as a number, the *tail* the other twenty-four. Heads are
what a look-up searches, so they lie side by side and are kept in memory; they only narrow it down,
and the tail decides: an id is never compared in part (two ids with equal heads cost an attacker 2^32 hashes).

A record says where a block lies and what it is:

    segment  offset  meta          I I Q, little-endian
    meta     length (24 bits)  body (24)  kind (8)  7 bits zero  gone (1)

A row that is *gone* shadows older rows of the same id: that is how a block leaves a table of which
nothing is ever changed in place.
"""

import struct
from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.ids import BLOCK_ID_BYTES, BlockId
from protocol.limits import BLOCK_BODY_MAX
from protocol.wire.envelope import HEADER_BYTES
from replicator.store.ports import Place

Heads = npt.NDArray[np.uint64]
Rests = npt.NDArray[np.uint8]
"""Shape (rows, `REST_BYTES`): tail and record of each."""
Offsets = npt.NDArray[np.uint32]
Records = npt.NDArray[np.uint8]
"""Shape (rows, `RECORD.size`)."""

HEAD_BYTES: Final = 8
TAIL_BYTES: Final = BLOCK_ID_BYTES - HEAD_BYTES
RECORD: Final = struct.Struct("<IIQ")
REST_BYTES: Final = TAIL_BYTES + RECORD.size
LOG_ROW_BYTES: Final = BLOCK_ID_BYTES + RECORD.size

_SIZE_BITS: Final = 24
_SIZE_MASK: Final = (1 << _SIZE_BITS) - 1
_KIND_SHIFT: Final = 2 * _SIZE_BITS
_GONE: Final = 1 << 63
assert BLOCK_BODY_MAX + HEADER_BYTES <= _SIZE_MASK

SEGMENT_BYTES_MAX: Final = 1 << 31
"""An offset has 32 bits, and the last block of a segment may reach past its nominal end."""


class Entry(NamedTuple):
    """What the table says of a block that is here."""

    place: Place
    kind: int
    body_bytes: int


def pack_record(place: Place, *, kind: int, body_bytes: int) -> bytes:
    meta = place.length | body_bytes << _SIZE_BITS | kind << _KIND_SHIFT
    return RECORD.pack(place.segment, place.offset, meta)


GONE_RECORD: Final = RECORD.pack(0, 0, _GONE)


_GONE_FROM: Final = 0x80
"""The last byte of a record is this or more if the block is gone."""


def is_gone(record: bytes) -> bool:
    return record[-1] >= _GONE_FROM


class Answer(NamedTuple):
    """The newest record of each id of a look-up, in the order of the question: columns, because a loop over a thousand
    ids costs more than finding them."""

    known: npt.NDArray[np.bool_]
    """Which have a record at all: it may say that the block is gone."""
    records: Records
    """Zeros where there is none."""

    def here(self) -> npt.NDArray[np.bool_]:
        here: npt.NDArray[np.bool_] = self.known & (self.records[:, -1] < _GONE_FROM)
        return here

    def by_id(self, ids: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """As a dictionary of records, those of gone blocks included."""
        return {ids[at]: self.records[at].tobytes() for at in np.flatnonzero(self.known).tolist()}


def no_answer(count: int) -> Answer:
    return Answer(np.zeros(count, bool), np.zeros((count, RECORD.size), np.uint8))


_place: Final = partial(tuple.__new__, Place)


def places_of(ids: Sequence[BlockId], answer: Answer) -> dict[BlockId, tuple[Place, int]]:
    """Place and kind of those that are here: what a look-up asks for, a thousand at a time, and nothing more."""
    here = answer.here()
    records = answer.records[here]
    halves, meta = records.view("<u4"), records.view("<u8")[:, 1]
    lengths = (meta & np.uint64(_SIZE_MASK)).tolist()
    kinds = (meta >> np.uint64(_KIND_SHIFT) & np.uint64(0xFF)).tolist()
    places = map(_place, zip(halves[:, 0].tolist(), halves[:, 1].tolist(), lengths, strict=True))
    return dict(zip(compress(ids, here.tolist()), zip(places, kinds, strict=True), strict=True))


def unpack_record(record: bytes) -> Entry | None:
    """None if the block is gone."""
    segment, offset, meta = RECORD.unpack(record)
    if meta >= _GONE:
        return None
    place = Place(segment, offset, meta & _SIZE_MASK)
    return Entry(place, meta >> _KIND_SHIFT & 0xFF, meta >> _SIZE_BITS & _SIZE_MASK)


def heads_of(packed_ids: bytes) -> Heads:
    """The heads of a run of ids, in native order."""
    return np.frombuffer(packed_ids, dtype=">u8")[:: BLOCK_ID_BYTES // HEAD_BYTES].astype(np.uint64)


def id_of(head: int, tail: bytes) -> BlockId:
    return BlockId(head.to_bytes(HEAD_BYTES, "big") + tail)


def ids_of(heads: Heads, rests: Rests) -> bytes:
    """The ids of rows, joined."""
    ids = np.empty((len(heads), BLOCK_ID_BYTES), np.uint8)
    ids[:, :HEAD_BYTES] = heads.astype(">u8").view(np.uint8).reshape(-1, HEAD_BYTES)
    ids[:, HEAD_BYTES:] = rests[:, :TAIL_BYTES]
    return ids.tobytes()


class Columns(NamedTuple):
    """The numbers in the records of many rows, as arrays."""

    segment: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.uint32]
    length: npt.NDArray[np.int64]
    body: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]
    gone: npt.NDArray[np.bool_]


def columns_of(rests: Rests) -> Columns:
    halves, meta = rests.view("<u4"), rests.view("<u8")[:, REST_BYTES // 8 - 1]
    low = (meta & np.uint64(_GONE - 1)).astype(np.int64)
    return Columns(
        segment=halves[:, TAIL_BYTES // 4],
        offset=halves[:, TAIL_BYTES // 4 + 1],
        length=low & _SIZE_MASK,
        body=low >> _SIZE_BITS & _SIZE_MASK,
        kind=low >> _KIND_SHIFT & 0xFF,
        gone=meta >= np.uint64(_GONE),
    )


def columns_of_records(packed: bytes) -> tuple[npt.NDArray[np.uint32], Offsets, npt.NDArray[np.bool_]]:
    """Segment and offset of joined records, and which are of gone blocks."""
    halves, meta = np.frombuffer(packed, "<u4").reshape(-1, 4), np.frombuffer(packed, "<u8")[1::2]
    return halves[:, 0], halves[:, 1], meta >= np.uint64(_GONE)


def segments_in(rests: Rests) -> npt.NDArray[np.uint32]:
    """Only the segment of each row: what a search through all rows looks at."""
    return rests.view("<u4")[:, TAIL_BYTES // 4]


def sort_rows(heads: Heads, rests: Rests) -> tuple[Heads, Rests]:
    """Rows in the order of their ids, one a id: of several the one that came first."""
    order = np.argsort(heads, kind="stable")
    heads, rests = heads[order], rests[order]
    same = np.flatnonzero(heads[1:] == heads[:-1])
    if not len(same):
        return heads, rests
    keep = np.ones(len(heads), dtype=bool)
    at = 0
    while at < len(same):
        first = last = int(same[at])
        while at < len(same) and int(same[at]) == last:
            last += 1
            at += 1
        _sort_group(rests, keep, first, last + 1)
    return heads[keep], rests[keep]


def _sort_group(rests: Rests, keep: npt.NDArray[np.bool_], start: int, end: int) -> None:
    """Rows with one head: order them by tail, and drop all but the first of each id."""
    newest: dict[bytes, bytes] = {}
    for row in range(start, end):
        rest = rests[row].tobytes()
        newest.setdefault(rest[:TAIL_BYTES], rest)
    ordered = [newest[tail] for tail in sorted(newest)]
    rests[start : start + len(ordered)] = np.frombuffer(b"".join(ordered), np.uint8).reshape(-1, REST_BYTES)
    keep[start + len(ordered) : end] = False
