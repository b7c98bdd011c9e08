"""Naming a body by its content.

Why BLAKE3: 6 GB/s on one core against 1.8 for SHA-256 with SHA-NI (measured), 256 bits, and
it releases the GIL, so two threads hash on two cores.

Each kind of block has its own domain: data is plain BLAKE3, everything else is BLAKE3 in
key-derivation mode under a context string. A manifest node can therefore never be passed off
as a file's content, nor the other way about (borg CVE-2016-10099 is what happens without).
"""

from enum import IntEnum
from typing import Final

from blake3 import blake3

from protocol.ids import BlockId


class Kind(IntEnum):
    """What a block's body is."""

    DATA = 0
    """A piece of a user's file, image or stream."""
    NODE = 1
    """A node of a manifest (`docs/storage.md`)."""
    RECORD = 2
    """A signed snapshot record."""


_CONTEXTS: Final[dict[int, str]] = {
    Kind.NODE: "replicator 2026-11-22 manifest node v1",
    Kind.RECORD: "replicator 2026-11-22 snapshot record v1",
}


def block_id(kind: int, body: bytes | bytearray | memoryview) -> BlockId:
    """The name of `body` as a block of `kind`."""
    if kind == 0:
        return BlockId(blake3(body).digest())
    return BlockId(blake3(body, derive_key_context=_CONTEXTS[kind]).digest())


def derived_key(context: str, material: bytes) -> bytes:
    """32 bytes that only a holder of `material` can compute; `context` is unique to one use."""
    return blake3(material, derive_key_context=context).digest()
