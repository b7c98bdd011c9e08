"""Packing many small answers: densely if most say something, sparsely if few do.

The first byte names the form. Dense is a fixed number of bits each; sparse is one LEB128
varint for each answer that is not zero: how many zeros lie before it, and what it is.
Sender and receiver know how many answers there are, so a code is checked against that.
"""

from typing import Final

import numpy as np

from protocol.errors import Malformed
from protocol.merkle.cells import I64, U8, U64, Flags

DENSE: Final = b"\x00"
SPARSE: Final = b"\x01"
_VARINT_BYTES_MAX: Final = 4


def encode_flags(flags: Flags) -> bytes:
    """One yes or no each; the shorter of both forms."""
    sparse = _encode_varints(_gaps(np.flatnonzero(flags)))
    return _shorter(np.packbits(flags).tobytes(), sparse)


def decode_flags(code: bytes, count: int) -> Flags:
    """Exactly `count` flags. Raises `Malformed`."""
    form, body = code[:1], code[1:]
    if form == DENSE:
        if len(body) != (count + 7) // 8:
            raise Malformed(f"{len(body)} bytes for {count} flags")
        return np.unpackbits(np.frombuffer(body, np.uint8), count=count).astype(np.bool_)
    if form != SPARSE:
        raise Malformed("a code of unknown form")
    flags = np.zeros(count, np.bool_)
    flags[_places(_decode_varints(body), count)] = True
    return flags


def encode_states(states: U8) -> bytes:
    """One of four each; the shorter of both forms."""
    at = np.flatnonzero(states)
    sparse = _encode_varints((_gaps(at) << np.uint64(2)) | states[at].astype(np.uint64))
    quads = np.zeros((len(states) + 3) // 4 * 4, np.uint8)
    quads[: len(states)] = states
    first, second, third, fourth = quads.reshape(-1, 4).T
    dense = (first << np.uint8(6)) | (second << np.uint8(4)) | (third << np.uint8(2)) | fourth
    return _shorter(dense.tobytes(), sparse)


def decode_states(code: bytes, count: int) -> U8:
    """Exactly `count` states. Raises `Malformed`."""
    form, body = code[:1], code[1:]
    if form == DENSE:
        if len(body) != (count + 3) // 4:
            raise Malformed(f"{len(body)} bytes for {count} states")
        quads = np.frombuffer(body, np.uint8)
        parts = [(quads >> np.uint8(shift)) & np.uint8(3) for shift in (6, 4, 2, 0)]
        return np.stack(parts, axis=1).reshape(-1)[:count].astype(np.uint8)
    if form != SPARSE:
        raise Malformed("a code of unknown form")
    words = _decode_varints(body)
    states = np.zeros(count, np.uint8)
    states[_places(words >> np.uint64(2), count)] = (words & np.uint64(3)).astype(np.uint8)
    return states


def _shorter(dense: bytes, sparse: bytes) -> bytes:
    return SPARSE + sparse if len(sparse) < len(dense) else DENSE + dense


def _gaps(at: I64) -> U64:
    return (np.diff(at, prepend=-1) - 1).astype(np.uint64)


def _places(gaps: U64, count: int) -> I64:
    at = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if len(at) and at[-1] >= count:
        raise Malformed(f"an answer about number {int(at[-1])} of {count}")
    return at


def _encode_varints(values: U64) -> bytes:
    sizes = np.ones(len(values), np.int64)
    for size in range(1, _VARINT_BYTES_MAX):
        sizes += values >= np.uint64(1 << 7 * size)
    starts = np.cumsum(sizes) - sizes
    out = np.zeros(int(sizes.sum()), np.uint8)
    for nth in range(_VARINT_BYTES_MAX):
        has = sizes > nth
        septets = ((values[has] >> np.uint64(7 * nth)) & np.uint64(0x7F)).astype(np.uint8)
        out[starts[has] + nth] = septets | np.where(sizes[has] > nth + 1, 0x80, 0).astype(np.uint8)
    return out.tobytes()


def _decode_varints(body: bytes) -> U64:
    octets = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if len(octets) and (not len(ends) or ends[-1] != len(octets) - 1):
        raise Malformed("a varint is cut short")
    sizes = np.diff(ends, prepend=-1)
    if len(sizes) and sizes.max() > _VARINT_BYTES_MAX:
        raise Malformed("a varint is too long")
    starts = ends - sizes + 1
    values = np.zeros(len(sizes), np.uint64)
    for nth in range(_VARINT_BYTES_MAX):
        has = sizes > nth
        values[has] |= (octets[starts[has] + nth] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * nth)
    return values
