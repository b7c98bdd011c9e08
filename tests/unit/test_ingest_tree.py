"""Taking a tree: what is in the snapshot, and what is left out and said so."""

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from replicator.catalog.manifest.entries import decode_entry, key_path
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import entries
from replicator.core.errors import SourceError
from replicator.ingest import build, reading
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import Skipped, TreeSource
from tests.support.alone import Site, fill


async def test_every_path_is_in_the_snapshot_with_what_it_is(site: Site, folder: Path) -> None:
    (folder / "a").mkdir(mode=0o750)
    (folder / "a" / "file").write_bytes(b"hello")
    (folder / "a.txt").write_bytes(b"")
    (folder / "link").symlink_to("a/file")
    os.link(folder / "a" / "file", folder / "z-linked")
    os.mkfifo(folder / "pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    os.setxattr(folder / "a" / "file", "user.colour", b"\0blue")
    os.utime(folder / "a" / "file", ns=(1, 1_600_000_000_123_456_789))

    taken = await site.take(folder)
    found = await site.entries(taken.root)

    assert list(found) == [b"", b"a", b"a/file", b"a.txt", b"link", b"pipe", b"socket", b"z-linked"]
    assert (taken.entries, taken.size_bytes, taken.skipped, taken.changed_while_read) == (8, 5, (), ())
    assert found[b"a"].mode == stat.S_IFDIR | 0o750
    file = found[b"a/file"]
    assert (file.size, file.mtime_ns, file.xattrs) == (5, 1_600_000_000_123_456_789, ((b"user.colour", b"\0blue"),))
    assert (await site.read(file.block_ids()))[file.block_ids()[0]] == b"hello"
    assert (found[b"a.txt"].size, found[b"a.txt"].ids) == (0, b"")
    assert found[b"link"].target == b"a/file"
    assert stat.S_ISFIFO(found[b"pipe"].mode) and stat.S_ISSOCK(found[b"socket"].mode)
    assert found[b"z-linked"].is_hard_link and found[b"z-linked"].target == b"a\0file"


async def test_names_that_are_no_text_are_kept_byte_for_byte(site: Site, folder: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"\x01", b"-rf", b"sp ace", b"a", b"a-b", b"\xc3\xa4" * 127]
    for name in names:
        os.mknod(os.fsencode(folder) + b"/" + name)

    found = await site.entries((await site.take(folder)).root)

    assert list(found) == [b"", *sorted(names)]


async def test_the_order_of_keys_is_kept_where_names_extend_each_other(site: Site, folder: Path) -> None:
    for path in ("a/x", "a-b/x", "a.b", "ab/c/d", "a/b/c", "a\x01"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)

    taken = await site.take(folder)  # The editor refuses keys that do not ascend.

    assert taken.entries == 6 + 6


async def test_a_file_that_vanishes_or_is_forbidden_is_skipped_and_named(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, 10)
    real = os.open

    def failing(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"file-3":
            raise FileNotFoundError(2, "No such file or directory")
        if path in (b"file-4", b"part-2"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    taken = await site.take(folder)

    assert taken.skipped == (
        Skipped(b"part-2", "permission denied"),
        Skipped(b"part-3/file-3", "vanished during the scan"),
        Skipped(b"part-4/file-4", "permission denied"),
    )
    found = await site.entries(taken.root)
    assert b"part-2" in found and b"part-2/file-2" not in found and b"part-3/file-8" in found


async def test_a_hard_link_is_read_itself_if_the_first_path_cannot_be(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "1").write_bytes(b"content")
    for name in "23":
        os.link(folder / "1", folder / name)
    real = os.open

    def failing(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"1":
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    found = await site.entries((await site.take(folder)).root)

    assert (found[b"2"].size, found[b"2"].is_hard_link) == (7, False)
    assert (found[b"3"].target, found[b"3"].is_hard_link) == (b"2", True)


@pytest.mark.parametrize("size", [1000, 1_000_000])
async def test_a_file_that_will_not_hold_still_is_stored_as_last_read_and_named(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (folder / "busy").write_bytes(os.urandom(size))
    (folder / "quiet").write_bytes(b"quiet")
    real, reads = os.pread, []

    def growing(handle: int, count: int, offset: int) -> bytes:
        data = real(handle, count, offset)
        if count != 5 and offset == 0:
            reads.append(handle)
            with (folder / "busy").open("ab") as file:
                file.write(b"more")
        return data

    monkeypatch.setattr(reading.os, "pread", growing)
    taken = await site.take(folder)

    assert len(reads) == reading.ATTEMPTS_MAX
    assert taken.changed_while_read == (b"busy",)
    assert (await site.entries(taken.root))[b"busy"].size == size + 4 * (reading.ATTEMPTS_MAX - 1)
    monkeypatch.undo()
    assert (await site.take(folder)).files_unopened == 1


async def test_a_file_that_shrinks_while_it_is_read_is_no_longer_than_what_was_read(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "log").write_bytes(os.urandom(1_000_000))
    real, cuts = os.pread, []

    def cutting(handle: int, count: int, offset: int) -> bytes:
        if not cuts:
            cuts.append(os.truncate(folder / "log", 300_000))
        return real(handle, count, offset)

    monkeypatch.setattr(reading.os, "pread", cutting)
    taken = await site.take(folder)

    assert (await site.entries(taken.root))[b"log"].size == 300_000 == taken.size_bytes
    assert taken.changed_while_read == ()  # The second reading found it still.


async def test_runs_of_zeros_take_no_block_whether_they_are_holes_or_not(site: Site, folder: Path) -> None:
    content = os.urandom(70_000) + bytes(3_000_000) + os.urandom(50_000) + bytes(500_001)
    (folder / "full").write_bytes(content)
    with (folder / "sparse").open("wb") as file:
        file.write(content[:70_000])
        file.seek(3_070_000)
        file.write(content[3_070_000:3_120_000])
        file.truncate(len(content))

    taken = await site.take(folder)
    found = await site.entries(taken.root)

    full, sparse = found[b"full"], found[b"sparse"]
    assert (full.is_sparse, sparse.is_sparse) == (False, True)
    assert (full.ids, full.lengths, full.size) == (sparse.ids, sparse.lengths, sparse.size)
    assert bytes(32) in full.block_ids()
    assert taken.bytes_read < 2 * len(content) - 2_500_000  # The holes were not read.
    site.clock.ns = time.time_ns()
    assert (await site.take(folder, memo=False)).root == taken.root  # And now, too fresh to be believed, they were.


async def test_an_insertion_changes_few_pieces_of_a_large_file(site: Site, folder: Path) -> None:
    content = os.urandom(4_000_000)
    (folder / "file").write_bytes(content)
    first = await site.take(folder)
    (folder / "file").write_bytes(content[:1_000_000] + b"inserted" + content[1_000_000:])

    second = await site.take(folder)

    assert first.blocks_new > 100 and second.blocks_new < 20


async def test_how_a_file_is_cut_does_not_depend_on_the_windows_it_is_read_in(site: Site, folder: Path) -> None:
    rest = os.urandom(700_000)
    (folder / "file").write_bytes(rest + bytes(900_000) + rest[:300_001] + bytes(40_000) + rest)
    sizes = {"piece_bytes_min": 4096, "piece_bytes_beyond_min": 8192, "piece_bytes_max": 65536}

    roots = {
        (await site.take(folder, memo=False, config=IngestConfig(**sizes, batch_bytes=batch))).root
        for batch in (1 << 17, 1 << 18, 1 << 20, 1 << 24)
    }

    assert len(roots) == 1


async def test_what_is_excluded_is_not_entered(site: Site, folder: Path) -> None:
    for path in ("keep/a.o", "keep/b.c", "cache/x", "keep/cache/y", "build/z", "keep/build/w"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)

    taken = await site.take(TreeSource(path=folder, exclude=("*.o", "cache/", "/build")))

    assert set(await site.entries(taken.root)) == {b"", b"keep", b"keep/b.c", b"keep/build", b"keep/build/w"}


@pytest.mark.parametrize("kind", ["absent", "file"])
async def test_a_root_that_is_no_folder_is_refused_with_a_hint(site: Site, folder: Path, kind: str) -> None:
    if kind == "file":
        (folder / kind).touch()
    with pytest.raises(SourceError, match="Check the path"):
        await site.take(folder / kind)


async def test_an_error_of_the_store_ends_the_snapshot_as_itself(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, 200)

    def full(*args: object) -> int:
        raise SourceError("boom")

    monkeypatch.setattr(site.store, "append", full)
    with pytest.raises(SourceError, match="boom"):
        await site.take(folder)


async def test_commits_happen_on_the_way(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[object] = []
    real = site.store.commit
    monkeypatch.setattr(site.store, "commit", lambda lease, **how: (commits.append(lease), real(lease, **how))[1])
    for number in range(30):
        (folder / f"{number}").write_bytes(os.urandom(100_000))

    await site.take(folder, config=IngestConfig(batch_bytes=200_000, commit_bytes=300_000))

    assert len(commits) >= 2  # The last one, and at least one beside the work.


async def test_attributes_that_a_node_has_no_room_for_are_left_out_by_name_and_the_snapshot_is_taken(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 KiB of attributes on each file of a folder are more than a node of the map may hold."""
    monkeypatch.setattr(build, "_LARGE_ENTRY", 1000)
    monkeypatch.setattr(build, "_LEAF_BYTES_MAX", 20_000)
    folder = tmp_path / "labelled"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03}").write_bytes(b"%d" % number)
        try:
            os.setxattr(folder / f"{number:03}", "user.label", bytes([number]) * 2000)
        except OSError as error:
            pytest.skip(f"no attributes here: {error}")
    for _ in range(2):  # The second one remembers them all.
        taken = await site.take(folder)
        found = {key_path(key): decode_entry(packed) async for key, packed in entries(site, taken.root, Shape.NAMES)}
        bare = {path for path, entry in found.items() if entry.is_file and not entry.xattrs}
        assert len(found) == 201 and 0 < len(bare) < 180
        assert {one.path for one in taken.skipped} == bare
        assert all("neighbours" in one.reason for one in taken.skipped)
