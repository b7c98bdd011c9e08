"""The blocks that snapshots need, as sorted runs of ids: found once, kept on the disk, read where they lie.

What a snapshot needs never changes, so the answer is filed under the root of its manifest: the
first comparison of a snapshot walks its manifest, the next ones map a file. What is *missing* of
it does change; that is subtracted each time, and is nothing at a healthy site.

A shelf is a cache. Each file ends with its own checksum, is written whole or not at all, and one
that is lost, damaged or crowded out is made again by a walk.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from blake3 import blake3

from protocol.ids import BLOCK_ID_BYTES, BlockId
from protocol.merkle.cells import U8
from replicator.core.files import write_durably
from replicator.index.tokens import Packed, heads

_SEAL_BYTES: Final = 32
_READ_BYTES: Final = 4 * 1024**2
SHELF_BYTES_MAX: Final = 2 * 1024**3
"""Sixty million ids. The files that were used longest ago go first."""


class IdSets(Protocol):
    """Where the sets are kept between two comparisons."""

    def get(self, root: BlockId) -> Packed | None:
        """The ids under `root`, or None if they are not here."""
        ...

    def put(self, root: BlockId, ids: bytes) -> None:
        """File sorted ids."""
        ...


class Shelf:
    """A folder of sorted id sets."""

    def __init__(self, folder: Path, *, bytes_max: int = SHELF_BYTES_MAX) -> None:
        self._folder = folder
        self._bytes_max = bytes_max

    def get(self, root: BlockId) -> memoryview | None:
        """The ids under `root`, or None if they are not here, or not sound any more."""
        path = self._path(root)
        try:
            with path.open("rb") as file:
                # Read first: a bad sector is an error here, and under the map it would kill the process.
                while file.read(_READ_BYTES):
                    pass
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (FileNotFoundError, ValueError):  # mmap refuses an empty file.
            return None
        except OSError:
            self.forget(root)
            return None
        ids = view[:-_SEAL_BYTES]
        if len(view) % BLOCK_ID_BYTES or view[len(ids) :] != _seal(root, ids):
            self.forget(root)
            return None
        os.utime(path)
        return ids

    def put(self, root: BlockId, ids: bytes) -> None:
        """File sorted ids. A set that is larger than the shelf is not kept."""
        if len(ids) > self._bytes_max:
            return
        self._folder.mkdir(exist_ok=True)
        write_durably(self._path(root), ids + _seal(root, ids))
        self._make_room()

    def forget(self, root: BlockId) -> None:
        self._path(root).unlink(missing_ok=True)

    def _path(self, root: BlockId) -> Path:
        return self._folder / f"{root.hex()}.ids"

    def _make_room(self) -> None:
        files = sorted(self._folder.glob("*.ids"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > self._bytes_max:
                path.unlink()


def _seal(root: BlockId, ids: Packed) -> bytes:
    return blake3(ids, key=root, max_threads=2).digest()


def sorted_set(runs: Iterable[bytes]) -> bytes:
    """The distinct ids of packed runs, ascending."""
    return _distinct(np.frombuffer(b"".join(runs), np.uint8).reshape(-1, BLOCK_ID_BYTES))


def _distinct(ids: U8) -> bytes:
    at = heads(ids.reshape(-1).data)
    order = np.argsort(at, kind="stable")
    ids, at = ids[order], at[order]
    tied = np.flatnonzero(at[1:] == at[:-1])
    if len(tied):
        # Nearly always the same id twice. Two ids with one head are a grinder's work, and go by their tails.
        crowd = np.unique(np.concatenate([tied, tied + 1]))
        rows = sorted(ids[crowd].tobytes()[n * 32 : n * 32 + 32] for n in range(len(crowd)))
        ids[crowd] = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, BLOCK_ID_BYTES)
    keep = np.ones(len(ids), np.bool_)
    keep[1:][tied] = (ids[tied + 1] != ids[tied]).any(axis=1)
    return ids[keep].tobytes()


def common(ids: Packed, held: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Those of the sorted `ids` that come in `held`, sorted runs of everything that is here; and those that do not."""
    table = np.frombuffer(ids, np.uint8).reshape(-1, BLOCK_ID_BYTES)
    at, is_here = heads(ids), np.zeros(len(table), np.bool_)
    for run in held:
        others, rows = heads(run), np.frombuffer(run, np.uint8).reshape(-1, BLOCK_ID_BYTES)
        first, last = np.searchsorted(at, others[0]), np.searchsorted(at, others[-1], side="right")
        match = np.searchsorted(others, at[first:last])
        while True:  # As often as the most ids of one head: once.
            near = np.minimum(match, len(others) - 1)
            is_here[first:last] |= (rows[near] == table[first:last]).all(axis=1)
            follows = np.minimum(near + 1, len(others) - 1)
            if not ((others[follows] == at[first:last]) & (follows > near) & ~is_here[first:last]).any():
                break
            match = near + 1
    return table[is_here].tobytes(), table[~is_here].tobytes()
