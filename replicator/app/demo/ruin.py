"""Ruining a site: what disks do, done on purpose and written down.

What is damaged is told by the format itself (`docs/storage.md`): a segment is walked before it
is touched, so the blocks that must be found later are known without asking the product.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import ProtocolError
from protocol.wire.envelope import HEADER_BYTES, Header, parse_header


@dataclass(slots=True)
class Ruin:
    """What was done, and to which blocks."""

    flipped: set[bytes] = field(default_factory=set)
    truncated: set[bytes] = field(default_factory=set)
    deleted: set[bytes] = field(default_factory=set)
    elsewhere: set[bytes] = field(default_factory=set)
    """Blocks with a second copy in a segment that was left alone: after a crash there may be some."""
    said: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> set[bytes]:
        """Every block that has lost its only copy here."""
        return (self.flipped | self.truncated | self.deleted) - self.elsewhere


def ruin_store(segments: Path, *, seed: int, flips: int = 40) -> Ruin:
    """Flip bits in one segment, cut another in half, delete a third. Needs three segments."""
    chance = random.Random(seed)
    paths = sorted(path for path in segments.iterdir() if path.suffix == ".seg" and len(_blocks(path)) > 4)
    flip, cut, gone = chance.sample(paths, 3)
    ruin = Ruin()
    for path in set(paths) - {flip, cut, gone}:
        ruin.elsewhere |= {header.block_id for _, header in _blocks(path)}
    blocks = _blocks(flip)
    sound_too = {header.block_id for _, header in blocks}
    with flip.open("r+b") as file:
        for at, header in chance.sample(blocks, min(flips, len(blocks))):
            where = at + HEADER_BYTES + chance.randrange(max(1, header.payload_bytes))
            old = os.pread(file.fileno(), 1, where)
            os.pwrite(file.fileno(), bytes([old[0] ^ 1 << chance.randrange(8)]), where)
            ruin.flipped.add(header.block_id)
    blocks = _blocks(cut)
    half = blocks[len(blocks) // 2][0] + 7
    sound_too -= ruin.flipped
    sound_too |= {header.block_id for at, header in blocks if at + header.sealed_bytes <= half}
    ruin.elsewhere |= sound_too
    ruin.truncated = {header.block_id for at, header in blocks if at + header.sealed_bytes > half}
    os.truncate(cut, half)
    ruin.deleted = {header.block_id for _, header in _blocks(gone)}
    gone.unlink()
    ruin.said = [
        f"{len(ruin.flipped)} single bits flipped in {flip.name}",
        f"{cut.name} cut in half ({len(ruin.truncated)} blocks)",
        f"{gone.name} deleted ({len(ruin.deleted)} blocks)",
    ]
    return ruin


def _blocks(path: Path) -> list[tuple[int, Header]]:
    data = path.read_bytes()
    found: list[tuple[int, Header]] = []
    at = 64
    while at + HEADER_BYTES <= len(data):
        try:
            header = parse_header(data, at)
        except ProtocolError:
            break
        found.append((at, header))
        at += header.sealed_bytes
    return found
