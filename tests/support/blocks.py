"""Blocks from a seed: the same seed gives the same bytes."""

import random

from protocol.ids import BlockId
from protocol.wire.envelope import seal, unseal
from protocol.wire.hashing import Kind
from replicator.store.ports import SealedBlock


def body_of(seed: int, size: int = 1000) -> bytes:
    """Bytes that no other seed gives; half of the seeds give some that LZ4 packs well."""
    rnd = random.Random(seed)
    if seed % 2:
        return rnd.randbytes(size)
    return (b"%d " % seed + rnd.randbytes(16)) * (size // 16 + 1)


def sealed_block(seed: int, *, kind: Kind = Kind.DATA, size: int = 1000) -> SealedBlock:
    return from_body(body_of(seed, size), kind=kind)


def from_body(body: bytes, *, kind: Kind = Kind.DATA) -> SealedBlock:
    sealed = seal(kind, body)
    return SealedBlock(unseal(sealed)[0], sealed)


def sealed_blocks(*seeds: int, size: int = 1000) -> list[SealedBlock]:
    return [sealed_block(seed, size=size) for seed in seeds]


def ids_of(blocks: list[SealedBlock]) -> list[BlockId]:
    return [block.header.block_id for block in blocks]


def flipped(data: bytes, bit: int) -> bytes:
    """The same bytes with one bit the other way round."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
