"""What a tree says of one path.

A path is stored relative to the protected folder, with NUL instead of `/`, so that a folder's
whole content is one run of neighbouring keys. The root folder itself has the empty key.

An entry is a msgpack array in the order of the fields of `Entry`. Times that the file system
keeps for itself (ctime, atime) are left out: they cannot be restored.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from protocol.ids import BLOCK_ID_BYTES, BlockId, split_ids
from replicator.core.errors import ManifestDamaged

SEPARATOR: Final = b"\0"
PIECES_INLINE_MAX: Final = 64
"""Files of more pieces keep them in a map of their own, so that no entry outgrows a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, folder, link, device, pipe or socket."""

    mode: int
    """Type and permission bits, as in `st_mode`."""
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    """Bytes of a regular file, holes included."""
    lengths: tuple[int, ...] = ()
    """Bytes of each piece of a regular file, in order; they add up to `size`."""
    ids: bytes = b""
    """Packed block ids of the pieces. A zero id is a run of zeros."""
    pieces_root: bytes = b""
    """Root of a `PIECES` map, instead of `lengths` and `ids`, for a file of many pieces."""
    target: bytes = b""
    """What a symbolic link says; for a further hard link, the key of the first path of the same file."""
    is_hard_link: bool = False
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    is_sparse: bool = False
    """The file had holes: runs of zeros are restored as holes."""

    def block_ids(self) -> list[BlockId]:
        return split_ids(self.ids)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode) and not self.is_hard_link


def encode_entry(entry: Entry) -> bytes:
    packed: bytes = msgpack.packb(
        [
            entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, list(entry.lengths), entry.ids,
            entry.pieces_root, entry.target, entry.is_hard_link, entry.rdev,
            [part for pair in entry.xattrs for part in pair], entry.is_sparse,
        ],
        use_bin_type=True,
    )  # fmt: skip
    return packed


def encode_file(
    status: os.stat_result,
    *,
    size: int,
    lengths: list[int],
    ids: bytes,
    pieces_root: bytes,
    xattrs: Sequence[tuple[bytes, bytes]],
    is_sparse: bool,
) -> bytes:
    """`encode_entry` of a regular file, without making an `Entry` first: a tree has a million of them."""
    attributes = [part for pair in xattrs for part in pair]
    packed: bytes = msgpack.packb(
        [
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, size, lengths, ids,
            pieces_root, b"", False, 0, attributes, is_sparse,
        ],
        use_bin_type=True,
    )  # fmt: skip
    return packed


def blocks_of(packed: bytes) -> tuple[list[BlockId], bytes]:
    """The pieces and the root of the pieces of an entry *that we packed ourselves*: nothing is checked."""
    parts = msgpack.unpackb(packed, raw=False)
    ids: bytes = parts[6]
    return split_ids(ids), parts[7]


_U32_MAX: Final = 2**32 - 1
_ONLY_INT: Final = {int}
_ONLY_BYTES: Final = {bytes}
_TYPES: Final = (int, int, int, int, int, list, bytes, bytes, bytes, bool, int, list, bool)


def decode_entry(packed: bytes) -> Entry:
    """Raises `ManifestDamaged` for anything that `encode_entry` could not have made."""
    parts = _checked(packed)
    attributes = parts[11]
    return Entry(
        mode=parts[0], uid=parts[1], gid=parts[2], mtime_ns=parts[3], size=parts[4], lengths=tuple(parts[5]),
        ids=parts[6], pieces_root=parts[7], target=parts[8], is_hard_link=parts[9], rdev=parts[10],
        xattrs=tuple(zip(attributes[::2], attributes[1::2], strict=True)), is_sparse=parts[12],
    )  # fmt: skip


def pieces_of(packed: bytes) -> tuple[list[int], bytes, bytes]:
    """The length of each piece of an entry, their packed ids, and the root of its pieces map: checked as by
    `decode_entry`, and no object is made of the rest. A receiver and a plan ask this of every entry."""
    parts = _checked(packed)
    return parts[5], parts[6], parts[7]


def _checked(packed: bytes) -> list[Any]:
    try:
        parts = msgpack.unpackb(packed, raw=False, strict_map_key=True, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ManifestDamaged(f"A tree entry cannot be read: {error}.") from error
    # What a later version appends is not looked at.
    if not isinstance(parts, list) or tuple(map(type, parts[: len(_TYPES)])) != _TYPES:
        raise ManifestDamaged("A tree entry has fields of the wrong type.")
    mode, uid, gid, size, rdev = parts[0], parts[1], parts[2], parts[4], parts[10]
    lengths, ids, root, attributes = parts[5], parts[6], parts[7], parts[11]
    sound = (
        max(mode, uid, gid) <= _U32_MAX
        and min(mode, uid, gid, size, rdev) >= 0
        and (not lengths or (set(map(type, lengths)) == _ONLY_INT and min(lengths) > 0))
        and len(ids) == len(lengths) * BLOCK_ID_BYTES
        and len(root) in (0, BLOCK_ID_BYTES)
        and (not lengths if root else sum(lengths) == (size if stat.S_ISREG(mode) and not parts[9] else 0))
        and (not attributes or (set(map(type, attributes)) == _ONLY_BYTES and len(attributes) % 2 == 0))
    )
    if not sound:
        raise ManifestDamaged("A tree entry contradicts itself.")
    return parts


def path_key(relative: bytes) -> bytes:
    """The key of a path relative to the protected folder; `b""` or `b"."` is that folder itself."""
    return b"" if relative in (b"", b".") else relative.strip(b"/").replace(b"/", SEPARATOR)


def key_path(key: bytes) -> bytes:
    return key.replace(SEPARATOR, b"/")


def check_key(key: bytes) -> None:
    """Refuse a key that would lead outside of the folder it is restored to. Raises `ManifestDamaged`."""
    if not key:
        return
    for name in key.split(SEPARATOR):
        if name in (b"", b".", b"..") or b"/" in name or len(name) > 255:
            raise ManifestDamaged(f"The path {key_path(key)!r} is not one that a snapshot may hold.")
