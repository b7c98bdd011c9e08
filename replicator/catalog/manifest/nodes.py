"""One node of a manifest: its bytes, and where one node ends and the next begins.

A node is a msgpack array `[version, shape, level, keys, values]`. Level 0 holds the map's
own entries; a node above holds, for each child, its last key and its block id. Numbers and
ids are packed into one run of bytes each, names are lists.

Where a node ends depends on keys alone:

- numbered shapes: a node at level L holds the keys that agree in all but their lowest
  7 * (L+1) bits, so at most 128 children, and a change never moves a neighbour;
- names: a node at level L ends after a key whose hash ends in 5 * (L+1) zero bits, so
  32 children on average (the boundary rule of prolly trees, as in Noms and Dolt).
"""

from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final

import msgpack
from blake3 import blake3

from protocol.ids import BLOCK_ID_BYTES, BlockId
from protocol.limits import BLOCK_BODY_MAX, ENTRY_MAX
from protocol.wire.envelope import Buffer
from protocol.wire.hashing import Kind, block_id
from replicator.core.errors import ManifestDamaged

NODE_VERSION: Final = 1
LEVEL_MAX: Final = 12
KEY_BYTES: Final = 8
_NUMBER_BITS: Final = 7
_NAME_BITS: Final = 5
_PIECE_BYTES: Final = BLOCK_ID_BYTES + 4


class Shape(IntEnum):
    """What a map's keys and values are."""

    NUMBERS = 0
    NAMES = 1
    PIECES = 2


_VALUE_BYTES: Final = {Shape.NUMBERS: BLOCK_ID_BYTES, Shape.PIECES: _PIECE_BYTES}


@dataclass(frozen=True, slots=True)
class Node:
    """A decoded node: as many values as keys, keys strictly ascending."""

    shape: Shape
    level: int
    keys: list[bytes]
    values: list[bytes]


def number_key(number: int) -> bytes:
    """Eight bytes that sort like the number."""
    return number.to_bytes(KEY_BYTES, "big")


def key_number(key: bytes) -> int:
    return int.from_bytes(key, "big")


def ends_after(shape: Shape, level: int, key: bytes, following: bytes) -> bool:
    """Whether a node at `level` that holds `key` ends before `following`."""
    if shape is Shape.NAMES:
        return _name_rank(key) > level
    bits = _NUMBER_BITS * (level + 1)
    return key_number(key) >> bits != key_number(following) >> bits


def is_closed_before(shape: Shape, level: int, last_key: bytes, following: bytes | None) -> bool:
    """Whether a node at `level` whose last key is `last_key` stays as it is if `following` is the next key.

    None stands for the end of the map. There a node of names may have ended only because there
    was nothing more, so it counts as open unless its last key really is a boundary.
    """
    if shape is Shape.NAMES:
        return _name_rank(last_key) > level
    return following is None or ends_after(shape, level, last_key, following)


def _name_rank(key: bytes) -> int:
    tail = int.from_bytes(blake3(key).digest(8), "big")
    zeros = (tail & -tail).bit_length() - 1 if tail else 64
    return zeros // _NAME_BITS


def encode_node(shape: Shape, level: int, keys: list[bytes], values: list[bytes]) -> bytes:
    """The body of a node. Raises `ManifestDamaged` if it would be larger than a block may be."""
    packed_keys: bytes | list[bytes] = keys if shape is Shape.NAMES else b"".join(keys)
    packed_values: bytes | list[bytes] = values if shape is Shape.NAMES and level == 0 else b"".join(values)
    body: bytes = msgpack.packb([NODE_VERSION, int(shape), level, packed_keys, packed_values], use_bin_type=True)
    if len(body) > BLOCK_BODY_MAX:
        raise ManifestDamaged(
            f"A manifest node would take {len(body)} bytes.", hint="Too many long names or attributes in one folder."
        )
    return body


def node_id(body: bytes) -> BlockId:
    return block_id(Kind.NODE, body)


def decode_node(body: Buffer) -> Node:
    """Parse at the door. The body has its id, but whoever made it may have been broken, or hostile.

    Raises `ManifestDamaged`.
    """
    try:
        parts = msgpack.unpackb(body, raw=False, strict_map_key=True, max_map_len=0, max_ext_len=0)
        version, shape_number, level, packed_keys, packed_values = parts
        shape = Shape(shape_number)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ManifestDamaged(f"A manifest node cannot be read: {error}.") from error
    if version != NODE_VERSION or type(level) is not int or not 0 <= level <= LEVEL_MAX:
        raise ManifestDamaged(f"A manifest node of version {version} at level {level}.")
    if shape is Shape.NAMES:
        keys = _checked_list(packed_keys, 4096 * 4)
        values = _checked_list(packed_values, ENTRY_MAX) if level == 0 else _split(packed_values, BLOCK_ID_BYTES)
    else:
        keys = _split(packed_keys, KEY_BYTES)
        values = _split(packed_values, _VALUE_BYTES[shape] if level == 0 else BLOCK_ID_BYTES)
    if len(keys) != len(values) or any(a >= b for a, b in pairwise(keys)) or (level and not keys):
        raise ManifestDamaged("A manifest node has keys out of order, or not one value a key.")
    return Node(shape, level, keys, values)


def _split(packed: object, size: int) -> list[bytes]:
    if not isinstance(packed, bytes) or len(packed) % size:
        raise ManifestDamaged("A manifest node has a run of the wrong length.")
    return [packed[at : at + size] for at in range(0, len(packed), size)]


def _checked_list(items: object, size_max: int) -> list[bytes]:
    if not isinstance(items, list) or any(type(item) is not bytes or len(item) > size_max for item in items):
        raise ManifestDamaged("A manifest node has a key or value of the wrong type or size.")
    return items


EMPTY_ROOTS: Final = {shape: node_id(encode_node(shape, 0, [], [])) for shape in Shape}
"""The roots of maps without entries."""
