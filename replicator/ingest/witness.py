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
_LOCAL: Final = _FILE_SYSTEMS | {"btrfs", "tmpfs"}
"""On these a name that comes or goes moves the times of its folder, at once and for everybody."""
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
    return _is_one_of(device, _FILE_SYSTEMS)


def tells_every_name(device: int) -> bool:
    """Whether the times of a folder there tell of every name that comes or goes."""
    return _is_one_of(device, _LOCAL)


def _is_one_of(device: int, wanted: frozenset[str]) -> bool:
    numbers = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    # proc(5): mount, parent, major:minor, …, a dash, the type.
    kinds = {line.partition(" - ")[2].split(" ", 1)[0] for line in mounts if line.split(" ", 3)[2] == numbers}
    return bool(kinds) and kinds <= wanted


def holds_all(store: BlockStore, lease: Lease, root: BlockId) -> bool:
    """Whether every block of the map of an image is here, sound as far as we know, and stays under the lease."""
    return _holds(store, lease, root, Shape.NUMBERS, with_leaves=True)


def holds_nodes(store: BlockStore, lease: Lease, root: BlockId, shape: Shape) -> bool:
    """The same of a map's own nodes, whatever its entries need."""
    return _holds(store, lease, root, shape, with_leaves=False)


def _holds(store: BlockStore, lease: Lease, root: BlockId, shape: Shape, *, with_leaves: bool) -> bool:
    try:
        needed = _needed(store, root, shape, with_leaves=with_leaves)
        return all(store.have(lease, ids).issuperset(ids) for ids in needed)
    except ManifestDamaged:
        return False


def _needed(store: BlockStore, root: BlockId, shape: Shape, *, with_leaves: bool) -> Iterator[list[BlockId]]:
    yield [root]
    todo = [root]
    while todo:
        bodies = store.read(todo[-_NODES:])
        del todo[-_NODES:]
        if bodies.faults:
            raise ManifestDamaged("A node is gone.")
        for body in bodies.sound.values():
            node = decode_node(body)
            if node.shape is not shape:
                raise ManifestDamaged("Not the map that it should be.")
            if not node.level and not with_leaves:
                continue
            below = list(dict.fromkeys(BlockId(value[:BLOCK_ID_BYTES]) for value in node.values))
            yield below
            if node.level > (0 if with_leaves else 1):
                todo += below
