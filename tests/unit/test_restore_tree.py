"""Restoring trees: what comes back is what was there, judged by other tools than ours."""

import errno
import hashlib
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from protocol.ids import BlockId
from replicator.core.errors import NotFound, SourceError, TargetFull
from replicator.restore import writer
from replicator.restore.writer import Failed
from tests.support.alone import Site, fill, restore

NOW_NS = 1_700_000_000_123_456_789


def everything_odd(folder: Path) -> None:
    """One of each thing that a file system can hold."""
    raw = os.fsencode(folder)
    (folder / "empty").touch()
    (folder / "hollow").mkdir()
    (folder / "deep/er/and/deeper").mkdir(parents=True)
    (folder / "deep/er/and/deeper/file").write_bytes(b"deep")
    (folder / "large").write_bytes(os.urandom(20 << 20))
    (folder / "text").write_text("many pieces, some of them equal\n" * 40_000)
    (folder / "forbidden").write_bytes(b"mode 0")
    (folder / "locked").mkdir()
    (folder / "locked/inside").write_bytes(b"x")
    (folder / "setuid").write_bytes(b"#!")
    for name in (b"\xff\xfe\n", b"new\nline", b"-rf", b" ", b"\x7f" * 255):
        with open(raw + b"/" + name, "wb") as file:
            file.write(name)
    (folder / "to-nowhere").symlink_to("no/such/place")
    os.symlink(b"\xff" * 300, raw + b"/deep/odd-link")
    os.link(folder / "large", folder / "deep/large-again")
    os.link(folder / "empty", folder / "z-empty")
    os.link(folder / "to-nowhere", folder / "z-to-nowhere", follow_symlinks=False)
    os.mkfifo(folder / "pipe", 0o620)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    with (folder / "sparse").open("wb") as file:
        file.write(b"start")
        file.truncate(50 << 20)
        file.seek(30 << 20)
        file.write(os.urandom(100_000))
    with (folder / "nothing-but-hole").open("wb") as file:
        file.truncate(3 << 20)
    (folder / "written-zeros").write_bytes(bytes(300_000))
    os.setxattr(folder / "text", "user.colour", b"blue\0green")
    os.setxattr(folder / "hollow", "user.empty", b"")
    acl = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")
    os.setxattr(folder / "text", "system.posix_acl_access", acl)
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(folder / "text", 12345, 54321)
        os.chown(folder / "to-nowhere", 7, 8, follow_symlinks=False)
        os.setxattr(folder / "text", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    for number, (path, names, others) in enumerate(os.walk(raw, topdown=False)):
        for name in (*names, *others, b"."):
            moment = NOW_NS + number * 1_000_003 + len(name)
            os.utime(os.path.join(path, name), ns=(moment, moment), follow_symlinks=False)
    if os.geteuid() == 0:  # Others could not read these back to compare them, or may not restore them.
        for name, mode in (("locked", 0), ("forbidden", 0), ("setuid", 0o6755)):
            (folder / name).chmod(mode)


def described(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """What `lstat`, `readlink`, `getxattr` and SHA-256 say of each path."""
    found: dict[bytes, tuple[object, ...]] = {}
    raw = os.fsencode(folder)
    inodes: dict[int, bytes] = {}
    for path, names, others in os.walk(raw):
        names.sort()
        for name in sorted((*names, *others, b".")):
            full = os.path.join(path, name)
            status = os.lstat(full)
            kind = stat.S_IFMT(status.st_mode)
            shown = os.path.relpath(full, raw)
            first = inodes.setdefault(status.st_ino, shown)
            content = b""
            if kind == stat.S_IFREG:
                with open(full, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(full)
            attributes = {key: os.getxattr(full, key, follow_symlinks=False)
                          for key in os.listxattr(full, follow_symlinks=False)}  # fmt: skip
            size = 0 if kind == stat.S_IFDIR else status.st_size
            found[shown] = (
                status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_nlink,
                status.st_rdev, first, content, tuple(sorted(attributes.items())),
            )  # fmt: skip
    return found


def rsync_differences(one: Path, other: Path) -> str:
    """What rsync would change to make `other` like `one`, by content."""
    command = ["rsync", "-naHAX", "--checksum", "--delete", "--itemize-changes", "--specials", "--devices"]
    return subprocess.run([*command, f"{one}/", f"{other}/"], check=True, capture_output=True, text=True).stdout


async def test_a_tree_with_everything_odd_comes_back_the_same(site: Site, folder: Path, tmp_path: Path) -> None:
    everything_odd(folder)
    taken = await site.take(folder)
    assert (taken.skipped, taken.changed_while_read) == ((), ())

    restored = await restore(site, taken.root, tmp_path / "back")

    assert restored.failed == ()
    assert described(tmp_path / "back") == described(folder)
    assert rsync_differences(folder, tmp_path / "back") == ""
    for name in ("sparse", "nothing-but-hole"):
        assert (tmp_path / "back" / name).stat().st_blocks <= (folder / name).stat().st_blocks + 256
    assert (tmp_path / "back" / "written-zeros").stat().st_blocks * 512 >= 300_000
    assert (await site.take(tmp_path / "back", memo=False)).root == taken.root


async def test_a_restore_that_was_killed_is_finished_by_the_next(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, 60)
    (folder / "part-3" / "large").write_bytes(os.urandom(3_000_000))
    os.link(folder / "part-3" / "large", folder / "z-linked")
    (folder / "part-0").chmod(0o500)
    taken = await site.take(folder)
    target = tmp_path / "back"

    class Killed(BaseException):
        pass

    real, renames = os.rename, []

    def killing(*args: object, **named: object) -> None:
        renames.append(args)
        if len(renames) == 40:
            raise Killed
        real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(writer.os, "rename", killing)
    monkeypatch.setattr(writer.TreeWriter, "finish", lambda self: None)
    with pytest.raises(BaseExceptionGroup):
        await restore(site, taken.root, target)
    monkeypatch.undo()
    assert any(name.endswith(".part") for _, _, names in os.walk(target) for name in names)

    again = await restore(site, taken.root, target)

    assert again.failed == () and again.kept == 39
    assert described(target) == described(folder)


async def test_what_stands_in_the_way_is_left_alone_and_reported(site: Site, folder: Path, tmp_path: Path) -> None:
    fill(folder, 10)
    taken = await site.take(folder)
    target = tmp_path / "back"
    await restore(site, taken.root, target)
    (target / "part-1" / "file-1").write_bytes(b"mine")
    (target / "part-2" / "file-2").unlink()
    (target / "extra").write_bytes(b"stays")

    again = await restore(site, taken.root, target)

    assert again.failed == (Failed(b"part-1/file-1", "something else is there already"),)
    assert (again.files, again.kept) == (1, 8)
    assert (target / "part-1" / "file-1").read_bytes() == b"mine"
    assert (target / "extra").read_bytes() == b"stays"


async def test_overwrite_replaces_what_differs_and_keeps_what_the_snapshot_does_not_name(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    fill(folder, 10)
    (folder / "link").symlink_to("part-1")
    os.link(folder / "part-1" / "file-1", folder / "linked")
    os.utime(folder, ns=(5, 5))
    taken = await site.take(folder)
    target = tmp_path / "back"
    await restore(site, taken.root, target)
    (target / "part-1" / "file-1").write_bytes(b"mine")
    (target / "link").unlink()
    (target / "link").write_bytes(b"a file where a link was")
    os.rename(target / "part-2", target / "moved")
    (target / "part-2").symlink_to("/")

    again = await restore(site, taken.root, target, overwrite=True)

    assert again.failed == ()
    shutil.rmtree(target / "moved")
    os.utime(target, ns=(5, 5))
    assert described(target) == described(folder)


@pytest.mark.parametrize("only", [b"part-1", b"part-1/file-6", b"/part-1/file-6/"])
async def test_one_path_is_restored_with_the_folders_that_lead_to_it(
    site: Site, folder: Path, tmp_path: Path, only: bytes
) -> None:
    fill(folder, 10)
    (folder / "part-1").chmod(0o711)
    taken = await site.take(folder)

    await restore(site, taken.root, tmp_path / "back", only=only)

    assert stat.S_IMODE((tmp_path / "back" / "part-1").stat().st_mode) == 0o711
    assert (tmp_path / "back" / "part-1" / "file-6").read_bytes() == (folder / "part-1" / "file-6").read_bytes()
    assert (tmp_path / "back" / "part-1" / "file-1").exists() == (only == b"part-1")
    assert os.listdir(tmp_path / "back") == ["part-1"]


async def test_hard_links_to_a_path_that_is_not_selected_carry_its_content(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    (folder / "a").write_bytes(b"content")
    (folder / "b").mkdir()
    os.link(folder / "a", folder / "b/1")
    os.link(folder / "a", folder / "b/2")
    taken = await site.take(folder)

    await restore(site, taken.root, tmp_path / "back", only=b"b")

    one, two = (tmp_path / "back/b/1").stat(), (tmp_path / "back/b/2").stat()
    assert (tmp_path / "back/b/1").read_bytes() == b"content"
    assert one.st_ino == two.st_ino and one.st_nlink == 2


async def test_a_path_that_the_snapshot_does_not_have_is_not_found(site: Site, folder: Path, tmp_path: Path) -> None:
    fill(folder, 3)
    root = (await site.take(folder)).root
    for only in (b"nothing", b"part-1/nothing", b"part-1/file-1/below", b"part"):
        with pytest.raises(NotFound):
            await restore(site, root, tmp_path / "back", only=only)


async def test_a_file_whose_block_nobody_has_is_reported_and_the_others_are_restored(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    fill(folder, 40)
    (folder / "large").write_bytes(os.urandom(3_000_000))
    os.link(folder / "large", folder / "large-again")
    taken = await site.take(folder)
    found = await site.entries(taken.root)
    lost = [found[b"part-3/file-33"].block_ids()[0], BlockId(found[b"large"].pieces_root)]
    for block in lost:
        site.lose(block)

    restored = await restore(site, taken.root, tmp_path / "back")

    assert {failed.path for failed in restored.failed} == {b"large", b"large-again", b"part-3/file-33"}
    assert (lost[0].hex() in restored.failed[2].reason) and restored.files == 39
    assert not [name for _, _, names in os.walk(tmp_path / "back") for name in names if name.endswith(".part")]


async def test_a_target_that_is_a_file_is_refused(site: Site, folder: Path, tmp_path: Path) -> None:
    root = (await site.take(folder)).root
    (tmp_path / "file").touch()
    with pytest.raises(SourceError):
        await restore(site, root, tmp_path / "file")


async def test_a_full_target_ends_the_restore_and_the_next_one_carries_on(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder)
    taken = await site.take(folder)
    writes: list[int] = []

    def until_full(handle: int, run: list[bytes], offset: int) -> None:
        writes.append(offset)
        if len(writes) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.pwritev(handle, run, offset)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_all", until_full)
        with pytest.raises(TargetFull, match="back"):
            await restore(site, taken.root, tmp_path / "back")
    assert len(writes) == 3, "the rest is not tried"
    assert not [name for _, _, names in os.walk(tmp_path / "back") for name in names if name.endswith(".part")]
    assert (await restore(site, taken.root, tmp_path / "back")).failed == ()
