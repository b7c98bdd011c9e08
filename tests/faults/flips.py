"""Single bits flip in the segments of a store: each is found, the right block is named, and no wrong byte is served.

By both ways of a scrub in turn: by the sums of stretches, and block by block (docs/decisions/0023). Sound copies
come back as a repair brings them, and then every block is what it was.
"""

import hashlib
import random
import shutil
from dataclasses import dataclass, field

from protocol.ids import BlockId
from replicator.store.local import LocalStore
from replicator.store.ports import Fault, SealedBlock
from tests.faults.points import scratch
from tests.faults.work import Blocks, tiny
from tests.support.store import open_store, put

FLIPS_A_TRIAL = 100
_BLOCKS = 300


@dataclass(slots=True)
class Flipped:
    """What was ruined, and what was wrong with how that went."""

    flips: int = 0
    by_sums: int = 0
    problems: list[str] = field(default_factory=list)


def flip_bits(*, flips: int, seed: int) -> Flipped:
    """As many flips, a hundred at a time, each in another block of one store."""
    chance, result, folder = random.Random(seed), Flipped(), scratch()
    store = open_store(folder / "s", config=tiny({"segment": 400_000}))
    try:
        held = {block.header.block_id: (block, digest) for block, digest in Blocks(chance, largest=9000).some(_BLOCKS)}
        blocks = [block for block, _ in held.values()]
        for at in range(0, len(blocks), 20):
            put(store, blocks[at : at + 20])
        while result.flips < flips:
            count = min(FLIPS_A_TRIAL, flips - result.flips)
            by_sums = result.flips // FLIPS_A_TRIAL % 2 == 0
            ruined = {name: _flip(store, name, chance) for name in chance.sample(sorted(held), count)}
            found = _scrub(store, by_sums=by_sums)
            result.flips += count
            result.by_sums += count * by_sums
            result.problems += _judge(store, held, ruined, found)
            store.quarantine(found)
            put(store, [held[name][0] for name in ruined])
            if again := _scrub(store, by_sums=not by_sums):
                result.problems.append(f"{len(again)} faults after everything was healed")
            if any(_digest(store, name) != digest for name, (_, digest) in held.items()):
                result.problems.append("a block is not what it was, after it was healed")
    finally:
        store.close()
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _flip(store: LocalStore, block: BlockId, chance: random.Random) -> str:
    """Somewhere in its header or its payload. Says where, for the report."""
    place, _ = store.ledger.places([block])[block]
    at = chance.randrange(56) if chance.random() < 0.3 else chance.randrange(56, place.length)
    bit = chance.randrange(8)
    with store.files.path(place.segment).open("r+b") as file:
        file.seek(place.offset + at)
        byte = file.read(1)[0]
        file.seek(place.offset + at)
        file.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {at} of {place.length}"


def _scrub(store: LocalStore, *, by_sums: bool) -> list[Fault]:
    faults: list[Fault] = []
    cursor = None
    while True:
        part = store.verify(after=cursor, bytes_max=1 << 20, by_sums=by_sums)
        faults += part.faults
        if (cursor := part.cursor) is None:
            return faults


def _judge(
    store: LocalStore, held: dict[BlockId, tuple[SealedBlock, str]], ruined: dict[BlockId, str], found: list[Fault]
) -> list[str]:
    named = {fault.block_id for fault in found}
    problems = [f"{name.hex()[:12]} was not found: {ruined[name]}" for name in ruined.keys() - named]
    problems += [f"{name.hex()[:12]} was named, and is sound" for name in named - ruined.keys()]
    served = store.read(list(held)).sound
    problems += [f"{name.hex()[:12]} was served though it is broken" for name in ruined.keys() & served.keys()]
    return problems + [
        f"{name.hex()[:12]} was served with wrong bytes"
        for name, body in served.items()
        if hashlib.sha256(body).hexdigest() != held[name][1]
    ]


def _digest(store: LocalStore, block: BlockId) -> str:
    body = store.read([block]).sound.get(block)
    return "" if body is None else hashlib.sha256(body).hexdigest()
