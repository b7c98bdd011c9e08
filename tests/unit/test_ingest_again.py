"""Taking a tree again: what is not read twice, and what is although it seems unchanged."""

import os
import time
from pathlib import Path

import pytest

from protocol.ids import BlockId
from replicator.catalog.manifest.nodes import Shape
from replicator.catalog.manifest.walk import entries
from replicator.ingest import reading
from replicator.ingest.config import IngestConfig
from tests.support.alone import SMALL, Site, fill
from tests.support.store import collect


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The regular files that are opened from now on."""
    names: list[bytes] = []
    real = os.open

    def counting(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags == reading._FILE:
            names.append(path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", counting)
    return names


async def test_equal_trees_have_equal_roots_whatever_their_history(site: Site, folder: Path, tmp_path: Path) -> None:
    fill(folder)
    before = (await site.take(folder)).root
    (folder / "part-0" / "extra").write_bytes(os.urandom(300_000))
    times = os.stat(folder / "part-0")
    changed = (await site.take(folder)).root
    (folder / "part-0" / "extra").unlink()
    os.utime(folder / "part-0", ns=(0, 5))
    after = (await site.take(folder)).root

    (tmp_path / "other").mkdir()
    other = Site(tmp_path / "other")
    fresh = (await other.take(folder, memo=False)).root
    other.store.close()
    assert changed != before and times.st_mtime_ns != 5
    assert after == fresh


async def test_an_unchanged_tree_is_not_opened_again(site: Site, folder: Path, opened: list[bytes]) -> None:
    fill(folder)
    (folder / "large").write_bytes(os.urandom(1_000_000))
    first = await site.take(folder)
    assert len(opened) == 41
    opened.clear()

    second = await site.take(folder)

    assert opened == []
    assert (second.root, second.files_unopened, second.bytes_read, second.blocks_new) == (first.root, 41, 0, 0)
    assert second.bytes_unchanged == second.size_bytes == first.size_bytes


async def test_only_what_changed_is_opened(site: Site, folder: Path, opened: list[bytes]) -> None:
    fill(folder)
    await site.take(folder)
    (folder / "part-1" / "file-6").write_bytes(b"other")
    (folder / "part-1" / "file-11").chmod(0o600)
    (folder / "part-1" / "file-16").rename(folder / "part-1" / "moved")
    opened.clear()

    taken = await site.take(folder)

    assert sorted(opened) == [b"file-11", b"file-6", b"moved"]
    assert taken.root == (await site.take(folder, memo=False)).root


async def test_a_file_touched_just_before_the_scan_is_read_again_next_time(
    site: Site, folder: Path, opened: list[bytes]
) -> None:
    fill(folder, 3)
    site.clock.ns = time.time_ns()
    await site.take(folder)
    opened.clear()

    await site.take(folder)

    assert len(opened) == 3


async def test_a_file_whose_block_is_damaged_in_the_store_is_read_again_and_heals_it(
    site: Site, folder: Path, opened: list[bytes]
) -> None:
    fill(folder)
    (folder / "large").write_bytes(os.urandom(3_000_000))
    first = await site.take(folder)
    found = await site.entries(first.root)
    small = found[b"part-3/file-33"].block_ids()[0]
    pieces = [value async for _, value in entries(site, BlockId(found[b"large"].pieces_root), Shape.PIECES)]
    victims = [small, BlockId(pieces[7][:32]), BlockId(found[b"large"].pieces_root)]
    opened.clear()

    for victim in victims:
        site.lose(victim)
        second = await site.take(folder)
        assert second.root == first.root and second.blocks_new == 1
        assert not site.store.read([victim]).faults

    assert opened == [b"file-33", b"large", b"large"]


async def test_a_collected_block_is_written_again(site: Site, folder: Path) -> None:
    fill(folder)
    first = await site.take(folder)
    collect(site.store, [])
    collect(site.store, [])
    assert site.store.statistics().blocks == 0

    second = await site.take(folder)

    assert second.root == first.root and second.blocks_new == first.blocks_new


@pytest.mark.parametrize("harm", ["cut", "flip", "absent", "other sizes"])
async def test_a_damaged_memo_costs_reading_and_nothing_else(site: Site, folder: Path, harm: str) -> None:
    fill(folder)
    (folder / "large").write_bytes(os.urandom(100_000))
    first = await site.take(folder)
    content = bytearray(site.memo.read_bytes())
    content[len(content) // 2] ^= harm == "flip"
    site.memo.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    if harm == "absent":
        site.memo.unlink()
    config = IngestConfig() if harm == "other sizes" else SMALL

    second = await site.take(folder, config=config)

    assert second.files_unopened == 0
    assert second.size_bytes == first.size_bytes
    assert (second.root == first.root) == (harm != "other sizes")
