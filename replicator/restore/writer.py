"""Writing a tree, path by path in key order, so that a folder is whole before the next begins.

Everything but a folder is made under a temporary name, gets its content, owner, mode and
times, and is then renamed: whoever looks sees a whole file or none, and a restore that was
killed can be run again. The temporary name is made from the final one, so what was left
behind is found and replaced.

Invariant: every name is used relative to a descriptor of a folder that this writer opened
below the target without following a link.
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.limits import MIB
from protocol.wire.envelope import Buffer
from replicator.catalog.manifest.entries import Entry, key_path
from replicator.core.direct import write_all
from replicator.core.errors import TargetFull
from replicator.restore.attributes import apply_named, apply_open
from replicator.restore.folders import open_folder, open_or_make, split

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_ZEROS: Final = bytes(1 * MIB)


@dataclass(frozen=True, slots=True)
class Failed:
    """A path that is not as the snapshot says, and why."""

    path: bytes
    reason: str


@dataclass(slots=True)
class Step:
    """One path, or the next part of a large file."""

    key: bytes
    entry: Entry
    pieces: list[tuple[int, BlockId]] = field(default_factory=list)
    is_first: bool = True
    is_last: bool = True
    failed: str = ""
    """Why the planner already knows that it cannot be restored."""


@dataclass(slots=True)
class _Folder:
    key: bytes
    handle: int
    entry: Entry | None


@dataclass(slots=True)
class _File:
    key: bytes
    handle: int
    temporary: bytes
    at: int = 0


class TreeWriter:
    """Writes below an open target folder. Blocking; one thread at a time."""

    def __init__(self, root_handle: int, target: Path, *, overwrite: bool, as_root: bool) -> None:
        self._root_handle = root_handle
        self._target = target
        self._overwrite = overwrite
        self._as_root = as_root
        self._open: list[_Folder] = [_Folder(b"", os.dup(root_handle), None)]
        self._file: _File | None = None
        self._failed_keys: set[bytes] = set()
        self.failed: list[Failed] = []
        self.entries = 0
        self.files = 0
        self.bytes_written = 0

    def apply(self, steps: Sequence[Step], bodies: dict[BlockId, Buffer]) -> None:
        """Do these steps. What fails is noted, and the next is tried. Raises `TargetFull`: so would the rest."""
        for step in steps:
            try:
                self._apply_one(step, bodies)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise TargetFull(self._target) from error
                self._fail(step.key, error.strerror or str(error))

    def finish(self) -> None:
        """Give the folders that are still open their modes and times."""
        self._drop_file()
        while self._open:
            self._leave()

    def _fail(self, key: bytes, reason: str) -> None:
        self._drop_file()
        self._failed_keys.add(key)
        self.failed.append(Failed(key_path(key), reason))

    def _apply_one(self, step: Step, bodies: dict[BlockId, Buffer]) -> None:
        if not step.is_first and (self._file is None or self._file.key != step.key):
            return  # The rest of a file that has failed.
        if step.failed:
            self._fail(step.key, step.failed)
            return
        if not step.key:
            self._open[0].entry = step.entry
            self.entries += 1
            return
        folder = self._enter_parents(step.key)
        if folder is None:
            self._fail(step.key, "the folder that it is in could not be restored")
        elif step.entry.is_directory:
            self._make_folder(step, folder)
        elif step.entry.is_file:
            self._write_file(step, folder, bodies)
        else:
            self._make_special(step, folder)

    # -- folders --------------------------------------------------------------------------

    def _enter_parents(self, key: bytes) -> int | None:
        """The open folder that `key` is in; folders that lie behind us are finished."""
        parents, _ = split(key)
        wanted = b"\0".join(parents)
        while len(self._open) > 1 and not (wanted + b"\0").startswith(self._open[-1].key + b"\0"):
            self._leave()
        return self._open[-1].handle if self._open[-1].key == wanted else None

    def _make_folder(self, step: Step, above: int) -> None:
        _, name = split(step.key)
        handle = open_or_make(above, name, overwrite=self._overwrite)
        self._open.append(_Folder(step.key, handle, step.entry))
        self.entries += 1

    def _leave(self) -> None:
        folder = self._open.pop()
        try:
            if folder.entry is not None:
                self._note(folder.key, apply_open(folder.handle, folder.entry, as_root=self._as_root))
        except OSError as error:
            self._note(folder.key, [error.strerror or str(error)])
        finally:
            os.close(folder.handle)

    def _note(self, key: bytes, reasons: list[str]) -> None:
        self.failed += [Failed(key_path(key), reason) for reason in reasons]

    # -- regular files --------------------------------------------------------------------

    def _write_file(self, step: Step, folder: int, bodies: dict[BlockId, Buffer]) -> None:
        _, name = split(step.key)
        if step.is_first:
            self._drop_file()
            temporary = _temporary(name)
            self._file = _File(step.key, _create(folder, temporary), temporary)
        file = self._file
        assert file is not None
        for length, block in step.pieces:
            if block != ZERO_BLOCK:
                self._put(file, bodies[block], length)
            elif not step.entry.is_sparse:
                self._put_zeros(file, length)
            file.at += length
        if step.is_last:
            self._end_file(file, step, folder, name)

    def _put(self, file: _File, body: Buffer, length: int) -> None:
        if len(body) != length:
            raise OSError(f"a block has {len(body)} bytes where the snapshot says {length}")
        write_all(file.handle, [body], file.at)
        self.bytes_written += length

    def _put_zeros(self, file: _File, length: int) -> None:
        for at in range(0, length, len(_ZEROS)):
            write_all(file.handle, [memoryview(_ZEROS)[: min(len(_ZEROS), length - at)]], file.at + at)

    def _end_file(self, file: _File, step: Step, folder: int, name: bytes) -> None:
        if file.at != step.entry.size:
            raise OSError(f"its pieces make {file.at} bytes where the snapshot says {step.entry.size}")
        if step.entry.is_sparse:
            os.ftruncate(file.handle, file.at)
        reasons = apply_open(file.handle, step.entry, as_root=self._as_root)
        os.rename(file.temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.close(file.handle)
        self._file = None
        self._note(step.key, reasons)
        self.files += 1
        self.entries += 1

    def _drop_file(self) -> None:
        """Forget a file that was begun. It is always in the innermost open folder."""
        if self._file is not None:
            os.close(self._file.handle)
            _remove(self._open[-1].handle, self._file.temporary)
            self._file = None

    # -- the rest -------------------------------------------------------------------------

    def _make_special(self, step: Step, folder: int) -> None:
        entry, (_, name) = step.entry, split(step.key)
        temporary = _temporary(name)
        _remove(folder, temporary)
        if entry.is_hard_link:
            self._link(entry.target, folder, temporary)
            # Renaming one link of a file onto another does nothing, and leaves both.
            _remove(folder, name)
            reasons = []
        else:
            self._make_node(entry, folder, temporary)
            reasons = apply_named(folder, temporary, entry, as_root=self._as_root)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        self._note(step.key, reasons)
        self.entries += 1

    def _link(self, first_key: bytes, folder: int, name: bytes) -> None:
        if first_key in self._failed_keys:
            raise OSError("the first path of the same file could not be restored")
        parents, first_name = split(first_key)
        there = open_folder(self._root_handle, parents)
        try:
            os.link(first_name, name, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(there)

    def _make_node(self, entry: Entry, folder: int, name: bytes) -> None:
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFLNK:
            os.symlink(entry.target, name, dir_fd=folder)
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK):
            os.mknod(name, kind | 0o600, dir_fd=folder)
        elif kind not in (stat.S_IFCHR, stat.S_IFBLK):
            raise OSError(f"a file of the unknown type {kind:#o}")
        elif not self._as_root:
            raise OSError("only root may make a device")
        else:
            os.mknod(name, kind | 0o600, entry.rdev, dir_fd=folder)


def _temporary(name: bytes) -> bytes:
    return b".replicator-" + blake3(name).hexdigest()[:16].encode() + b".part"


def _create(folder: int, name: bytes) -> int:
    """A new file of that name. One that an earlier attempt left behind is rare, so it is not looked for first."""
    try:
        return os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
    except FileExistsError:
        _remove(folder, name)
        return os.open(name, _NEW_FILE, 0o600, dir_fd=folder)


def _remove(folder: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
