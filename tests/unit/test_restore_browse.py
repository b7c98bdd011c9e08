"""Looking into a snapshot, and saying what a restore would do."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from replicator.core.errors import NotFound
from replicator.restore.browse import Listed, find, list_folder
from replicator.restore.diff import compare_tree
from replicator.restore.tree import restore_tree
from tests.support.alone import Site, fill


async def paths(found: AsyncIterator[Listed]) -> list[bytes]:
    return [listed.path async for listed in found]


async def test_a_folder_lists_what_is_directly_in_it(site: Site, folder: Path) -> None:
    fill(folder, 300)
    (folder / "part-1.txt").touch()
    (folder / "part-1" / "sub").mkdir()
    (folder / "part-1" / "sub" / "below").touch()
    root = (await site.take(folder)).root

    top = [f"part-{number}" for number in range(5)]
    assert await paths(list_folder(site, root, b"")) == sorted(map(os.fsencode, [*top, "part-1.txt"]))
    inside = await paths(list_folder(site, root, b"part-1/"))
    assert inside == sorted(b"part-1/" + os.fsencode(name) for name in os.listdir(folder / "part-1"))
    assert await paths(list_folder(site, root, b"part-1/sub/below")) == [b"part-1/sub/below"]


async def test_listing_steps_over_large_folders_unread(site: Site, folder: Path) -> None:
    (folder / "a").mkdir()
    for number in range(3000):
        (folder / "a" / f"{number}").touch()
    (folder / "b").touch()
    root = (await site.take(folder)).root
    read: list[bytes] = []
    real = site.read

    async def counting(ids):  # type: ignore[no-untyped-def]
        read.extend(ids)
        return await real(ids)

    site.read = counting  # type: ignore[method-assign]
    assert await paths(list_folder(site, root, b"")) == [b"a", b"b"]
    assert len(read) < 60  # Of about a hundred.


async def test_a_folder_that_is_not_there_is_not_found(site: Site, folder: Path) -> None:
    root = (await site.take(folder)).root
    with pytest.raises(NotFound):
        await paths(list_folder(site, root, b"nothing"))


async def test_names_are_found_by_pattern(site: Site, folder: Path) -> None:
    fill(folder, 20)
    root = (await site.take(folder)).root
    assert await paths(find(site, root, b"file-1")) == [b"part-1/file-1"]
    assert await paths(find(site, root, b"*-1[12]")) == [b"part-1/file-11", b"part-2/file-12"]
    assert await paths(find(site, root, b"part-3/*8")) == [b"part-3/file-18", b"part-3/file-8"]


async def test_a_comparison_says_what_a_restore_would_do_and_does_nothing(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    fill(folder, 20)
    root = (await site.take(folder)).root
    target = tmp_path / "back"
    fresh = await compare_tree(site, root, target, only=None, offload=site.offload)
    assert (fresh.created, fresh.changed, fresh.same) == (26, 0, 0) and not target.exists()

    await restore_tree(
        site,
        root,
        target,
        only=None,
        overwrite=False,
        as_root=False,
        offload=site.offload,
        progress=site.progress,
    )
    (target / "part-1" / "file-6").write_bytes(b"other")
    (target / "part-2" / "file-7").unlink()
    found = await compare_tree(site, root, target, only=None, offload=site.offload)

    assert (found.created_paths, found.changed_paths) == ([b"part-2/file-7"], [b"part-1/file-6"])
    assert (found.created, found.changed, found.same) == (1, 1, 24)
    assert found.bytes_created == (folder / "part-2" / "file-7").stat().st_size
    partial = await compare_tree(site, root, target, only=b"part-3", offload=site.offload)
    assert (partial.same, partial.created, partial.changed) == (5, 0, 0)
