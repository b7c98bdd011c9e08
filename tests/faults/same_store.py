"""The same store through hundreds of lives, each ended by kill -9 at a random moment: db_crashtest, for blocks.

The expected state is kept outside, from what each life said. Options change from life to life. At the end a
collection must leave next to nothing that nobody speaks for.
"""

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.judge import Promised, judge_store
from tests.faults.points import scratch
from tests.faults.stage import Stage
from tests.support.store import SMALL_SEGMENTS, collect, open_store

ORPHANS_MAX = 0.01
LIFE_S = (0.02, 0.35)


@dataclass(slots=True)
class Lives:
    """How the rounds went."""

    rounds: int = 0
    blocks: int = 0
    slowest_open_s: float = 0.0
    orphan_share: float = 0.0
    disk_share: float = 0.0
    problem: str = ""


def live(stage: Stage, *, rounds: int, seed: int) -> Lives:
    """So many lives of one store. Stops at the first that is wrong."""
    folder, chance, lives = scratch(), random.Random(seed), Lives()
    held: dict[str, str] = {}
    try:
        for number in range(rounds):
            held = _one_life(stage, folder, chance, held, number, lives)
            lives.rounds, lives.blocks = number + 1, len(held)
        _weigh(folder / "s", held, lives)
    except AssertionError as error:
        lives.problem = f"round {lives.rounds} of seed {seed}: {error} (left in {folder})"
    if not lives.problem:
        shutil.rmtree(folder, ignore_errors=True)
    return lives


def _one_life(
    stage: Stage, folder: Path, chance: random.Random, held: dict[str, str], number: int, lives: Lives
) -> dict[str, str]:
    options = {
        "folder": str(folder / "s"), "seed": chance.getrandbits(32), "held": held,
        "segment": chance.choice([1024, 4096, 65536, 1 << 20]), "dead_share": chance.choice([0.1, 0.5, 0.9]),
        "largest": chance.choice([200, 3000, 60_000]), "writes": chance.choice([0.4, 0.7, 0.9]),
    }  # fmt: skip
    actor = stage.work("endless", options, said=folder / f"said-{number}")
    time.sleep(chance.uniform(*LIFE_S))
    ended_by_itself = stage.has_ended(actor)
    if not ended_by_itself:
        actor.kill()
    stage.wait_ended(actor)
    assert not ended_by_itself, f"it ended by itself: {actor.lines()[-2:]} {actor.errors()[-800:]}"
    before = "\n".join(f"holds {name} {digest}" for name, digest in held.items()).splitlines()
    promised = Promised.read([*before, *actor.lines()])
    lives.slowest_open_s = max(
        lives.slowest_open_s, judge_store(folder / "s", promised, thoroughly=chance.random() < 0.1)
    )
    os.unlink(actor.said)
    return {name.hex(): digest for name, digest in promised.blocks.items()}


def _weigh(folder: Path, held: dict[str, str], lives: Lives) -> None:
    """After a collection: what is in the store and in nobody's list, and what the files take beyond it."""
    store = open_store(folder, config=SMALL_SEGMENTS)
    roots = [bytes.fromhex(name) for name in held]
    for _ in range(3):
        collect(store, roots)  # type: ignore[arg-type]
    live = store.statistics().sealed_bytes
    names = b"".join(store.ids())
    orphans = {names[at : at + 32] for at in range(0, len(names), 32)} - set(roots)
    lives.orphan_share = sum(place.length for place, _ in store.ledger.places(list(orphans)).values()) / max(1, live)  # type: ignore[arg-type]
    lives.disk_share = store.statistics().disk_bytes / max(1, live)
    store.close()
    store = open_store(folder, config=SMALL_SEGMENTS)  # So that the segment it was writing to can go as well.
    for _ in range(3):
        collect(store, [])
    left = store.statistics()
    store.close()
    assert lives.orphan_share <= ORPHANS_MAX, f"{lives.orphan_share:.1%} of the bytes belong to nobody"
    assert left.blocks == 0, f"{left.blocks} blocks stay after everything was let go"
    assert left.disk_bytes <= 4096, f"{left.disk_bytes} bytes of segments stay after everything was let go"
