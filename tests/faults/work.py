"""What the watched processes do: six phases of a node's life, each saying aloud what it was promised.

A line is said only after the store, or the job, has answered. Sums are SHA-256 of the bytes that went in, made here and
not by the product. Lines are written with `writev`, which nothing of the product uses: so a fault that is injected into
`write` does not hit the witness.

    holds ID SHA256        this block was acknowledged        drops ID        nobody may ask for it any more
    snapshot ID SHA256     this snapshot was acknowledged     forgets ID      it is being deleted
    error TYPE TEXT        an operation was refused           read-only TEXT  and the store says that it is closed
    ack-after-failure      what must never be said            done            the whole work was done
"""

import hashlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from protocol.ids import BlockId
from replicator.app.node import open_node
from replicator.catalog.model import Volume
from replicator.core.errors import ReplicatorError, StoreReadOnly
from replicator.core.progress import Progress
from replicator.jobs.parts import Parts
from replicator.jobs.runner import JobContext
from replicator.jobs.snapshot import SnapshotJobs
from replicator.store.config import StoreConfig
from replicator.store.local import LocalStore
from replicator.store.ports import SealedBlock
from tests.support.blocks import from_body, ids_of
from tests.support.nodes import write_state
from tests.support.store import collect, damage, open_store, put, scrub

_LONG_SHARE = 0.15
_LONG_BYTES = 12_000
_LONG_RUN_BYTES = 4096
STAYS = {"segments", "format", "generation", "lock"}
"""What a store has besides its ledger."""


_timed = False


def say(line: str) -> None:
    """With a clock, each word is followed by the moment by which it had been said."""
    at = f"at {time.monotonic_ns()}\n" if _timed else ""
    os.writev(1, [f"{line}\n{at}".encode()])


