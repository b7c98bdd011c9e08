"""What we knew of a tree the last time, so that what did not change is neither opened nor described again.

A sidecar of one volume, and only ever a hint: if it is absent, damaged, of another version, or
made with other piece sizes or filters, everything is read. It never vouches for the store: whoever
uses it asks whether the blocks are still there.

It has one record a folder, in the order of a walk: how the folder and all in it looked, what the
entries of its files were, and which blocks they need. So a folder in which nothing has
changed is one comparison of bytes, and costs no object a file.

A path is believed only if nothing touched it in the last moments before the scan began
(`still`): a write right after we looked may have left no trace in its times. In a record it
then has a stamp that nothing can have.

The file is a header, a BLAKE3 of the rest, the root that the tree had, and the records, each a
msgpack array in a bin. A scan goes in the same order, so no table is built.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgpack
from blake3 import blake3

from protocol.ids import BlockId
from replicator.catalog.manifest.entries import SEPARATOR
from replicator.core.files import write_durably
from replicator.core.logging import get_logger
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import TreeSource
from replicator.ingest.still import PACKED_STAMP_BYTES

MAGIC: Final = b"\x89RMEMO"
VERSION: Final = 2
_DIGEST_BYTES: Final = 32
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
    """Last time's memo. Ask for folders in the order of a walk."""

    def __init__(self, path: Path | None, config: IngestConfig, source: TreeSource) -> None:
        self._records = _records(path, config, source)
        self.root: BlockId | None = None
        """The map that the records describe, if it may be built upon."""
        first = next(self._records, None)
        if first is not None:
            root, may_be_base = msgpack.unpackb(first)
            self.root = BlockId(root) if may_be_base else None
        self._next = self._read()
        self._is_used = False
        self.has_skipped = False
        """A folder that is in the memo has not been asked for: nobody has seen what became of it."""

    def _read(self) -> Folder | None:
        raw = next(self._records, None)
        return None if raw is None else Folder._make([*msgpack.unpackb(raw, raw=False), raw])

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


def _records(path: Path | None, config: IngestConfig, source: TreeSource) -> Iterator[bytes]:
    if path is None:
        return
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        get_logger().warning("memo.unreadable", path=str(path), error=str(error), then="reading every file")
        return
    header = _header(config, source)
    start = len(header) + _DIGEST_BYTES
    body = memoryview(content)[start:]
    if content[: len(header)] != header or blake3(body).digest() != content[len(header) : start]:
        get_logger().warning("memo.ignored", path=str(path), then="reading every file")
        return
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=max(len(body), 1))
    unpacker.feed(body)
    yield from unpacker


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
    """This time's memo. Give it everything that the new map holds, in key order."""

    def __init__(self, config: IngestConfig, source: TreeSource, *, incomplete: set[bytes]) -> None:
        self._header = _header(config, source)
        self._incomplete = incomplete
        """Folders of which something could not be read: to be tried, and told of, again each time."""
        self._records: list[bytes] = []
        self._open: list[_Open] = []
        self.may_be_base = True

    def keep(self, known: Folder) -> None:
        """A folder is as it was, with all in it that is not a folder."""
        if (above := self._above(known.key)) is not None:
            above.folders.append(_name(known.key))
        self._records.append(known.raw)

    def add_folder(self, key: bytes, stamp: bytes) -> None:
        if (above := self._above(key)) is not None:
            above.folders.append(_name(key))
        self._open.append(_Open(len(self._records), key, stamp))
        self._records.append(b"")

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
        self._records[one.place] = msgpack.packb(
            [
                one.key, stamp, SEPARATOR.join(one.names), b"".join(one.stamps), msgpack.packb(one.entries),
                SEPARATOR.join(one.folders), b"".join(one.ids), b"".join(one.roots), one.files, one.size_bytes,
            ]
        )  # fmt: skip

    def save(self, path: Path, root: BlockId) -> None:
        """Losing a memo costs time only, so a disk that refuses it does not fail the snapshot."""
        while self._open:
            self._close(self._open.pop())
        pack = msgpack.Packer().pack
        body = b"".join([pack(pack([root, self.may_be_base])), *map(pack, self._records)])
        digest = blake3(body).digest()
        try:
            write_durably(path, b"".join((self._header, digest, body)))
        except OSError as error:
            get_logger().warning("memo.not_saved", path=str(path), error=str(error))


def _name(key: bytes) -> bytes:
    return key.rpartition(SEPARATOR)[2]


def _is_at_or_below(key: bytes, folder: bytes) -> bool:
    return not folder or key == folder or (key.startswith(folder) and key[len(folder) : len(folder) + 1] == SEPARATOR)


__all__ = ["NEVER", "Folder", "MemoReader", "MemoWriter", "split_names"]
