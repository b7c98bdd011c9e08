"""The sealed block: the same bytes on our disk, on the wire, and on the peer's disk.

A body is compressed once, where it is cut, and never packed again. The header says what
follows without opening it, so a store can be walked, and an index rebuilt, from segments
alone. Layout, big-endian, 56 bytes and then the payload:

    magic  version kind  codec flags  body_bytes payload_bytes  id   payload_crc  crc32 of the 52 before it
    4s     B       B     B     B      I          I              32s  I            I

`flags` is zero in this version, and refused otherwise. The id is the truth about the *body*.
`payload_crc` is there because several LZ4 payloads can unpack to one body: a flipped bit that
happens to do no harm is still damage, and is found (one flip in about fifty is of that kind,
measured). A raw payload is the body itself, so its `payload_crc` is zero and not looked at. The last
checksum only tells a torn or misread header from a real one without hashing anything.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

import lz4.block
from isal.isal_zlib import crc32

from protocol.errors import BadBlock, Malformed, TooLarge
from protocol.ids import BlockId
from protocol.limits import BLOCK_BODY_MAX
from protocol.wire.hashing import Kind, block_id

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"\x89RSB"
VERSION: Final = 1
_FIELDS: Final = struct.Struct(">4sBBBBII32sI")
_CRC: Final = struct.Struct(">I")
_HEADER: Final = struct.Struct(_FIELDS.format + "I")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES == 56

_KINDS: Final = frozenset(int(kind) for kind in Kind)


class Codec(IntEnum):
    """How the payload was made from the body."""

    RAW = 0
    LZ4 = 1


_SAVING_MIN: Final = 16
"""LZ4 is kept if it saves at least a sixteenth: below that, opening the block costs more than it saves."""


class Header(NamedTuple):
    """A parsed and checked header. A tuple, because one is made for each block, several times on its way."""

    kind: int
    codec: int
    body_bytes: int
    payload_bytes: int
    block_id: BlockId
    payload_crc: int

    @property
    def sealed_bytes(self) -> int:
        return HEADER_BYTES + self.payload_bytes


def seal(kind: int, body: Buffer, *, named: BlockId | None = None) -> bytes:
    """The sealed bytes of `body`, as `seal_named` makes them."""
    return seal_named(kind, body, block_id(kind, body) if named is None else named)[1]


def seal_named(kind: int, body: Buffer, name: BlockId) -> tuple[Header, bytes]:
    """Wrap `body` for the store and the wire, and prove that it can be unwrapped again.

    `name` is the id, which the caller has computed already (to look for a duplicate).
    The result is opened and *hashed* before it is returned: a codec or a memory fault between
    the first hash and the last copy must not reach a disk (restic#4523). To compare what
    comes out with `body` would cost less and see less: a body that changed in memory after it
    was named packs and compares perfectly (docs/decisions/0014).

    Raises `TooLarge` over `BLOCK_BODY_MAX`, `BadBlock` if the proof fails.
    """
    size = len(body)
    if size > BLOCK_BODY_MAX:
        raise TooLarge(f"a block of {size} bytes; the limit is {BLOCK_BODY_MAX}")
    codec, payload = Codec.RAW, body
    if size > HEADER_BYTES:
        packed: bytes = lz4.block.compress(body, store_size=False)
        if len(packed) <= size - size // _SAVING_MIN:
            codec, payload = Codec.LZ4, packed
    payload_crc = crc32(payload) if codec is Codec.LZ4 else 0
    fields = _FIELDS.pack(MAGIC, VERSION, kind, codec, 0, size, len(payload), name, payload_crc)
    sealed = b"".join((fields, _CRC.pack(crc32(fields)), payload))
    return unseal(sealed)[0], sealed


def parse_header(data: Buffer, at: int = 0) -> Header:
    """Read the header that starts at `at`.

    Raises `Malformed` if it is not a header or is cut short, `TooLarge` if its sizes are over the limit.
    """
    if len(data) - at < HEADER_BYTES:
        raise Malformed("the header of a sealed block is cut short")
    magic, version, kind, codec, flags, body_bytes, payload_bytes, name, payload_crc, crc = _HEADER.unpack_from(
        data, at
    )
    if magic != MAGIC:
        raise Malformed("not a sealed block")
    if crc != crc32(data[at : at + _FIELDS.size]):
        raise Malformed("the header of a sealed block is damaged")
    if version != VERSION or flags or kind not in _KINDS or codec > Codec.LZ4:
        raise Malformed(f"a sealed block of version {version}, kind {kind}, codec {codec}, flags {flags}")
    if body_bytes > BLOCK_BODY_MAX or payload_bytes > body_bytes:
        raise TooLarge(f"a sealed block of {payload_bytes} bytes for a body of {body_bytes}")
    return Header(kind, codec, body_bytes, payload_bytes, BlockId(name), payload_crc)


def unseal(data: Buffer, at: int = 0) -> tuple[Header, Buffer]:
    """Open the sealed block at `at` and prove that its body has the id it claims.

    Returns the header and the body; a raw body is a view into `data`, not a copy.
    Raises `Malformed`, `TooLarge`, or `BadBlock` if the bytes are not the bytes that were sealed.
    """
    header = parse_header(data, at)
    start, end = at + HEADER_BYTES, at + header.sealed_bytes
    if len(data) < end:
        raise Malformed("the payload of a sealed block is cut short")
    payload = memoryview(data)[start:end]
    body: Buffer = payload
    if header.codec == Codec.LZ4:
        if crc32(payload) != header.payload_crc:
            raise BadBlock("the payload does not have the checksum that the header claims")
        try:
            body = lz4.block.decompress(payload, uncompressed_size=header.body_bytes)
        except lz4.block.LZ4BlockError as error:
            raise BadBlock(f"LZ4 cannot open it: {error}") from error
    if len(body) != header.body_bytes or block_id(header.kind, body) != header.block_id:
        raise BadBlock("the body does not have the id that the header claims")
    return header, body


def walk(data: Buffer) -> Iterator[tuple[int, Header]]:
    """The offset and header of each sealed block in a run of whole ones. Bodies are not opened.

    Raises what `parse_header` raises, and `Malformed` if the last one is cut short.
    """
    at, end = 0, len(data)
    while at < end:
        header = parse_header(data, at)
        if at + header.sealed_bytes > end:
            raise Malformed("the last sealed block of a run is cut short")
        yield at, header
        at += header.sealed_bytes
