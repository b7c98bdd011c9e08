"""What we knew of a tree the last time, so that what did not change is neither opened nor described again.

A sidecar of one volume, and only ever a hint: if it is absent, damaged, of another version, or
made with other piece sizes or filters, everything is read. It never vouches for the store: whoever
uses it asks whether the blocks are still there.

It has one record a folder: how the folder and all in it looked, what the
entries of its files were, and which blocks they need. So a folder in which nothing has
changed is one comparison of bytes, and costs no object a file.

A path is believed only if nothing touched it in the last moments before the scan began
(`still`): a write right after we looked may have left no trace in its times. In a record it
then has a stamp that nothing can have.

The file is a header, a BLAKE3 of the rest, the records as their folders were left, and where each of them is, in
the order in which a walk enters them. So it is written and read a record at a time, and a tree of a
million files takes no more memory than one of a thousand.
"""

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgpack
from blake3 import blake3

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.manifest.entries import SEPARATOR
from replicator.core.files import put_in_place
from replicator.core.logging import get_logger
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import TreeSource
from replicator.ingest.still import PACKED_STAMP_BYTES

MAGIC: Final = b"\x89RMEMO"
VERSION: Final = 3
_DIGEST_BYTES: Final = 32
_WHERE: Final = struct.Struct("<QI")
"""Of one record: its offset in the file, and its length."""
_TAIL: Final = struct.Struct(f"<{BLOCK_ID_BYTES}sBQ")
"""The root that the tree had, whether the records describe all of it, and how many there are."""
_PIECE_BYTES: Final = 1 << 20
"""Written, and read for the digest, at once."""
NEVER: Final = bytes(PACKED_STAMP_BYTES)
"""The stamp of what is to be looked at again: no inode has the number zero."""


class Folder(NamedTuple):
    """One folder, as it was."""

    key: bytes
    stamp: bytes
    """Of the folder itself; `NEVER` if it has to be read again whatever it looks like."""
    names: bytes
    """Everything in it that is not a folder, in order, with NUL between."""
    stamps: bytes
    """Of these, one after the other."""
    entries: bytes
    """Their packed entries as a msgpack array; empty for what is no regular file."""
    folders: bytes
    """The names of the folders in it, in order, with NUL between."""
    ids: bytes
    """The blocks that its files need, joined."""
    roots: bytes
    """Of the maps of large files in it, joined."""
    files: int
    size_bytes: int
    raw: bytes
    """The record as it lies in the file."""

    @property
    def paths(self) -> int:
        """How many entries of a tree this record stands for."""
        return 1 + (self.names.count(SEPARATOR) + 1 if self.names else 0)

    def all_keys(self) -> list[bytes]:
        """Of the folder and of all in it that is not one."""
        above = self.key + SEPARATOR if self.key else b""
        return [self.key, *(above + name for name in split_names(self.names))]

    def files_known(self) -> dict[bytes, tuple[bytes, bytes]]:
        """By name: the stamp, and the packed entry (empty if it is no regular file)."""
        stamps = [self.stamps[a:b] for a, b in pairwise(range(0, len(self.stamps) + 1, PACKED_STAMP_BYTES))]
        packed: list[bytes] = msgpack.unpackb(self.entries, raw=False)
        return dict(zip(split_names(self.names), zip(stamps, packed, strict=True), strict=True))


def split_names(joined: bytes) -> list[bytes]:
    return joined.split(SEPARATOR) if joined else []


