"""Walking a tree in the order of its keys, and describing everything but the content of files.

A key has NUL between its parts, and NUL sorts before every byte of a name. So a folder's
names, sorted as bytes, each followed by all that is below it, are in key order: no sorting
across folders, and memory for one list of names a level.

Everything is opened relative to its folder and without following links: someone who swaps a
folder for a link during the walk gets nothing of what it points to into the snapshot.

Where the memo knows a folder, nothing in it is opened before its times, and those of all in it,
have been compared: that is one look a path, and no object that is kept.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.catalog.manifest.entries import SEPARATOR, Entry, encode_entry, key_path
from replicator.core.errors import SourceError
from replicator.ingest.attributes import Attributes, Complaint, read_attributes
from replicator.ingest.filters import Filters
from replicator.ingest.memo import NEVER, Folder, MemoReader, split_names
from replicator.ingest.sources import Skipped, TreeSource
from replicator.ingest.still import packed_stamp
from replicator.ingest.witness import tells_every_name

KEY_MAX: Final = 4096 * 4
"""The longest path that a manifest node takes."""
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
    remembered: bytes = b""
    """The entry that the memo has for a file that looks like this one."""
    is_remembered: bool = False
    """`packed` is from the memo."""


@dataclass(frozen=True, slots=True)
class Same:
    """A folder in which nothing has come, gone, or changed; what is in the folders below it is told separately."""

    known: Folder


@dataclass(frozen=True, slots=True)
class Gone:
    """Paths that the last snapshot has and this one has not, in key order."""

    keys: list[bytes]


Step = Found | Same | Gone


class _Level:
    """A folder that is being walked."""

    def __init__(self, key: bytes, handle: int | None, known: Folder | None, *, is_base: bool) -> None:
        self.key = key
        self.handle = handle
        """None if nothing has changed in it: then only its folders are left to look at."""
        self.files: dict[bytes, tuple[bytes, bytes]] = {}
        self.was: set[bytes] = set()
        """What the map that is built upon has here, and of that the folders."""
        self.was_folder: set[bytes] = set()
        if handle is None:
            assert known is not None
            self.names = iter(split_names(known.folders))
            return
        self.here = set(map(os.fsencode, os.listdir(handle)))
        if known is not None:
            self.files = known.files_known()
        if known is not None and is_base:
            self.was_folder = set(split_names(known.folders))
            self.was = self.was_folder | self.files.keys()
        self.names = iter(sorted(self.here | self.was))


class Scan:
    """One walk. Blocking; one thread at a time."""

    def __init__(self, source: TreeSource, memo: MemoReader | None = None, *, is_base: bool = False) -> None:
        """`is_base`: say only what differs from the map that the memo describes."""
        self.root = source.path
        self._one_file_system = source.one_file_system
        self._filters = Filters(source.exclude)
        self._memo = memo
        self._is_base = is_base
        self._linked: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._levels: list[_Level] = []
        self._tells: dict[int, bool] = {}
        self.skipped: list[Skipped] = []
        self.incomplete: set[bytes] = set()
        """Folders of which something could not be read."""
        try:
            # The root itself may be a link: that is the user's word, not something found on the way.
            self.handle = os.open(self.root, _FOLDER & ~os.O_NOFOLLOW)
        except OSError as error:
            raise self._unreadable(error) from error
        self.device = os.fstat(self.handle).st_dev

    def _unreadable(self, error: OSError) -> SourceError:
        return SourceError(
            f"{self.root} cannot be read as a folder: {error.strerror}.",
            hint="Check the path, and that this user may read it.",
        )

    def close(self) -> None:
        for level in self._levels:
            if level.handle is not None:
                os.close(level.handle)
        self._levels = []
        os.close(self.handle)

    def walk(self) -> Iterator[Step]:
        """Every path, in key order; of what is as the memo has it, only that it is."""
        try:
            yield from self._enter(b"", None, b"")
        except OSError as error:
            raise self._unreadable(error) from error
        while self._levels:
            level = self._levels[-1]
            name = next(level.names, None)
            if name is None:
                if (handle := self._levels.pop().handle) is not None:
                    os.close(handle)
                continue
            key = level.key + SEPARATOR + name if level.key else name
            found: list[Step] = []
            try:
                if level.handle is None:
                    found = self._enter(key, level, name)
                elif name in level.here:
                    found = self._look(level, name, key)
            except OSError as error:
                self.skip(key, error)
            yield from found
            if self._is_base and (level.handle is None or name in level.was):
                was_folder = level.handle is None or name in level.was_folder
                # Of a folder that is now something else, or cannot be entered, only what was in it has gone.
                if (not found or (was_folder and self._levels[-1] is level)) and (gone := self._gone(key, found)):
                    yield Gone(gone)

    def _gone(self, key: bytes, found: list[Step]) -> list[bytes]:
        assert self._memo is not None
        keys = {below for known in self._memo.take_below(key) for below in known.all_keys()} | {key}
        return sorted(keys - {key} if found else keys)

    def skip(self, key: bytes, error: OSError) -> None:
        self._skipped(key, reason(error, self.root))

    def _skipped(self, key: bytes, why: str) -> None:
        self.skipped.append(Skipped(key_path(key), why))
        self.incomplete |= {key, key.rpartition(SEPARATOR)[0]}

    def _look(self, level: _Level, name: bytes, key: bytes) -> list[Step]:
        assert level.handle is not None
        status = os.stat(name, dir_fd=level.handle, follow_symlinks=False)
        mode = status.st_mode
        if self._filters.has_rules and self._filters.leaves_out(key_path(key), is_directory=stat.S_ISDIR(mode)):
            return []
        if len(key) > KEY_MAX:
            raise OSError(errno.ENAMETOOLONG, "path is too long")
        if stat.S_ISDIR(mode):
            return self._enter(key, level, name)
        if status.st_nlink > 1:
            first_key = self._first_link(key, status)
            if first_key is not None:
                return [
                    Found(key, status, encode_entry(_entry(status, (), target=first_key, is_hard_link=True)), first_key)
                ]
        if stat.S_ISREG(mode):
            stamp, packed = level.files.get(name, (NEVER, b""))
            return [Found(key, status, remembered=packed if packed and stamp == packed_stamp(status) else b"")]
        target = os.readlink(name, dir_fd=level.handle) if stat.S_ISLNK(mode) else b""
        attributes = self.attributes(key, b"/proc/self/fd/%d/%s" % (level.handle, name))
        rdev = status.st_rdev if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else 0
        return [Found(key, status, encode_entry(_entry(status, attributes, target=target, rdev=rdev)))]

    def _enter(self, key: bytes, level: _Level | None, name: bytes) -> list[Step]:
        known = self._memo.find(key) if self._memo is not None else None
        if known is not None and self._is_base and self._is_same(known):
            self._levels.append(_Level(key, None, known, is_base=True))
            return [Same(known)]
        try:
            handle = self._open(key, level, name)
        except PermissionError as error:
            # It is there, and what it looks like is known: only its content is missing.
            self.skip(key, error)
            return [self._closed_folder(key, name)]
        try:
            found = self._folder(key, handle)
            if self._one_file_system and found.status.st_dev != self.device:
                os.close(handle)
            else:
                self._levels.append(_Level(key, handle, known, is_base=self._is_base))
        except OSError:
            os.close(handle)
            raise
        return [found]

    def _closed_folder(self, key: bytes, name: bytes) -> Found:
        above = self._open_below_root(key.split(SEPARATOR)[:-1])
        try:
            status = os.stat(name, dir_fd=above, follow_symlinks=False)
        finally:
            os.close(above)
        return Found(key, status, encode_entry(_entry(status, ())))

    def _open(self, key: bytes, level: _Level | None, name: bytes) -> int:
        if level is None:
            return os.dup(self.handle)
        if level.handle is not None:
            return os.open(name, _FOLDER, dir_fd=level.handle)
        return self._open_below_root(key.split(SEPARATOR))

    def _open_below_root(self, parts: list[bytes]) -> int:
        handle = os.dup(self.handle)
        for part in parts:
            above = handle
            try:
                handle = os.open(part, _FOLDER, dir_fd=above)
            finally:
                os.close(above)
        return handle

    def _is_same(self, known: Folder) -> bool:
        """Whether a folder, and all in it that is not a folder, still looks as it did.

        By path: a link that somebody puts in the way leads to other inodes, or to the same files.
        """
        if known.stamp == NEVER:
            return False
        path = key_path(known.key)
        look, pack, handle = os.stat, packed_stamp, self.handle
        try:
            status = look(path or b".", dir_fd=handle, follow_symlinks=False)
            if pack(status) != known.stamp or not self._tells_names(status.st_dev):
                return False
            above = path + b"/" if path else b""
            stamps = [
                pack(look(above + name, dir_fd=handle, follow_symlinks=False)) for name in split_names(known.names)
            ]
        except OSError:
            return False
        return b"".join(stamps) == known.stamps

    def _tells_names(self, device: int) -> bool:
        """Whether the times of a folder on a device tell of every name that comes or goes."""
        if device not in self._tells:
            self._tells[device] = tells_every_name(device)
        return self._tells[device]

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

    def attributes(self, key: bytes, where: int | bytes) -> Attributes:
        """The extended attributes of an open file or of a path."""
        attributes, complaints = read_attributes(where)
        self.complain(key, complaints)
        return attributes

    def complain(self, key: bytes, complaints: Sequence[Complaint]) -> None:
        """What could not be read of the attributes of a path."""
        for complaint in complaints:
            if isinstance(complaint, OSError):
                self.skip(key, complaint)
            else:
                self._skipped(key, complaint)


def _entry(
    status: os.stat_result,
    attributes: Attributes,
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
