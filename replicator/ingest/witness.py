"""What proves that an image was not written since it was last taken, so that it need not be read.

Only reading proves what is in a file, except where the kernel vouches for it: every write to
a file of a local file system moves its ctime, which nobody can set. That holds under four
conditions, and all of them are kept here:

- *The file system is one that does so*, and is not shared with another machine.
- *Nothing was touched shortly before* (`still`): times tick more slowly than writes follow.
- *No page was dirty in somebody's memory map when we began to read.* Stores to a mapped page that
  is dirty already move no time. A flush before the first read write-protects the pages, so the
  next store faults, and is seen.
- *The machine has not been restarted since.* After a crash new data may lie beside an old time.

A block device has no such times: it is always read. The sidecar is a hint of one volume, like the
memo of a tree; and like there, whoever believes it asks the store for every block.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack
from blake3 import blake3

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.manifest.nodes import Shape, decode_node
from replicator.core.errors import ManifestDamaged
from replicator.core.files import write_durably
from replicator.core.logging import get_logger
from replicator.ingest.still import Stamp
from replicator.store.ports import BlockStore, Lease

MAGIC: Final = b"\x89RSEEN"
VERSION: Final = 1
_DIGEST_BYTES: Final = 32
_FILE_SYSTEMS: Final = frozenset(("ext2", "ext3", "ext4", "xfs"))
"""Each marks a page of a shared map as written when it is first written after a flush. tmpfs does not, and file
systems over a network or over another one have times that are somebody else's word."""
_NODES: Final = 64
"""Nodes read at once: half a megabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An image as it was when it was last taken."""

    boot_id: str
    stamp: Stamp
    block_bytes: int
    root: BlockId
    entries: int


def load_seen(path: Path | None) -> Seen | None:
    """What was kept at `path`; None if nothing, or nothing that can be believed."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + _DIGEST_BYTES
    body = content[start:]
    if not content.startswith(MAGIC) or blake3(body).digest() != content[len(MAGIC) : start]:
        return None
    version, boot_id, stamp, block_bytes, root, entries = msgpack.unpackb(body)
    if version != VERSION:
        return None
    return Seen(boot_id=boot_id, stamp=Stamp(*stamp), block_bytes=block_bytes, root=BlockId(root), entries=entries)


def save_seen(path: Path, seen: Seen) -> None:
    """Losing it costs a reading only, so a disk that refuses it does not fail the snapshot."""
    body = msgpack.packb([VERSION, seen.boot_id, list(seen.stamp), seen.block_bytes, seen.root, seen.entries])
    try:
        write_durably(path, MAGIC + blake3(body).digest() + body)
    except OSError as error:
        get_logger().warning("seen.not_saved", path=str(path), error=str(error))


def boot_id() -> str:
    """Changes with each start of the machine; empty where the kernel does not say, and then nothing is believed."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def tells_every_write(device: int) -> bool:
    """Whether the file system on `device` (as in `st_dev`) is one whose times can be believed."""
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    # proc(5): mount, parent, major:minor, …, a dash, the type.
    kinds = {line.partition(" - ")[2].split(" ", 1)[0] for line in mounts if line.split(" ", 3)[2] == numbers}
    return bool(kinds) and kinds <= _FILE_SYSTEMS


def holds_all(store: BlockStore, lease: Lease, root: BlockId) -> bool:
    """Whether every block of the map of an image is here, sound as far as we know, and stays under the lease."""
    try:
        return all(store.have(lease, ids).issuperset(ids) for ids in _needed(store, root))
    except ManifestDamaged:
        return False


def _needed(store: BlockStore, root: BlockId) -> Iterator[list[BlockId]]:
    yield [root]
    todo = [root]
    while todo:
        bodies = store.read(todo[-_NODES:])
        del todo[-_NODES:]
        if bodies.faults:
            raise ManifestDamaged("A node is gone.")
        for body in bodies.sound.values():
            node = decode_node(body)
            if node.shape is not Shape.NUMBERS:
                raise ManifestDamaged("Not the map of an image.")
            below = list(dict.fromkeys(BlockId(value[:BLOCK_ID_BYTES]) for value in node.values))
            yield below
            if node.level:
                todo += below