class MemoReader:
    """Last time's memo. Ask for folders in the order of a walk, and close it."""

    def __init__(self, path: Path | None, config: IngestConfig, source: TreeSource) -> None:
        self._path = path
        self._handle: int | None = None
        self._where: Iterator[tuple[int, int]] = iter(())
        self.root: BlockId | None = None
        """The map that the records describe, if it may be built upon."""
        if path is not None and (found := _open_checked(path, _header(config, source))) is not None:
            self._handle, index, (root, may_be_base, _) = found
            self._where = _WHERE.iter_unpack(index)
            self.root = BlockId(root) if may_be_base else None
        self.has_skipped = False
        """A folder that is in the memo has not been asked for: nobody has seen what became of it."""
        self._next = self._read()
        self._is_used = False

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _read(self) -> Folder | None:
        where = next(self._where, None)
        if where is None or self._handle is None:
            return None
        try:
            raw = _read_exactly(self._handle, where[1], where[0])
        except OSError as error:
            get_logger().warning("memo.unreadable", path=str(self._path), error=str(error), then="reading every file")
            self._where, self.has_skipped = iter(()), True
            return None
        return Folder._make([*msgpack.unpackb(raw, raw=False), raw])

    def find(self, key: bytes) -> Folder | None:
        """The record of a folder, if there is one."""
        while self._next is not None and self._next.key < key:
            self._step()
        if self._next is None or self._next.key != key:
            return None
        self._is_used = True
        return self._next

    def take_below(self, key: bytes) -> Iterator[Folder]:
        """Step over a folder, and all that is below it, and say what was there."""
        above = key + SEPARATOR if key else b""
        self.find(key)
        while self._next is not None and (self._next.key == key or self._next.key.startswith(above)):
            yield self._next
            self._is_used = True
            self._step()

    def end(self) -> None:
        """The walk is over."""
        while self._next is not None:
            self._step()

    def _step(self) -> None:
        self.has_skipped |= not self._is_used
        self._next, self._is_used = self._read(), False


