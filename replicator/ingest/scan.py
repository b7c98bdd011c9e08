"""Walking a tree in the order of its keys, and describing everything but the content of files.

A key has NUL between its parts, and NUL sorts before every byte of a name. So a folder's
names, sorted as bytes, each followed by all that is below it, are in key order: no sorting
across folders, and memory for one list of names a level.

Everything is opened relative to its folder and without following links: someone who swaps a
folder for a link during the walk gets nothing of what it points to into the snapshot.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from protocol.limits import ENTRY_MAX
from replicator.catalog.manifest.entries import SEPARATOR, Entry, encode_entry, key_path
from replicator.core.errors import SourceError
from replicator.ingest.filters import Filters
from replicator.ingest.sources import Skipped, TreeSource

KEY_MAX: Final = 4096 * 4
"""The longest path that a manifest node takes."""
_ATTRIBUTES_MAX: Final = ENTRY_MAX - 8 * 1024
"""What an entry has room for, beside its fixed fields, its pieces and a link's target."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


@dataclass(slots=True)
class Found:
    """One path: either with its entry, or a regular file that has still to be read."""

    key: bytes
    status: os.stat_result
    packed: bytes = b""
    """The entry, if it is complete."""
    first_key: bytes | None = None
    """For a further hard link: the first path of the same file."""
    is_remembered: bool = False
    """`packed` is from the memo."""


class _Level:
    """A folder that is being walked."""

    def __init__(self, handle: int, key: bytes) -> None:
        self.handle = handle
        self.key = key
        self.names = iter(sorted(map(os.fsencode, os.listdir(handle))))


class Scan:
    """One walk. Blocking; one thread at a time."""

    def __init__(self, source: TreeSource) -> None:
        self.root = source.path
        self._one_file_system = source.one_file_system
        self._filters = Filters(source.exclude)
        self._linked: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._levels: list[_Level] = []
        self.skipped: list[Skipped] = []
        try:
            # The root itself may be a link: that is the user's word, not something found on the way.
            self.handle = os.open(self.root, _FOLDER & ~os.O_NOFOLLOW)
            self._levels.append(_Level(os.dup(self.handle), b""))
        except OSError as error:
            raise SourceError(
                f"{self.root} cannot be read as a folder: {error.strerror}.",
                hint="Check the path, and that this user may read it.",
            ) from error
        self.device = os.fstat(self.handle).st_dev

    def close(self) -> None:
        for level in self._levels:
            os.close(level.handle)
        self._levels = []
        os.close(self.handle)

    def walk(self) -> Iterator[Found]:
        """Every path, in key order."""
        yield self._folder(b"", self.handle)
        while self._levels:
            level = self._levels[-1]
            name = next(level.names, None)
            if name is None:
                os.close(self._levels.pop().handle)
                continue
            key = level.key + SEPARATOR + name if level.key else name
            try:
                found = self._look(level, name, key)
            except OSError as error:
                self.skip(key, error)
                continue
            if found is not None:
                yield found

    def skip(self, key: bytes, error: OSError) -> None:
        self.skipped.append(Skipped(key_path(key), reason(error, self.root)))

    def _look(self, level: _Level, name: bytes, key: bytes) -> Found | None:
        status = os.stat(name, dir_fd=level.handle, follow_symlinks=False)
        mode = status.st_mode
        if self._filters.leaves_out(key_path(key), is_directory=stat.S_ISDIR(mode)):
            return None
        if len(key) > KEY_MAX:
            raise OSError(errno.ENAMETOOLONG, "path is too long")
        if stat.S_ISDIR(mode):
            return self._enter(level, name, key)
        if status.st_nlink > 1:
            first_key = self._first_link(key, status)
            if first_key is not None:
                return Found(
                    key, status, encode_entry(_entry(status, (), target=first_key, is_hard_link=True)), first_key
                )
        if stat.S_ISREG(mode):
            return Found(key, status)
        target = os.readlink(name, dir_fd=level.handle) if stat.S_ISLNK(mode) else b""
        attributes = self.attributes(key, b"/proc/self/fd/%d/%s" % (level.handle, name))
        rdev = status.st_rdev if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else 0
        return Found(key, status, encode_entry(_entry(status, attributes, target=target, rdev=rdev)))

    def _enter(self, level: _Level, name: bytes, key: bytes) -> Found:
        try:
            handle = os.open(name, _FOLDER, dir_fd=level.handle)
        except PermissionError as error:
            # It is there, and what it looks like is known: only its content is missing.
            self.skip(key, error)
            status = os.stat(name, dir_fd=level.handle, follow_symlinks=False)
            return Found(key, status, encode_entry(_entry(status, ())))
        try:
            found = self._folder(key, handle)
            if self._one_file_system and found.status.st_dev != self.device:
                os.close(handle)
            else:
                self._levels.append(_Level(handle, key))
        except OSError:
            os.close(handle)
            raise
        return found

    def _folder(self, key: bytes, handle: int) -> Found:
        status = os.fstat(handle)
        return Found(key, status, encode_entry(_entry(status, self.attributes(key, handle))))

    def _first_link(self, key: bytes, status: os.stat_result) -> bytes | None:
        """The first path of this file, or None if this is it. A file whose links have all been met is forgotten."""
        inode = (status.st_dev, status.st_ino)
        first_key, left = self._linked.get(inode, (key, status.st_nlink))
        if left > 1:
            self._linked[inode] = (first_key, left - 1)
        else:
            self._linked.pop(inode, None)
        return None if first_key == key else first_key

    def attributes(self, key: bytes, where: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of an open file or of a path, as far as the system shows them to us."""
        follow = isinstance(where, int)
        try:
            names = os.listxattr(where, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
                self.skip(key, error)
            return ()
        if not names:
            return ()
        pairs: list[tuple[bytes, bytes]] = []
        for name in sorted(map(os.fsencode, names)):
            try:
                pairs.append((name, os.getxattr(where, name, follow_symlinks=follow)))
            except OSError as error:
                if error.errno != errno.ENODATA:
                    self.skipped.append(Skipped(key_path(key), f"attribute {os.fsdecode(name)}: {error.strerror}"))
        if sum(len(name) + len(value) + 8 for name, value in pairs) > _ATTRIBUTES_MAX:
            self.skipped.append(Skipped(key_path(key), "its extended attributes are larger than an entry may be"))
            return ()
        return tuple(pairs)


def _entry(
    status: os.stat_result,
    attributes: tuple[tuple[bytes, bytes], ...],
    *,
    target: bytes = b"",
    is_hard_link: bool = False,
    rdev: int = 0,
) -> Entry:
    return Entry(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        target=target,
        is_hard_link=is_hard_link,
        rdev=rdev,
        xattrs=attributes,
    )


_WORDS: Final = {
    errno.ENOENT: "vanished during the scan",
    errno.ENOTDIR: "vanished during the scan",
    errno.ESTALE: "vanished during the scan",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "was replaced by a link during the scan",
    errno.EIO: "the disk cannot read it (input/output error)",
}


def reason(error: OSError, root: object) -> str:
    """Why one path is skipped. Raises `SourceError` for what is wrong with this process, not with the path."""
    if error.errno in _OURS:
        raise SourceError(
            f"Scanning {root} stopped: {error.strerror}.", hint="Raise the limit of open files (`ulimit -n`)."
        ) from error
    return _WORDS.get(error.errno or 0, error.strerror or str(error))
