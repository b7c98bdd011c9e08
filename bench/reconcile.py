"""What a reconciliation costs: bytes for each difference, turns, processor time of each side.

    python -m bench.reconcile                    a table for n = 1e5, 1e6, 1e7; about a minute
    python -m bench.reconcile 1e6 --seeds 10     means over ten sets of one size

Both sides run here, one after the other, on sets that are already built ("warm"); building
them is shown apart. Bytes are both directions with frame headers, without TLS.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from protocol.ids import BLOCK_ID_BYTES, SnapshotId
from protocol.machines.reconcile import Reconciled, Reconciliation
from protocol.merkle.cells import U8
from replicator.index.tokens import TokenKey
from replicator.index.view import FrozenSet

DIFFERENCES: Final = (0, 1, 10, 100, 1_000, 10_000, 100_000)
SNAPSHOT: Final = SnapshotId(bytes(16))


@dataclass(frozen=True, slots=True)
class Measured:
    result: Reconciled
    build_s: float
    initiator_s: float
    responder_s: float


def random_ids(rng: np.random.Generator, count: int) -> U8:
    """Distinct ids in order: sorted heads, and random bytes behind them."""
    ids = np.frombuffer(rng.bytes(count * BLOCK_ID_BYTES), np.uint8).reshape(-1, BLOCK_ID_BYTES).copy()
    heads = np.sort(rng.integers(0, 2**64, count, dtype=np.uint64))
    ids[:, :8] = heads.astype(">u8").view(np.uint8).reshape(-1, 8)
    return ids


def exchange(initiator: Reconciliation, responder: Reconciliation) -> tuple[float, float]:
    """Pass messages to and fro until nobody has more to say; the seconds that each side took."""
    taken = [0.0, 0.0]
    began = time.process_time()
    messages = initiator.start()
    taken[0] += time.process_time() - began
    sides, turn = (initiator, responder), 1
    while messages:
        began = time.process_time()
        messages = [answer for message in messages for answer in sides[turn].receive(message)]
        taken[turn] += time.process_time() - began
        turn = 1 - turn
    return taken[0], taken[1]


def measure(ids: U8, differences: int, rng: np.random.Generator) -> Measured:
    """Half of the differences are only here, half only there."""
    chosen = rng.choice(len(ids), differences, replace=False)
    only_mine, only_theirs = np.sort(chosen[: differences // 2]), np.sort(chosen[differences // 2 :])
    nonce = rng.bytes(16)
    key = TokenKey(snapshot_id=SNAPSHOT, nonce=nonce)
    mine = np.delete(ids, only_theirs, axis=0).data.cast("B")
    theirs = np.delete(ids, only_mine, axis=0).data.cast("B")
    began = time.process_time()
    here = FrozenSet(mine, key)
    build_s = time.process_time() - began
    there = FrozenSet(theirs, key)
    initiator = Reconciliation(here, snapshot_id=SNAPSHOT, nonce=nonce)
    responder = Reconciliation(there, snapshot_id=SNAPSHOT, nonce=nonce)
    initiator_s, responder_s = exchange(initiator, responder)
    assert initiator.result.peer_lacks == ids[only_mine].tobytes()
    assert responder.result.peer_lacks == ids[only_theirs].tobytes()
    return Measured(initiator.result, build_s, initiator_s, responder_s)


def report(blocks: int, seeds: int) -> None:
    for differences in DIFFERENCES:
        if differences > blocks:
            continue
        runs = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            runs.append(measure(random_ids(rng, blocks), differences, rng))
        mean_bytes = float(np.mean([run.result.wire_bytes for run in runs]))
        turns = max(run.result.turns_count for run in runs)
        build_s = float(np.mean([run.build_s for run in runs]))
        side_s = float(np.mean([max(run.initiator_s, run.responder_s) for run in runs]))
        each = f"{mean_bytes / differences:10.2f}" if differences else "         -"
        print(f"{blocks:>10,} {differences:>8,} {mean_bytes:>12,.0f} {each} {turns:>5} {build_s:>8.2f} {side_s:>8.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure set reconciliation.")
    parser.add_argument("blocks", nargs="*", type=float, default=[1e5, 1e6, 1e7])
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args(arguments)
    print("    blocks   differ        bytes   per diff turns  build s   side s")
    for blocks in chosen.blocks:
        report(int(blocks), chosen.seeds)


if __name__ == "__main__":
    main()
