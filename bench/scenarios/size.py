"""What happens as things grow: many snapshots of one volume, many blocks in one store."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.harness import OURS, Row, Setting
from bench.image import changed_blocks
from bench.nodes import Node
from bench.scenarios.node import measured
from protocol.ids import BlockId
from protocol.wire.envelope import seal_named
from protocol.wire.hashing import Kind, block_id
from replicator.store.local import LocalStore
from replicator.store.ports import SealedBlock

_SNAPSHOTS: Final = 20
_SIZES: Final = (1e5, 1e6, 1e7)
_BATCH: Final = 10_000


def many_snapshots(setting: Setting) -> Iterator[Row]:
    """The twentieth snapshot of a changing image beside the second: what came before must not cost."""
    source, size = setting.make("A")
    for run in range(setting.runs):
        with Node("home", setting.work / "home") as home:
            home.protect(source)
            home.snapshot()
            for number in range(2, _SNAPSHOTS + 1):
                with changed_blocks(source, share=0.01, seed=setting.seed + 100 * run + number):
                    row = measured(f"A, snapshot {number}", home, home.snapshot, size)
                if number in (2, _SNAPSHOTS):
                    yield row


def store_size(setting: Setting) -> Iterator[Row]:
    """Opening, looking up and adding blocks in stores of 1e5 to --most-blocks blocks of a hundred bytes."""
    folder = setting.work / "grown"
    for blocks in (int(size) for size in _SIZES if size <= setting.most_blocks):
        yield Row(f"store of {blocks:,} blocks", OURS, _grow_and_ask(folder, blocks))


def _grow_and_ask(root: Path, blocks: int) -> dict[str, float]:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    store = LocalStore.open(root / "store")
    lease = store.begin("bench")
    began = time.perf_counter()
    some: list[BlockId] = []
    for at in range(0, blocks, _BATCH):
        batch = [_tiny(number) for number in range(at, min(at + _BATCH, blocks))]
        store.append(lease, batch)
        store.commit(lease)
        some.append(batch[0].header.block_id)
    grow_s = time.perf_counter() - began
    store.close()
    began = time.perf_counter()
    store = LocalStore.open(root / "store")
    open_s = time.perf_counter() - began
    lease = store.begin("bench")
    asked = (some * 10)[:1000]
    began = time.perf_counter()
    assert store.have(lease, asked) == set(asked)
    have_us = (time.perf_counter() - began) / len(asked) * 1e6
    fresh = [_tiny(number) for number in range(blocks, blocks + 1000)]
    began = time.perf_counter()
    store.append(lease, fresh)
    store.commit(lease)
    add_us = (time.perf_counter() - began) / len(fresh) * 1e6
    store.close()
    beside = [path for path in (root / "store").rglob("*") if path.is_file() and path.suffix != ".seg"]
    index_bytes = sum(path.stat().st_size for path in beside)
    shutil.rmtree(root)
    return {
        "grow_s": grow_s,
        "open_s": open_s,
        "have_us": have_us,
        "add_us": add_us,
        "index_b_per_block": index_bytes / blocks,
    }


def _tiny(number: int) -> SealedBlock:
    body = number.to_bytes(8, "big") * 5
    return SealedBlock(*seal_named(Kind.DATA, body, block_id(Kind.DATA, body)))
