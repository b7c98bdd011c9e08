"""Restoring what an enemy has made, or into a folder that one can reach: nothing gets out of the target."""

import os
import stat
from pathlib import Path

import pytest

from protocol.ids import ZERO_BLOCK, BlockId
from protocol.wire.hashing import Kind
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.entries import SEPARATOR, Entry, encode_entry
from replicator.catalog.manifest.nodes import Shape
from replicator.core.errors import ManifestDamaged
from replicator.restore import writer
from replicator.restore.tree import restore_tree
from replicator.restore.writer import Failed
from tests.support.alone import Site, restore
from tests.support.blocks import from_body
from tests.support.store import put

FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755
LINK = stat.S_IFLNK | 0o777


def entry(mode: int, **named: object) -> Entry:
    return Entry(mode=mode, uid=os.getuid(), gid=os.getgid(), mtime_ns=1, **named)  # type: ignore[arg-type]


async def forged(site: Site, *paths: tuple[bytes, Entry]) -> BlockId:
    """A snapshot that says whatever we like."""
    nodes: list[bytes] = []
    editor = MapEditor(Shape.NAMES, lambda _, body: nodes.append(body), reader=None, base=None)
    for key, made in sorted([(b"", entry(FOLDER)), *paths], key=lambda path: path[0]):
        await editor.put(key, encode_entry(made))
    root = await editor.finish()
    put(site.store, [from_body(body, kind=Kind.NODE) for body in nodes] + [from_body(b"evil")])
    return root


EVIL = entry(FILE, size=4, lengths=(4,), ids=bytes(from_body(b"evil").header.block_id))


@pytest.mark.parametrize(
    "key",
    [b"..", b"..\0escaped", b"a\0..\0..\0escaped", b"/escaped", b"a/../../escaped", b".", b"\0escaped", b"a\0\0b",
     b"x" * 256],
)  # fmt: skip
async def test_a_key_that_leads_outside_is_refused(site: Site, tmp_path: Path, key: bytes) -> None:
    before = sorted(os.listdir(tmp_path))
    root = await forged(site, (key, EVIL))
    with pytest.raises(ManifestDamaged):
        await restore(site, root, tmp_path / "back")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "back"])
    assert os.listdir(tmp_path / "back") == []


@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_link_in_the_snapshot_is_never_written_through(site: Site, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "outside").mkdir()
    link = entry(LINK, target=os.fsencode(tmp_path / "outside"))
    root = await forged(site, (b"link", link), (b"link\0escaped", EVIL))

    restored = await restore(site, root, tmp_path / "back", overwrite=overwrite)

    assert os.listdir(tmp_path / "outside") == []
    assert [failed.path for failed in restored.failed] == [b"link/escaped"]


async def test_a_link_that_stands_in_the_target_is_never_written_through(site: Site, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"untouched")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "back" / "file").symlink_to(tmp_path / "outside" / "file")
    root = await forged(site, (b"folder", entry(FOLDER)), (b"folder\0file", EVIL), (b"file", EVIL))

    careful = await restore(site, root, tmp_path / "back")
    assert len(careful.failed) == 3
    assert (await restore(site, root, tmp_path / "back", overwrite=True)).failed == ()

    assert (tmp_path / "outside" / "file").read_bytes() == b"untouched"
    assert (tmp_path / "back" / "folder" / "file").read_bytes() == b"evil"


async def test_a_folder_that_is_swapped_for_a_link_meanwhile_is_not_followed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    root = await forged(site, (b"folder", entry(FOLDER)), (b"folder\0file", EVIL))
    real = os.mkdir

    def swapping(path: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        if path == b"folder":
            os.rmdir(path, dir_fd=dir_fd)
            os.symlink(tmp_path / "outside", path, dir_fd=dir_fd)

    monkeypatch.setattr(writer.os, "mkdir", swapping)
    restored = await restore(site, root, tmp_path / "back")

    assert os.listdir(tmp_path / "outside") == []
    assert {failed.path for failed in restored.failed} == {b"folder", b"folder/file"}


@pytest.mark.parametrize("target", [b"", b"..\0secret", b"z", b"/etc/passwd"])
async def test_a_hard_link_that_points_outside_or_ahead_is_refused(site: Site, tmp_path: Path, target: bytes) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    root = await forged(site, (b"a", EVIL), (b"b", entry(FILE, target=target, is_hard_link=True)), (b"z", EVIL))
    with pytest.raises(ManifestDamaged):
        await restore(site, root, tmp_path / "back")
    assert (tmp_path / "secret").stat().st_nlink == 1


async def test_pieces_that_are_not_as_long_as_the_snapshot_says_are_refused(site: Site, tmp_path: Path) -> None:
    evil = from_body(b"evil").header.block_id
    root = await forged(
        site,
        (b"long", entry(FILE, size=9, lengths=(9,), ids=bytes(evil))),
        (b"ok", entry(FILE, size=6, lengths=(2, 4), ids=bytes(ZERO_BLOCK + evil))),
    )

    restored = await restore(site, root, tmp_path / "back")

    assert [failed.path for failed in restored.failed] == [b"long"]
    assert os.listdir(tmp_path / "back") == ["ok"]
    assert (tmp_path / "back" / "ok").read_bytes() == b"\0\0evil"


async def test_a_path_without_its_folder_is_reported(site: Site, tmp_path: Path) -> None:
    root = await forged(site, (SEPARATOR.join((b"a", b"b")), EVIL), (b"c", EVIL))
    restored = await restore(site, root, tmp_path / "back")
    assert [failed.path for failed in restored.failed] == [b"a/b"]
    assert os.listdir(tmp_path / "back") == ["c"]


async def test_without_root_setuid_and_devices_are_not_restored(site: Site, tmp_path: Path) -> None:
    root = await forged(
        site,
        (b"null", entry(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))),
        (b"tool", entry(stat.S_IFREG | 0o6755)),
    )
    restored = await restore_tree(
        site, root, tmp_path / "back", only=None, overwrite=False, as_root=False,
        offload=site.offload, progress=site.progress,
    )  # fmt: skip
    assert restored.failed == (Failed(b"null", "only root may make a device"),)
    assert stat.S_IMODE((tmp_path / "back" / "tool").stat().st_mode) == 0o755