def _open_checked(path: Path, header: bytes) -> tuple[int, bytes, tuple[bytes, bool, int]] | None:
    """The file, its index and its tail, if it is one of ours and as it was written.

    (Not mapped into memory: there a bad sector, or somebody who cuts the file, would kill the process.)
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        get_logger().warning("memo.unreadable", path=str(path), error=str(error), then="reading every file")
        return None
    try:
        size, start = os.fstat(handle).st_size, len(header) + _DIGEST_BYTES
        tail = _TAIL.unpack(_read_exactly(handle, _TAIL.size, max(start, size - _TAIL.size)))
        index_bytes = tail[2] * _WHERE.size
        digest = blake3()
        for at in range(start, size, _PIECE_BYTES):
            digest.update(_read_exactly(handle, min(_PIECE_BYTES, size - at), at))
        if _read_exactly(handle, start, 0) == header + digest.digest():
            return handle, _read_exactly(handle, index_bytes, size - _TAIL.size - index_bytes), tail
        get_logger().warning("memo.ignored", path=str(path), then="reading every file")
    except OSError as error:
        get_logger().warning("memo.unreadable", path=str(path), error=str(error), then="reading every file")
    os.close(handle)
    return None


def _read_exactly(handle: int, size: int, at: int) -> bytes:
    """Raises `OSError`, also where the file ends before that."""
    data = os.pread(handle, size, at) if at >= 0 else b""
    if len(data) != size:
        raise OSError(errno.EIO, "it ends too early")
    return data


def _header(config: IngestConfig, source: TreeSource) -> bytes:
    sizes = (config.piece_bytes_min, config.piece_bytes_beyond_min, config.piece_bytes_max)
    packed: bytes = msgpack.packb([VERSION, *sizes, list(source.exclude), source.one_file_system])
    return MAGIC + packed


@dataclass(slots=True)
class _Open:
    """A folder whose names are still coming in."""

    place: int
    key: bytes
    stamp: bytes
    names: list[bytes] = field(default_factory=list)
    stamps: list[bytes] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    roots: list[bytes] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0


class MemoWriter:
    """This time's memo. Give it everything that the new map holds, in key order; `flush` it now and then.

    Losing a memo costs time only, so a disk that refuses it does not fail the snapshot.
    """

    def __init__(self, path: Path | None, config: IngestConfig, source: TreeSource, *, incomplete: set[bytes]) -> None:
        self._path = path
        self._header = _header(config, source)
        self._incomplete = incomplete
        """Folders of which something could not be read: to be tried, and told of, again each time."""
        self._where: list[tuple[int, int]] = []
        self._open: list[_Open] = []
        self.may_be_base = True
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._at = len(self._header) + _DIGEST_BYTES
        self._digest = blake3()
        self._handle: int | None = None
        self._has_failed = path is None

    @property
    def is_full(self) -> bool:
        """Whether there is something to `flush`."""
        return self._waiting_bytes >= _PIECE_BYTES

    def keep(self, known: Folder) -> None:
        """A folder is as it was, with all in it that is not a folder."""
        if (above := self._above(known.key)) is not None:
            above.folders.append(_name(known.key))
        self._where.append(self._put(known.raw))

    def add_folder(self, key: bytes, stamp: bytes) -> None:
        if (above := self._above(key)) is not None:
            above.folders.append(_name(key))
        self._open.append(_Open(len(self._where), key, stamp))
        self._where.append((0, 0))

    def add(self, key: bytes, stamp: bytes, *, again: bool = False) -> None:
        """Anything that is neither folder nor file. `again`: the folder is to be read again next time, for this."""
        self._add(key, stamp, b"", again=again)

    def add_file(
        self, key: bytes, stamp: bytes, packed: bytes, *, ids: Sequence[bytes], root: bytes, size: int, again: bool
    ) -> None:
        here = self._add(key, stamp, packed, again=again)
        here.ids += ids
        if root:
            here.roots.append(root)
        here.files += 1
        here.size_bytes += size

    def note_missing(self, key: bytes) -> None:
        """A path that is there and could not be read: its folder is not as it should be."""
        self._incomplete.add(key.rpartition(SEPARATOR)[0])

    def _add(self, key: bytes, stamp: bytes, packed: bytes, *, again: bool) -> _Open:
        here = self._above(key)
        assert here is not None, "a path comes after its folder"
        here.names.append(_name(key))
        here.stamps.append(stamp)
        here.entries.append(packed)
        if again or stamp == NEVER:
            here.stamp = NEVER
        return here

    def _above(self, key: bytes) -> _Open | None:
        """The folder that a key is in, if it is an open one. Those that a walk has left are closed."""
        parent = key.rpartition(SEPARATOR)[0]
        while self._open and not _is_at_or_below(parent, self._open[-1].key):
            self._close(self._open.pop())
        return self._open[-1] if self._open and key and self._open[-1].key == parent else None

    def _close(self, one: _Open) -> None:
        stamp = NEVER if one.key in self._incomplete else one.stamp
        packed = msgpack.packb(
            [
                one.key, stamp, SEPARATOR.join(one.names), b"".join(one.stamps), msgpack.packb(one.entries),
                SEPARATOR.join(one.folders), b"".join(one.ids), b"".join(one.roots), one.files, one.size_bytes,
            ]
        )  # fmt: skip
        self._where[one.place] = self._put(packed)

    def _put(self, content: bytes) -> tuple[int, int]:
        at = self._at
        self._at += len(content)
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        return at, len(content)

    def flush(self) -> None:
        """Write what is waiting. Blocking."""
        waiting, self._waiting, self._waiting_bytes = b"".join(self._waiting), [], 0
        if self._has_failed or self._path is None:
            return
        self._digest.update(waiting)
        try:
            if self._handle is None:
                self._handle = os.open(self._beside(self._path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.lseek(self._handle, len(self._header) + _DIGEST_BYTES, os.SEEK_SET)
            view = memoryview(waiting)
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            self._fail(error)

    def save(self, root: BlockId) -> None:
        """All is in it: let it take the place of the last one. Blocking."""
        while self._open:
            self._close(self._open.pop())
        self._put(b"".join([_WHERE.pack(*one) for one in self._where]))
        self._put(_TAIL.pack(root, self.may_be_base, len(self._where)))
        self.flush()
        if self._handle is None or self._path is None:
            return
        try:
            os.pwrite(self._handle, self._header + self._digest.digest(), 0)
            handle, self._handle = self._handle, None
            put_in_place(handle, self._beside(self._path), self._path)
        except OSError as error:
            self._fail(error)

    def discard(self) -> None:
        """Leave nothing behind of a memo that was not saved."""
        if self._handle is not None and self._path is not None:
            os.close(self._handle)
            self._handle = None
            with suppress(OSError):
                self._beside(self._path).unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self._has_failed = True
        self.discard()
        get_logger().warning("memo.not_saved", path=str(self._path), error=str(error))

    def _beside(self, path: Path) -> Path:
        return path.with_name(path.name + ".new")


def _name(key: bytes) -> bytes:
    return key.rpartition(SEPARATOR)[2]


def _is_at_or_below(key: bytes, folder: bytes) -> bool:
    return not folder or key == folder or (key.startswith(folder) and key[len(folder) : len(folder) + 1] == SEPARATOR)


__all__ = ["NEVER", "Folder", "MemoReader", "MemoWriter", "split_names"]
