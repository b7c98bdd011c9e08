"""Building a tree's map upon the last one: it must be the map that a look at everything would make."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.wire.hashing import Kind
from replicator.ingest import scan as scanning
from replicator.ingest.build import TreeBuilder
from replicator.ingest.scan import Found, Scan
from replicator.ingest.sources import Taken, TreeSource
from tests.support.alone import Site

Deed = Callable[[random.Random, Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(120):
        path = folder / f"a{number % 5}" / f"b{number % 3}" / f"c{number % 7}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * (number * 20))
    return folder


def paths(folder: Path, *, folders: bool) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if (path.is_dir() and not path.is_symlink()) == folders)


def write(chance: random.Random, folder: Path) -> None:
    chance.choice(paths(folder, folders=False)).write_bytes(chance.randbytes(chance.randrange(9000)))


def make(chance: random.Random, folder: Path) -> None:
    path = chance.choice(paths(folder, folders=True)) / f"new-{chance.randrange(1000)}"
    if not path.exists():
        path.write_bytes(chance.randbytes(50))


def unlink(chance: random.Random, folder: Path) -> None:
    chance.choice(paths(folder, folders=False)).unlink()


def remove_folder(chance: random.Random, folder: Path) -> None:
    shutil.rmtree(chance.choice(paths(folder, folders=True)))


def move(chance: random.Random, folder: Path) -> None:
    path = chance.choice(paths(folder, folders=chance.random() < 0.5))
    path.rename(path.with_name(f"{chance.choice('abcf')}-moved-{chance.randrange(1000)}"))


def file_becomes_folder(chance: random.Random, folder: Path) -> None:
    path = chance.choice(paths(folder, folders=False))
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def folder_becomes_file(chance: random.Random, folder: Path) -> None:
    path = chance.choice(paths(folder, folders=True))
    shutil.rmtree(path)
    path.write_bytes(b"was a folder")


def folder_becomes_link(chance: random.Random, folder: Path) -> None:
    path = chance.choice(paths(folder, folders=True))
    path.rename(folder / f"target-{chance.randrange(10**6)}")
    path.symlink_to(folder)


def link(chance: random.Random, folder: Path) -> None:
    files = [path for path in paths(folder, folders=False) if not path.is_symlink()]
    path = chance.choice(paths(folder, folders=True)) / f"{chance.choice('abcf')}-link-{chance.randrange(10**6)}"
    os.link(chance.choice(files), path)


def chmod(chance: random.Random, folder: Path) -> None:
    chance.choice(paths(folder, folders=True)).chmod(0o700 + chance.randrange(64))


DEEDS: list[Deed] = [
    write, make, unlink, move, move, file_becomes_folder, folder_becomes_file, folder_becomes_link, link, link, chmod,
    remove_folder,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_to_a_tree_its_map_is_as_if_made_afresh(site: Site, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    await site.take(folder)
    for _ in range(12):
        for _ in range(chance.randrange(4)):
            if len(paths(folder, folders=True)) > 3 and len(paths(folder, folders=False)) > 3:
                chance.choice(DEEDS)(chance, folder)
        built = await site.take(folder)
        afresh = await site.take(folder, memo=False)
        assert (built.root, built.entries, built.size_bytes) == (afresh.root, afresh.entries, afresh.size_bytes)


async def test_only_the_folders_in_which_something_changed_are_described_again(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.take(folder)
    described: list[bytes] = []
    walk = Scan.walk

    def noted(self: Scan) -> Iterator[scanning.Step]:
        for step in walk(self):
            if isinstance(step, Found):
                described.append(step.key)
            yield step

    monkeypatch.setattr(Scan, "walk", noted)
    changed = folder / "a1" / "b1" / "c1" / "file-1"
    changed.write_bytes(b"other")

    taken = await site.take(folder)

    assert sorted(described) == sorted([b"a1\0b1\0c1", *(b"a1\0b1\0c1\0" + os.fsencode(one.name)
                                                       for one in changed.parent.iterdir())])  # fmt: skip
    assert taken.files_unopened == 119
    assert taken.root == (await site.take(folder, memo=False)).root


async def test_a_link_whose_first_path_was_moved_with_its_folder_gets_the_content(site: Site, folder: Path) -> None:
    os.link(folder / "a0" / "b0" / "c0" / "file-0", folder / "b-link")
    os.link(folder / "a1" / "b1" / "c1" / "file-1", folder / "a4" / "b0" / "link")
    await site.take(folder)
    # Renaming the folder moves no time of the files in it.
    (folder / "a0").rename(folder / "c0")
    (folder / "a1").rename(folder / "d1")

    taken = await site.take(folder)

    assert taken.root == (await site.take(folder, memo=False)).root


async def test_what_could_not_be_read_is_named_again_each_time(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = [b"file-2", b"c3"]
    real = os.open

    def opening(path: object, flags: int, *rest: object, **more: object) -> int:
        if path in forbidden:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    await site.take(folder)
    monkeypatch.setattr(os, "open", opening)
    (folder / "a2" / "b2" / "c2" / "file-2").write_bytes(b"new")
    for path in paths(folder, folders=True):
        if path.name == "c3":
            path.chmod(0o700)

    def seen(taken: Taken) -> tuple[bytes, int, list[bytes]]:
        return taken.root, taken.entries, [one.path for one in taken.skipped]

    once, twice, afresh = [seen(await site.take(folder, memo=memo)) for memo in (True, True, False)]
    assert once == twice == afresh
    assert len(once[2]) > 3


async def test_a_folder_that_is_left_out_from_now_on_is_not_in_the_map(site: Site, folder: Path) -> None:
    await site.take(folder)
    without = TreeSource(path=folder, exclude=("a1/b1/",))

    taken = await site.take(without)

    assert taken.root == (await site.take(without, memo=False)).root != (await site.take(folder, memo=False)).root


async def test_a_tree_with_large_attributes_is_not_built_upon(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upon: list[bool] = []
    init = TreeBuilder.__init__

    def noted(self: TreeBuilder, *rest: object, **more: object) -> None:
        upon.append(more["base"] is not None)
        init(self, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(TreeBuilder, "__init__", noted)
    monkeypatch.setattr("replicator.ingest.build._LARGE_ENTRY", 300)
    await site.take(folder)
    os.utime(folder / "a1", ns=(5, 5))
    await site.take(folder)
    # From here on one entry counts as large: it is met while building upon the last map, and after that nobody does.
    path = folder / "a1" / "b1" / "c1" / "large"
    path.write_bytes(random.Random(5).randbytes(300_000))
    first = await site.take(folder)
    second = await site.take(folder)

    assert upon == [False, True, True, False, False]
    assert first.root == second.root == (await site.take(folder, memo=False)).root


async def test_a_folder_whose_times_tell_nothing_is_listed_again(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if on a file system over a network, where a name may come without its folder's times being moved here.
    monkeypatch.setattr(scanning, "tells_every_name", lambda device: False)
    await site.take(folder)
    times = os.stat(folder / "a1")
    look = os.stat

    def without_trace(path: object, **more: object) -> os.stat_result:
        status = look(path, **more)  # type: ignore[arg-type]
        return times if status.st_ino == times.st_ino else status

    (folder / "a1" / "new").write_bytes(b"came without a trace")
    monkeypatch.setattr(os, "stat", without_trace)
    taken = await site.take(folder)
    monkeypatch.undo()

    assert taken.entries == (await site.take(folder, memo=False)).entries


async def test_a_node_of_the_last_map_that_is_damaged_is_written_again(site: Site, folder: Path) -> None:
    first = await site.take(folder)
    nodes = site.store.of_kind(Kind.NODE)
    assert len(nodes) > 4

    for node in nodes:
        site.lose(node)
        second = await site.take(folder)
        assert (second.root, second.blocks_new) == (first.root, 1)
        assert not site.store.read([node]).faults


async def test_folders_of_which_the_walk_forgets_to_tell_make_everything_be_put(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.take(folder)
    shutil.rmtree(folder / "a2" / "b2")
    monkeypatch.setattr(Scan, "_gone", lambda self, key, found: [])

    taken = await site.take(folder)

    assert taken.root == (await site.take(folder, memo=False)).root
