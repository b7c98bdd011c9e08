"""Owners, modes, attributes and times of what was restored.

The order matters: a change of owner clears setuid and capabilities, a change of mode rewrites
the mask of an ACL, and everything touches the times.
"""

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from replicator.catalog.manifest.entries import Entry

_KEPT = ("security.selinux", "security.ima", "security.evm")
"""The system's own labels of a new file: they stay unless the snapshot says otherwise."""


def apply_open(handle: int, entry: Entry, *, as_root: bool) -> list[str]:
    """Give an open file or folder what its entry says. Returns what could not be done."""
    failed: list[str] = []
    if as_root:
        _try(failed, "owner", partial(os.fchown, handle, entry.uid, entry.gid))
    _try(failed, "mode", partial(os.fchmod, handle, _mode(entry, as_root=as_root)))
    failed += _set_attributes(handle, entry)
    _try(failed, "time", partial(os.utime, handle, ns=(entry.mtime_ns, entry.mtime_ns)))
    return failed


def _try(failed: list[str], what: str, act: Callable[[], None]) -> None:
    """One attribute that a file system refuses must not cost the content, nor the other attributes."""
    try:
        act()
    except (OSError, OverflowError) as error:
        failed.append(f"{what}: {error.strerror if isinstance(error, OSError) else error}")


def apply_named(folder: int, name: bytes, entry: Entry, *, as_root: bool) -> list[str]:
    """The same for a link, pipe, socket or device, which is not opened."""
    failed: list[str] = []
    if as_root:
        _try(failed, "owner", partial(os.chown, name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False))
    if not stat.S_ISLNK(entry.mode):
        # By way of a descriptor: `chmod` by name would follow a link that someone put there since.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if stat.S_IFMT(os.fstat(handle).st_mode) == stat.S_IFMT(entry.mode):
                _try(failed, "mode", partial(os.chmod, f"/proc/self/fd/{handle}", _mode(entry, as_root=as_root)))
        finally:
            os.close(handle)
    failed += _set_attributes(b"/proc/self/fd/%d/%s" % (folder, name), entry)
    times = (entry.mtime_ns, entry.mtime_ns)
    _try(failed, "time", partial(os.utime, name, ns=times, dir_fd=folder, follow_symlinks=False))
    return failed


def _mode(entry: Entry, *, as_root: bool) -> int:
    mode = stat.S_IMODE(entry.mode)
    # Without the owner that it was meant for, setuid would lend out the rights of whoever restores.
    return mode if as_root else mode & ~(stat.S_ISUID | stat.S_ISGID)


def _set_attributes(where: int | bytes, entry: Entry) -> list[str]:
    follow = isinstance(where, int)
    failed: list[str] = []
    wanted = dict(entry.xattrs)
    try:
        present = [os.fsencode(name) for name in os.listxattr(where, follow_symlinks=follow)]
    except OSError:
        present = []
    for name in present:
        # Inherited from the folder it was made in, as default ACLs are.
        if name not in wanted and os.fsdecode(name) not in _KEPT:
            _try_remove(where, name, follow=follow)
    for name, value in wanted.items():
        try:
            os.setxattr(where, name, value, follow_symlinks=follow)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            failed.append(f"attribute {os.fsdecode(name)}: {why}")
    return failed


def _try_remove(where: int | bytes, name: bytes, *, follow: bool) -> None:
    try:
        os.removexattr(where, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES):
            raise
