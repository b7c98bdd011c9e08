"""From a body to bytes on the disk, while the memory or the codec lies (restic#4523)."""

import random
from pathlib import Path
from typing import cast

import lz4.block
import pytest

from protocol.wire.hashing import Kind, block_id
from replicator.core.errors import StoreError
from replicator.ingest.sealer import Sealer
from tests.support.blocks import body_of
from tests.support.store import open_store

FLIPS = 1000
REAL = lz4.block.compress


class Memory:
    """Flips one bit a block: of the body after it was named, or of what LZ4 made of it."""

    def __init__(self, *, in_body: bool) -> None:
        self._in_body = in_body
        self._chance = random.Random(12)
        self.harmless = 0

    def compress(self, body: bytearray, **options: object) -> bytes:
        if self._in_body:
            self._flip(body)
            return cast(bytes, REAL(body, **options))
        packed = bytearray(REAL(body, **options))
        will_be_raw = len(packed) > len(body) * 15 / 16
        self._flip(body if will_be_raw else packed)
        self.harmless += not will_be_raw and opens_to(bytes(packed), bytes(body))
        return bytes(packed)

    def _flip(self, memory: bytearray) -> None:
        memory[self._chance.randrange(len(memory))] ^= 1 << self._chance.randrange(8)


def opens_to(packed: bytes, body: bytes) -> bool:
    try:
        return bool(lz4.block.decompress(packed, uncompressed_size=len(body)) == body)
    except lz4.block.LZ4BlockError:
        return False


@pytest.mark.parametrize("in_body", [True, False], ids=["in the body", "in the payload"])
def test_a_thousand_flips_between_hash_and_pack_are_all_caught_before_anything_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_body: bool
) -> None:
    """Through the writer's own way into the store, bodies that pack and bodies that do not.

    A body that flips packs perfectly, into a sound block of another body: comparing would find
    nothing, only its hash tells. A payload that flips and still opens to the same body is that body.
    """
    store = open_store(tmp_path / "store")
    sealer = Sealer(store, store.begin("writer"), commit_bytes=1 << 30)
    memory = Memory(in_body=in_body)
    monkeypatch.setattr(lz4.block, "compress", memory.compress)
    caught = 0
    for seed in range(FLIPS):
        body = bytearray(body_of(seed, 4096))
        name = block_id(Kind.DATA, body)
        try:
            sealer.add(Kind.DATA, {name: body})
        except StoreError:
            caught += 1
    sealer.commit()
    assert store.statistics().blocks == memory.harmless
    assert caught == FLIPS - memory.harmless > 0.95 * FLIPS
    store.close()
