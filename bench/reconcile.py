"""What a reconciliation costs: bytes for each difference, round trips, processor time of each side.

    python -m bench.reconcile                       a table for n = 1e5, 1e6, 1e7; about a minute
    python -m bench.reconcile 1e6 --seeds 10        means over ten sets of one size
    python -m bench.reconcile 1e6 --kinds           where the bytes go, message by message
    python -m bench.reconcile 1e8 --differ 1e3      6 GB of memory, and 15 s of processor for each set

Both sides run here, one after the other, on sets that are already built ("warm"); building
them is shown apart. Bytes are both directions with frame headers, without TLS.

Two turns are a round trip. `first`: when one of the two first knows a block that the other lacks. `known`: of all
such blocks, those that the one who holds them knows after one round trip, one and a half, and two.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.derived import DerivedSet, derived_ids, random_heads
from protocol.ids import SnapshotId
from protocol.machines.reconcile import Reconciled, Reconciliation
from protocol.merkle.cells import U64
from protocol.messages.registry import encode
from protocol.wire.frames import FRAME_HEADER_BYTES
from replicator.index.tokens import TokenKey
from replicator.index.view import FrozenSet

DIFFERENCES: Final = (0, 1, 10, 100, 1_000, 10_000, 100_000)
SNAPSHOT: Final = SnapshotId(bytes(16))
_IDS_KEPT_MAX: Final = 20_000_000
"""Larger sets are built without keeping their ids (`bench/derived.py`)."""


@dataclass(frozen=True, slots=True)
class Measured:
    result: Reconciled
    """The initiator's."""
    found_after: tuple[tuple[int, ...], tuple[int, ...]]
    """`Reconciled.found_after`, of the initiator and of the responder."""
    kinds: Counter[str]
    """Bytes of each kind of message, with frame headers."""
    build_s: float
    initiator_s: float
    responder_s: float

    @property
    def round_trips(self) -> int:
        return (self.result.turns_count + 1) // 2

    @property
    def first_round_trips(self) -> float:
        """When a block was first known that the other side lacks; 0 if there was none."""
        turns = [next((n for n, found in enumerate(side, 1) if found), 0) for side in self.found_after]
        return min([turn / 2 for turn in turns if turn], default=0.0)

    def known_share(self, turns: int) -> float:
        """Of all blocks that one side lacks, what the other knew of after so many turns."""
        total = sum(side[-1] for side in self.found_after)
        return sum(side[min(turns, len(side)) - 1] for side in self.found_after) / total if total else 1.0


def exchange(initiator: Reconciliation, responder: Reconciliation) -> tuple[float, float, Counter[str]]:
    """Pass messages to and fro until nobody has more to say; the seconds that each side took, and bytes by kind."""
    taken, kinds = [0.0, 0.0], Counter[str]()
    began = time.process_time()
    messages = initiator.start()
    taken[0] += time.process_time() - began
    sides, turn = (initiator, responder), 1
    while messages:
        for message in messages:
            kinds[type(message).__name__.removeprefix("Summary")] += len(encode(message)) + FRAME_HEADER_BYTES
        began = time.process_time()
        messages = [answer for message in messages for answer in sides[turn].receive(message)]
        taken[turn] += time.process_time() - began
        turn = 1 - turn
    return taken[0], taken[1], kinds


def measure(heads: U64, differences: int, rng: np.random.Generator) -> Measured:
    """Half of the differences are only here, half only there."""
    chosen = rng.choice(len(heads), differences, replace=False)
    only_mine, only_theirs = np.sort(chosen[: differences // 2]), np.sort(chosen[differences // 2 :])
    nonce = rng.bytes(16)
    key = TokenKey(snapshot_id=SNAPSHOT, nonce=nonce)
    here, build_s = _built(np.delete(heads, only_theirs), key)
    there, _ = _built(np.delete(heads, only_mine), key)
    initiator = Reconciliation(here, snapshot_id=SNAPSHOT, nonce=nonce)
    responder = Reconciliation(there, snapshot_id=SNAPSHOT, nonce=nonce)
    initiator_s, responder_s, kinds = exchange(initiator, responder)
    assert initiator.result.peer_lacks == derived_ids(heads[only_mine]).tobytes()
    assert responder.result.peer_lacks == derived_ids(heads[only_theirs]).tobytes()
    found_after = (initiator.result.found_after, responder.result.found_after)
    return Measured(initiator.result, found_after, kinds, build_s, initiator_s, responder_s)


def _built(heads: U64, key: TokenKey) -> tuple[FrozenSet, float]:
    """The set, and how long it took from ids in memory, or, of very many, from their heads."""
    if len(heads) > _IDS_KEPT_MAX:
        began = time.process_time()
        return DerivedSet(heads, key), time.process_time() - began
    ids = derived_ids(heads).data.cast("B")
    began = time.process_time()
    return FrozenSet(ids, key), time.process_time() - began


def report(blocks: int, differences: Sequence[int], *, seeds: range, with_kinds: bool) -> None:
    for differing in differences:
        if differing > blocks:
            continue
        runs = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            runs.append(measure(random_heads(rng, blocks), differing, rng))
        spent = [run.result.wire_bytes for run in runs]
        each = f"{np.mean(spent) / differing:8.2f} {max(spent) / differing:8.2f}" if differing else f"{'-':>8} {'-':>8}"
        known = " ".join(f"{100 * np.mean([run.known_share(turns) for run in runs]):3.0f} %" for turns in (2, 3, 4))
        print(
            f"{blocks:>11,} {differing:>8,} {np.mean(spent):>11,.0f} {each} "
            f"{max(run.round_trips for run in runs):>5} {max(run.first_round_trips for run in runs):>6} {known:>17} "
            f"{np.mean([run.build_s for run in runs]):>8.2f} "
            f"{np.mean([max(run.initiator_s, run.responder_s) for run in runs]):>7.3f}",
            flush=True,
        )
        if with_kinds:
            total = sum((run.kinds for run in runs), Counter[str]())
            print("    " + ", ".join(f"{kind} {count / len(runs):,.0f}" for kind, count in total.most_common()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure set reconciliation.")
    parser.add_argument("blocks", nargs="*", type=float, default=[1e5, 1e6, 1e7])
    parser.add_argument("--differ", nargs="*", type=float, default=DIFFERENCES)
    parser.add_argument("--seeds", type=int, default=1, help="how many sets")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--from-seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.from_seed, chosen.from_seed + chosen.seeds)
    print("     blocks   differ       bytes per diff  at most trips  first   known 1, 1.5, 2  build s  side s")
    for blocks in chosen.blocks:
        report(int(blocks), [int(one) for one in chosen.differ], seeds=seeds, with_kinds=chosen.kinds)


if __name__ == "__main__":
    main()
