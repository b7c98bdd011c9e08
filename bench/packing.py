"""What packing small files into shared blocks would save, and what it would cost: a model over the real files of B.

    python -m bench.packing FOLDER

Files of up to 64 KiB, in key order. A pack ends after a file whose key's hash ends in so many zero
bits (as nodes do), or at a mebibyte: content and names alone decide, so equal trees have equal roots.
One file in a hundred changes; every pack with a changed file is sent again.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import lz4.block
from blake3 import blake3

from protocol.wire.envelope import HEADER_BYTES

SMALL_MAX = 64 * 1024
PACK_MAX = 1024 * 1024
_ROW_BYTES = 65
"""What a block takes in the ledger (decision 0006)."""


def packs(files: Sequence[tuple[bytes, bytes]], *, bits: int) -> Iterator[list[bytes]]:
    pack: list[bytes] = []
    size = 0
    for key, content in files:
        pack.append(content)
        size += len(content)
        tail = int.from_bytes(blake3(key).digest(8), "big")
        if size >= PACK_MAX or not tail & ((1 << bits) - 1):
            yield pack
            pack, size = [], 0
    if pack:
        yield pack


def sealed_bytes(body: bytes) -> int:
    packed: bytes = lz4.block.compress(body, store_size=False)
    return HEADER_BYTES + min(len(packed), len(body))


def main(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    keys = [str(path.relative_to(folder)).replace("/", "\0").encode() for path in paths]
    files = sorted(
        (key, path.read_bytes()) for key, path in zip(keys, paths, strict=True) if 0 < path.stat().st_size <= SMALL_MAX
    )
    total = sum(len(content) for _, content in files)
    print(f"{len(files):,} files, {total / 1e6:.1f} MB")
    print("files a pack   blocks   sealed MB   ledger MB   1 % changed: MB sent")
    chance = random.Random(1)
    changed = set(chance.sample(range(len(files)), max(1, len(files) // 100)))
    for bits in range(7):
        blocks: dict[bytes, int] = {}
        at, sent = 0, 0
        for pack in packs(files, bits=bits):
            body = b"".join(pack)
            name = blake3(body).digest()
            if name not in blocks:
                blocks[name] = sealed_bytes(body)
            sent += blocks[name] if not changed.isdisjoint(range(at, at + len(pack))) else 0
            at += len(pack)
        row = len(blocks) * _ROW_BYTES / 1e6
        print(f"{2**bits:>12} {len(blocks):>8,} {sum(blocks.values()) / 1e6:>11.1f} {row:>11.2f} {sent / 1e6:>22.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
