"""Taking images and getting them back."""

import os
import random
import time
from pathlib import Path

import pytest

from protocol.ids import BlockId
from replicator.catalog.manifest.nodes import EMPTY_ROOTS, Shape, key_number
from replicator.catalog.manifest.walk import entries
from replicator.core.errors import SourceError
from replicator.ingest import image
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import ImageSource, Taken
from tests.support.alone import SMALL, Site

BLOCK = 65536
CONFIG = IngestConfig(batch_bytes=4 * BLOCK)


async def take_image(site: Site, path: Path) -> Taken:
    return await site.take(ImageSource(path=path), config=CONFIG)


async def blocks(site: Site, root: BlockId) -> dict[int, bytes]:
    return {key_number(key): value async for key, value in entries(site, root, Shape.NUMBERS)}


async def test_blocks_of_zeros_are_left_out_and_the_last_one_is_short(site: Site, tmp_path: Path) -> None:
    content = os.urandom(BLOCK) + bytes(10 * BLOCK) + os.urandom(3 * BLOCK) + b"end"
    (tmp_path / "image").write_bytes(content)

    taken = await take_image(site, tmp_path / "image")
    found = await blocks(site, taken.root)

    assert list(found) == [0, 11, 12, 13, 14]
    assert (taken.size_bytes, taken.entries, taken.bytes_read) == (len(content), 5, len(content))
    assert (await site.read([BlockId(found[14])]))[BlockId(found[14])] == b"end"


async def test_an_image_of_nothing_is_an_empty_map(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "zeros").write_bytes(bytes(5 * BLOCK + 1))
    assert (await take_image(site, tmp_path / "empty")).root == EMPTY_ROOTS[Shape.NUMBERS]
    assert (await take_image(site, tmp_path / "zeros")).root == EMPTY_ROOTS[Shape.NUMBERS]


async def test_one_percent_of_change_writes_one_percent(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(300 * BLOCK))
    first = await take_image(site, path)
    with path.open("r+b") as file:
        for number in random.Random(1).sample(range(300), 3):
            file.seek(number * BLOCK + 17)
            file.write(b"changed")

    second = await take_image(site, path)

    nodes_max = 4
    assert 3 < second.blocks_new <= 3 + nodes_max and second.root != first.root
    assert second.bytes_unchanged == 297 * BLOCK


async def test_the_root_does_not_depend_on_history(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "image"
    content = os.urandom(20 * BLOCK)
    path.write_bytes(os.urandom(33 * BLOCK))
    await take_image(site, path)
    path.write_bytes(content)

    assert (await take_image(site, path)).root == (await take_image(site, path)).root
    other = Site(tmp_path / "other")
    assert (await take_image(other, path)).root == (await take_image(site, path)).root
    other.store.close()


async def test_a_block_that_the_store_lost_is_written_again(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(9 * BLOCK))
    first = await take_image(site, path)
    for victim in (BlockId((await blocks(site, first.root))[4]), first.root):
        site.lose(victim)
        second = await take_image(site, path)
        assert (second.root, second.blocks_new) == (first.root, 1)


def sparse_image(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1000 * BLOCK + 5)
        file.seek(500 * BLOCK + 100)
        file.write(b"data")


async def test_holes_of_an_image_that_holds_still_are_not_read(site: Site, tmp_path: Path) -> None:
    sparse_image(tmp_path / "image")
    taken = await take_image(site, tmp_path / "image")
    assert list(await blocks(site, taken.root)) == [500]
    assert taken.bytes_read <= SMALL.image_batch_bytes


async def test_holes_of_an_image_touched_just_now_are_read_with_the_same_root(site: Site, tmp_path: Path) -> None:
    sparse_image(tmp_path / "image")
    trusting = await take_image(site, tmp_path / "image")
    site.clock.ns = time.time_ns()
    reading = await take_image(site, tmp_path / "image")
    assert reading.root == trusting.root and reading.bytes_read == reading.size_bytes


async def test_an_image_that_changes_meanwhile_is_read_again_without_believing_in_holes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    sparse_image(path)
    real, done = os.lseek, []

    def racing(handle: int, offset: int, whence: int) -> int:
        found = real(handle, offset, whence)
        if whence == os.SEEK_DATA and not done:
            done.append(offset)
            with path.open("r+b") as file:  # Behind the back of the one who was just told: a hole.
                file.seek(3 * BLOCK)
                file.write(b"late")
        return found

    monkeypatch.setattr(image.os, "lseek", racing)
    taken = await take_image(site, path)

    assert list(await blocks(site, taken.root)) == [3, 500]
    assert taken.bytes_read == taken.size_bytes
    assert taken.changed_while_read == (os.fsencode(path),)


async def test_an_image_that_shrinks_meanwhile_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(40 * BLOCK))
    real = os.preadv

    def cutting(handle: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(path, 10 * BLOCK)
        return real(handle, buffers, offset)

    monkeypatch.setattr(image.os, "preadv", cutting)
    with pytest.raises(SourceError, match="shorter"):
        await take_image(site, path)


@pytest.mark.parametrize("kind", ["folder", "absent", "pipe"])
async def test_what_is_no_image_is_refused_with_a_hint(site: Site, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(SourceError) as refused:
        await take_image(site, path)
    assert refused.value.hint
