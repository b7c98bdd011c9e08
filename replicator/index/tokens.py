"""Keyed tokens: 128 bits for each block id, which nobody without the key can foresee or steer.

Tenants choose what blocks contain, so with some work they choose ids. Sums of ids could be
made to cancel out with a few hundred chosen blocks; sums of keyed tokens cannot. Two passes of
AES are a two-block CBC-MAC: for messages of one fixed length, a pseudo-random function. With
the processor's own instructions ten million take about half a second.
"""

from typing import Final

import numpy as np
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.ids import BLOCK_ID_BYTES, SnapshotId
from protocol.merkle.cells import U8, U64

_CONTEXT: Final = "replicator 2026 summary token key v1"
_HALF: Final = BLOCK_ID_BYTES // 2
_SLICE_IDS: Final = 32 * 1024
"""A mebibyte of ids at a time: it stays in the cache, and the copies are small."""

Packed = bytes | bytearray | memoryview


class TokenKey:
    """The key of one scope and one nonce. Both sides of a session derive the same."""

    __slots__ = ("_first", "_second")

    def __init__(self, *, snapshot_id: SnapshotId, nonce: bytes) -> None:
        material = blake3(nonce + snapshot_id, derive_key_context=_CONTEXT).digest(length=32)
        self._first = Cipher(algorithms.AES(material[:16]), modes.ECB())
        self._second = Cipher(algorithms.AES(material[16:]), modes.ECB())

    def tokens(self, ids: Packed) -> tuple[U64, U64]:
        """Lane A and lane B of each id, in the order of the ids."""
        halves = np.frombuffer(ids, np.uint8).reshape(-1, 2, _HALF)
        lanes = np.empty((2, len(halves)), np.uint64)
        for start in range(0, len(halves), _SLICE_IDS):
            some = slice(start, start + _SLICE_IDS)
            lanes[:, some] = self._tokens(halves[some]).view("<u8").reshape(-1, 2).T
        return lanes[0], lanes[1]

    def _tokens(self, halves: U8) -> U8:
        once = self._first.encryptor().update(halves[:, 0].tobytes())
        mixed = np.frombuffer(once, np.uint8) ^ halves[:, 1].reshape(-1)
        return np.frombuffer(self._second.encryptor().update(mixed.tobytes()), np.uint8)


def heads(ids: Packed) -> U64:
    """The first 64 bits of each id: its position. Ids in order have heads in order."""
    return np.frombuffer(ids, ">u8")[:: BLOCK_ID_BYTES // 8].astype(np.uint64)
