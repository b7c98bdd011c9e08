"""Opening what a crash left, as its owner would, and comparing it with what was promised."""

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import trio

from protocol.ids import BlockId
from replicator.app.node import open_node
from replicator.core.progress import Progress
from replicator.jobs.collection import CollectionJobs
from replicator.jobs.parts import Parts
from replicator.jobs.restoration import RestoreJobs
from replicator.jobs.runner import JobContext
from tests.faults.work import tree_digest
from tests.support.blocks import from_body
from tests.support.store import collect, open_store, put, scrub

READY_S_MAX = 5.0


@dataclass(slots=True)
class Promised:
    """What a worker said, read back."""

    blocks: dict[BlockId, str] = field(default_factory=dict)
    dropped: set[BlockId] = field(default_factory=set)
    snapshots: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    read_only: list[str] = field(default_factory=list)
    is_done: bool = False

    @classmethod
    def read(cls, lines: list[str]) -> "Promised":
        found = cls()
        for line in lines:
            word, *rest = line.split(" ", 2)
            match word:
                case "holds":
                    found.blocks[BlockId(bytes.fromhex(rest[0]))] = rest[1]
                    found.dropped.discard(BlockId(bytes.fromhex(rest[0])))
                case "drops":
                    found.blocks.pop(BlockId(bytes.fromhex(rest[0])), None)
                    found.dropped.add(BlockId(bytes.fromhex(rest[0])))
                case "snapshot":
                    found.snapshots[rest[0]] = rest[1]
                case "forgets":
                    found.snapshots.pop(rest[0], None)
                case "error":
                    found.errors.append(" ".join(rest))
                case "read-only":
                    found.read_only.append(" ".join(rest))
                case "ack-after-failure":
                    raise AssertionError(f"acknowledged after a failure: {lines[-5:]}")
                case "done":
                    found.is_done = True
        return found


def judge_store(folder: Path, promised: Promised, *, thoroughly: bool = True) -> float:
    """Raises `AssertionError` if anything promised is not there, byte for byte. Returns how long opening took."""
    began = time.monotonic()
    store = open_store(folder)
    took = time.monotonic() - began
    try:
        assert took < READY_S_MAX, f"opening took {took:.1f} s"
        _assert_reads(store, promised.blocks)
        if thoroughly:
            broken = {fault.block_id for fault in scrub(store)} & set(promised.blocks)
            assert not broken, f"a scrub finds {broken}"
            extra = from_body(b"written after the crash" + os.urandom(40))
            put(store, [extra])
            for _ in range(2):
                collect(store, [*promised.blocks, extra.header.block_id])
            _assert_reads(store, promised.blocks)
            assert store.statistics().blocks == len(promised.blocks) + 1
    finally:
        store.close()
    return took


def _assert_reads(store, blocks: dict[BlockId, str]) -> None:  # type: ignore[no-untyped-def]
    answer = store.read(list(blocks))
    lost = answer.faults
    assert not lost, f"{len(lost)} of {len(blocks)} acknowledged blocks cannot be read: {lost[:3]}"
    for name, digest in blocks.items():
        assert hashlib.sha256(bytes(answer.sound[name])).hexdigest() == digest, (
            f"{name.hex()} reads back as other bytes"
        )


def judge_node(state: Path, promised: Promised) -> float:
    """The same for an offline node: every snapshot is restored and compared, and a collection harms none."""
    began = time.monotonic()
    with open_node(state) as parts:
        took = time.monotonic() - began
        assert took < READY_S_MAX, f"opening took {took:.1f} s"
        restore_all(parts, promised.snapshots)
        context = JobContext("gc", "gc", {"grace_s": 0.0, "confirmed": True}, Progress(clock=time.monotonic))
        trio.run(CollectionJobs(parts).collect, context)
        restore_all(parts, promised.snapshots)
    return took


def restore_all(parts: Parts, snapshots: dict[str, str]) -> None:
    for name, digest in snapshots.items():
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as target:
            args = {"snapshot": name, "target": f"{target}/t"}
            trio.run(RestoreJobs(parts).run, JobContext("r", "restore", args, Progress(clock=time.monotonic)))
            assert tree_digest(Path(target) / "t") == digest, f"snapshot {name} restores as something else"