def wait_to_be_watched() -> None:
    """Stand still until the driver has attached and lets us go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def run(name: str, args: dict[str, Any]) -> int:
    """Exit codes: 0 it was done or was refused in words, 1 something else went wrong (a traceback is in the errors)."""
    global _timed
    _timed = bool(args.get("clock"))
    folder = Path(args["folder"])
    WORKS[name](folder, random.Random(args["seed"]), args)
    say("done")
    return 0


# -- what they share --------------------------------------------------------------------------


class Blocks:
    """Random blocks, no two alike in one store's life, half of them such as LZ4 packs well.

    Some are long enough to go past the page cache (`tiny`).
    """

    def __init__(self, chance: random.Random, *, largest: int = 2000) -> None:
        self._chance = chance
        self._largest = largest

    def some(self, count: int) -> list[tuple[SealedBlock, str]]:
        made = []
        for _ in range(count):
            body = self._chance.randbytes(self._chance.randint(17, self._largest))
            if self._chance.random() < _LONG_SHARE:
                body = self._chance.randbytes(self._chance.randint(_LONG_BYTES, 3 * _LONG_BYTES))
            elif self._chance.random() < 0.5:
                body = body[:16] * (len(body) // 16 + 1)
            made.append((from_body(body), hashlib.sha256(body).hexdigest()))
        return made


def promise(blocks: list[tuple[SealedBlock, str]]) -> None:
    say("\n".join(f"holds {block.header.block_id.hex()} {digest}" for block, digest in blocks))


def attempt(store: LocalStore, doing: Callable[[], object]) -> bool:
    """Do it; a refusal is said aloud. After a failed flush nothing may ever be acknowledged again by this process."""
    try:
        doing()
    except StoreReadOnly as error:
        tell(error)
        say(f"read-only {store.files.poisoned}")
        insist_on_refusal(store)
        return False
    except (ReplicatorError, OSError) as error:
        tell(error)
        return False
    return True


def tell(error: BaseException) -> None:
    say(f"error {type(error).__name__} {str(error)[:200]}".replace("\n", " "))


def insist_on_refusal(store: LocalStore) -> None:
    for number in range(3):
        body = b"after the failure %d" % number * 20
        try:
            put(store, [from_body(body)])
        except (ReplicatorError, OSError):
            continue
        say("ack-after-failure")


def tiny(args: dict[str, Any]) -> StoreConfig:
    return StoreConfig(
        segment_bytes_max=args.get("segment", 4096), reserve_bytes_max=0, grace_s=0.0, long_run_bytes=_LONG_RUN_BYTES
    )


# -- the phases of a store --------------------------------------------------------------------


def commit(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    blocks = Blocks(chance)
    store = open_store(folder, config=tiny(args))
    put_and_promise(store, blocks.some(5))
    wait_to_be_watched()
    failures = 0
    for _ in range(args.get("count", 25)):
        some = blocks.some(chance.randint(1, 4))
        if attempt(store, lambda some=some: put(store, [block for block, _ in some])):  # type: ignore[misc]
            promise(some)
        else:
            failures += 1
            if store.files.poisoned or failures > 5:
                break
    say("closing")
    store.close()


def put_and_promise(store: LocalStore, some: list[tuple[SealedBlock, str]]) -> None:
    put(store, [block for block, _ in some])
    promise(some)


def collection(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    blocks = Blocks(chance)
    store = open_store(folder, config=tiny(args))
    held: list[tuple[SealedBlock, str]] = blocks.some(60)
    put_and_promise(store, held)
    wait_to_be_watched()
    for _ in range(args.get("count", 3)):
        kept = [one for one in held if chance.random() < 0.4]
        gone = [one for one in held if one not in kept]
        say("\n".join(f"drops {block.header.block_id.hex()}" for block, _ in gone))
        roots = ids_of([block for block, _ in kept])
        good = attempt(store, lambda roots=roots: [collect(store, roots) for _ in range(2)])  # type: ignore[misc]
        more = blocks.some(20)
        good = good and attempt(store, lambda more=more: put(store, [block for block, _ in more]))  # type: ignore[misc]
        if good:
            promise(more)
        held = kept + (more if good else [])
        if store.files.poisoned:
            break
    store.close()


def repair(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    """What the healer does, with a peer's copies at hand: find, take out of service, write anew, read back."""
    blocks = Blocks(chance)
    store = open_store(folder, config=tiny(args))
    held = blocks.some(60)
    put_and_promise(store, held)
    wrong = chance.sample(held, 20)
    say("\n".join(f"drops {block.header.block_id.hex()}" for block, _ in wrong))
    for block, _ in wrong:
        damage(store, block.header.block_id, at=chance.randint(0, 60))
    wait_to_be_watched()
    attempt(store, lambda: store.quarantine(scrub(store)))
    for at in range(0, len(wrong), 3):
        part = [block for block, _ in wrong[at : at + 3]]
        back: dict[BlockId, object] = {}

        def write_and_read_back(part=part, back=back) -> None:  # type: ignore[no-untyped-def]
            put(store, part)
            back.update(store.read(ids_of(part)).sound)

        if attempt(store, write_and_read_back):
            promise([one for one in wrong[at : at + 3] if one[0].header.block_id in back])
        if store.files.poisoned:
            break
    say("closing")
    store.close()


