"""A small process that uses a store and says what it was promised: run under strace by the tests beside it.

    python -m tests.e2e.store_worker commit FOLDER COUNT
    python -m tests.e2e.store_worker collect FOLDER COUNT
    python -m tests.e2e.store_worker forks FOLDER COUNT CALL KILLED_AT POINT...

Each line `ack SEED` is one write, after `commit` has returned.

`forks` makes one child a POINT. strace counts calls for each process and kills at the one
numbered KILLED_AT; the child first makes as many idle calls as are missing, so that it dies at
its POINT-th. Starting Python once and not for every point is what makes this quick.
"""

import os
import sys
from pathlib import Path

from tests.support.blocks import ids_of, sealed_block
from tests.support.store import collect, open_store

BODY_BYTES = 700


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def work(folder: Path, count: int, *, with_collections: bool) -> None:
    store = open_store(folder)
    kept = []
    lease = store.begin("worker")
    for seed in range(count):
        block = sealed_block(seed, size=BODY_BYTES)
        store.append(lease, [block])
        store.commit(lease)
        say(f"ack {seed}")
        kept.append(seed)
        if with_collections and seed % 8 == 7:
            store.end(lease)
            kept = kept[::3]
            say("kept " + " ".join(map(str, kept)))
            for _ in range(2):
                collect(store, ids_of([sealed_block(number, size=BODY_BYTES) for number in kept]))
            lease = store.begin("worker")
    store.close()
    say("done")


def idle_calls(call: str, count: int, scratch: Path) -> None:
    handle = os.open(scratch, os.O_RDWR | os.O_CREAT, 0o600)
    for number in range(count):
        match call:
            case "fsync":
                os.fsync(handle)
            case "fdatasync":
                os.fdatasync(handle)
            case "pwrite64":
                os.pwrite(handle, b"x", 0)
            case "pwritev2":
                os.pwritev(handle, [b"x"], 0)
            case "truncate":
                os.truncate(scratch, 0)
            case "unlink":
                other = scratch.with_suffix(f".{number}")
                other.touch()
                os.unlink(other)
    os.close(handle)


def fork_and_work(folder: Path, count: int, call: str, idle: int) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    folder.mkdir()
    os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
    idle_calls(call, idle, folder / "scratch")
    work(folder / "store", count, with_collections=True)
    os._exit(0)


def main() -> None:
    mode, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if mode != "forks":
        work(folder, count, with_collections=mode == "collect")
        return
    call, killed_at = sys.argv[4], int(sys.argv[5])
    for point in map(int, sys.argv[6:]):
        fork_and_work(folder / str(point), count, call, killed_at - point)


if __name__ == "__main__":
    main()
