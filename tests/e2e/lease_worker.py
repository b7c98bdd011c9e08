"""A process that writes under a short lease, collects, and is stopped and woken by the test beside it.

    python -m tests.e2e.lease_worker FOLDER ROUNDS LEASE_S

Each round: a writer is told that a base is here and says `asleep`. Whoever reads that stops this process and wakes
it when the lease has run out. Awake, the collector runs first, as it may in any process with several threads; then
the writer goes on as if nothing had happened. `refused` or `ACCEPTED` is what the store made of it, `retried` and
`WRONG` what came of doing it again.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from replicator.core.errors import LeaseLost
from replicator.store.local import LocalStore
from tests.support.blocks import body_of, ids_of, sealed_block, sealed_blocks
from tests.support.store import SMALL_SEGMENTS, collect, put


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def play(store: LocalStore, number: int, *, lease_s: float) -> None:
    base = sealed_blocks(1, 3, 5)
    put(store, base)
    sleeper = store.begin("laptop")
    assert store.have(sleeper, ids_of(base)) == set(ids_of(base))
    new = sealed_block(1000 + number)
    before_sleep = number % 2
    if before_sleep:
        store.append(sleeper, [new])
    say("asleep")
    slept_from = time.monotonic()
    while time.monotonic() - slept_from < lease_s:
        time.sleep(0.001)
    for _ in range(2):
        collect(store, [])
    try:
        if not before_sleep:
            store.append(sleeper, [new])
        store.commit(sleeper)
        say("ACCEPTED")
    except LeaseLost:
        say("refused")
    retry = store.begin("laptop, again")
    missing = [block for block in [*base, new] if block.header.block_id not in store.have(retry, ids_of([*base, new]))]
    store.append(retry, missing)
    store.commit(retry)
    for _ in range(2):
        collect(store, ids_of([*base, new]))
    answer = store.read(ids_of([*base, new]))
    whole = not answer.faults and bytes(answer.sound[new.header.block_id]) == body_of(1000 + number)
    store.end(retry)
    say("retried" if whole else "WRONG")
    for _ in range(2):
        collect(store, [])


def main() -> None:
    folder, rounds, lease_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    store = LocalStore.open(folder, replace(SMALL_SEGMENTS, lease_s=lease_s))
    for number in range(rounds):
        play(store, number, lease_s=lease_s)
    store.close()


if __name__ == "__main__":
    main()