def rebuild(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    store = open_store(folder, config=tiny(args))
    blocks = Blocks(chance)
    for _ in range(8):
        put_and_promise(store, blocks.some(15))
    store.close()
    drop_ledger(folder)
    wait_to_be_watched()
    for _ in range(3):
        try:
            store = open_store(folder, config=tiny(args))
        except (ReplicatorError, OSError) as error:
            tell(error)
        else:
            try:
                say(f"opened {store.statistics().blocks}")
            except (ReplicatorError, OSError) as error:
                tell(error)
            store.close()


def drop_ledger(folder: Path) -> None:
    """All that says where blocks lie; whatever engine keeps it."""
    for entry in folder.iterdir():
        if entry.name not in STAYS:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


# -- the phase of a node ----------------------------------------------------------------------


def ingest(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    """Snapshots of a tree that changes, by the job that the command line starts, on a node without a network."""
    source = folder / "source"
    files = args.get("files", 12)
    scribble(source, chance, files=files)
    state = folder / "state"
    write_state(state, "alone")
    os.sync()  # `init` does this for its own files; the line above is not `init`.
    with open_node(state) as parts:
        parts.catalog.add_volume(volume_of(parts, source))
        snapshot(parts, source)
    for number in range(3):
        if number == 0:
            wait_to_be_watched()
        try:
            scribble(source, chance, files=files)
            with open_node(state) as parts:
                snapshot(parts, source)
                if number == 1:
                    forget_oldest(parts)
        except (ReplicatorError, OSError) as error:
            tell(error)


def volume_of(parts: Parts, source: Path) -> Volume:
    return Volume(
        volume_id=parts.entropy.token(16), name="source", kind="tree", origin=parts.site_id,  # type: ignore[arg-type]
        path=os.fsencode(source), block_bytes=0, exclude=(),
    )  # fmt: skip


def snapshot(parts: Parts, source: Path) -> None:
    seen = tree_digest(source)
    volume = next(one for one in parts.catalog.volumes() if one.path == os.fsencode(source))
    context = JobContext(os.urandom(8).hex(), "snapshot", {"volumes": [volume.volume_id.hex()]}, _progress())
    done = trio.run(SnapshotJobs(parts).run, context)
    taken = done["snapshots"][0]
    if taken["skipped_count"] or taken["changed_while_read"]:
        # A file of the source could not be read. The snapshot names it, and promises nothing about it.
        say(f"incomplete {taken['snapshot']}")
        return
    say(f"snapshot {taken['snapshot']} {seen}")


def forget_oldest(parts: Parts) -> None:
    from replicator.jobs.collection import CollectionJobs

    oldest = parts.catalog.snapshots()[0].snapshot_id
    say(f"forgets {oldest.hex()}")
    parts.catalog.delete_snapshots([oldest])
    trio.run(CollectionJobs(parts).collect, JobContext("gc", "gc", {"grace_s": 0.0, "confirmed": True}, _progress()))


def _progress() -> Progress:
    return Progress(clock=time.monotonic)


def scribble(folder: Path, chance: random.Random, *, files: int) -> None:
    """Change a third of the files of a tree, make one, take one away."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        path = folder / f"file-{number:03}"
        if not path.exists() or chance.random() < 0.3:
            path.write_bytes(chance.randbytes(chance.randint(1, 90_000)))
    (folder / f"new-{chance.getrandbits(24):06x}").write_bytes(chance.randbytes(500))


def tree_digest(folder: Path) -> str:
    """One sum over all paths and their bytes."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(os.fsencode(path.relative_to(folder)) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


# -- for the order, the sharing, and the lease ------------------------------------------------


def acks(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    """Many acknowledgements, by one writer or by several threads at once; each says `ack THREAD NUMBER`."""
    wait_to_be_watched()
    store = open_store(folder, config=tiny(args))
    writers, count = args["writers"], args["count"]
    sizes = [_LONG_BYTES if number % 8 == 7 else 300 for number in range(count)]
    made = [[from_body(b"%d/%d/" % (w, n) + chance.randbytes(size)) for n, size in enumerate(sizes)]
            for w in range(writers)]  # fmt: skip
    start = threading.Barrier(writers)

    def write(number: int) -> None:
        lease = store.begin(f"writer {number}")
        start.wait()
        for at, block in enumerate(made[number]):
            store.append(lease, [block])
            store.commit(lease)
            say(f"ack {number} {at}")
        store.end(lease)

    if writers == 1:
        write(0)
        store.close()
        return
    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


def sleeper(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    """A writer that is stopped past its lease, and woken after a collection took what it relied on.

    While it stands still the store's monotonic clock runs so fast that a tenth of a second is longer than a lease.
    """
    ahead_s = 0.0
    store = LocalStore.open(folder, tiny(args), monotonic=lambda: time.monotonic() + ahead_s)
    some = Blocks(chance).some(6)
    put(store, [block for block, _ in some])
    lease = store.begin("sleeper")
    told = store.have(lease, ids_of([block for block, _ in some]))
    say(f"told {len(told)}")
    stopped_at = time.monotonic()
    wait_to_be_watched()
    ahead_s = (time.monotonic() - stopped_at) * args["clock_rate"]
    for _ in range(2):
        collect(store, [])
    say(f"left {store.statistics().blocks}")
    try:
        store.append(lease, [block for block, _ in Blocks(chance).some(1)])
        store.commit(lease)
        say("ack-after-failure")
    except ReplicatorError as error:
        tell(error)
    put_and_promise(store, some)
    store.close()


def endless(folder: Path, chance: random.Random, args: dict[str, Any]) -> None:
    """Everything that a store does, in random order, until somebody kills it. Options change from life to life."""
    reserve = 0
    config = StoreConfig(
        segment_bytes_max=args["segment"],
        reserve_bytes_max=reserve,
        grace_s=0.0,
        dead_share_min=args["dead_share"],
        long_run_bytes=_LONG_RUN_BYTES,
    )
    store = open_store(folder, config=config)
    say(f"opened {store.statistics().blocks}")
    blocks = Blocks(chance, largest=args["largest"])
    held: dict[BlockId, str] = {BlockId(bytes.fromhex(name)): digest for name, digest in args["held"].items()}
    for what in _whims(chance, args["writes"]):
        if what == "write":
            some = blocks.some(chance.randint(1, 12))
            put_and_promise(store, some)
            held.update((block.header.block_id, digest) for block, digest in some)
        elif what == "again" and held:
            _write_again(store, chance, held)
        elif what == "collect":
            gone = [name for name in held if chance.random() < 0.5]
            say("\n".join(f"drops {name.hex()}" for name in gone))
            for name in gone:
                del held[name]
            collect(store, list(held))
        elif what == "damage" and held:
            _mend(store, chance, held)
        elif what == "read" and held:
            _check(store, chance.sample(sorted(held), min(10, len(held))), held)


def _whims(chance: random.Random, writes: float) -> Iterator[str]:
    while True:
        yield "write" if chance.random() < writes else chance.choice(["again", "collect", "damage", "read"])


def _write_again(store: LocalStore, chance: random.Random, held: dict[BlockId, str]) -> None:
    """The same bytes once more, by a writer that relies on what it is told."""
    names = chance.sample(sorted(held), min(5, len(held)))
    lease = store.begin("again")
    missing = set(names) - store.have(lease, names)
    assert not missing, f"lost {missing}"
    store.commit(lease)
    store.end(lease)


def _mend(store: LocalStore, chance: random.Random, held: dict[BlockId, str]) -> None:
    name = chance.choice(sorted(held))
    body = bytes(store.read([name]).sound[name])
    say(f"drops {name.hex()}")
    damage(store, name)
    store.quarantine(scrub(store))
    put(store, [from_body(body)])
    say(f"holds {name.hex()} {held[name]}")


def _check(store: LocalStore, names: list[BlockId], held: dict[BlockId, str]) -> None:
    answer = store.read(names)
    wrong = [name for name in names if hashlib.sha256(bytes(answer.sound[name])).hexdigest() != held[name]]
    assert not wrong and not answer.faults, (wrong, answer.faults)


WORKS: dict[str, Callable[[Path, random.Random, dict[str, Any]], None]] = {
    "commit": commit, "collection": collection, "repair": repair, "rebuild": rebuild, "ingest": ingest,
    "acks": acks, "sleeper": sleeper, "endless": endless,
}  # fmt: skip
