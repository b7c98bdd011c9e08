"""Restoring images: every byte, the holes, and nothing half-done under the final name."""

import errno
import os
import random
from pathlib import Path

import pytest

from protocol.ids import BlockId
from protocol.wire.hashing import Kind
from replicator.catalog.manifest.editor import MapEditor
from replicator.catalog.manifest.nodes import Shape, key_number, number_key
from replicator.catalog.manifest.walk import entries
from replicator.core.errors import BlockMissing, ManifestDamaged, SourceError, TargetFull
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import ImageSource, Taken
from replicator.restore import image
from replicator.restore.image import restore_image
from tests.support.alone import Site
from tests.support.blocks import from_body
from tests.support.store import put

BLOCK = 65536


async def restore(site: Site, taken: Taken, target: Path, *, overwrite: bool = False) -> None:
    await restore_image(
        site,
        taken.root,
        target,
        size_bytes=taken.size_bytes,
        block_bytes=BLOCK,
        overwrite=overwrite,
        offload=site.offload,
        progress=site.progress,
    )


def image_of(path: Path, content: bytes) -> ImageSource:
    path.write_bytes(content)
    return ImageSource(path=path)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 7 * BLOCK - 1, 200 * BLOCK + 12345])
async def test_an_image_of_any_size_comes_back(site: Site, tmp_path: Path, size: int) -> None:
    content = os.urandom(size // 2) + bytes(size - size // 2)
    taken = await site.take(image_of(tmp_path / "image", content), config=IngestConfig())
    await restore(site, taken, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


async def test_runs_of_zeros_come_back_as_holes(site: Site, tmp_path: Path) -> None:
    content = bytes(400 * BLOCK) + b"middle" + bytes(400 * BLOCK)
    taken = await site.take(image_of(tmp_path / "image", content), config=IngestConfig())
    await restore(site, taken, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert (tmp_path / "back").stat().st_blocks * 512 <= 2 * BLOCK


async def test_a_file_that_is_there_is_replaced_only_if_asked(site: Site, tmp_path: Path) -> None:
    taken = await site.take(image_of(tmp_path / "image", b"new"), config=IngestConfig())
    (tmp_path / "back").write_bytes(b"old and longer")
    with pytest.raises(SourceError, match="exists"):
        await restore(site, taken, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"old and longer"
    await restore(site, taken, tmp_path / "back", overwrite=True)
    assert (tmp_path / "back").read_bytes() == b"new"


async def test_a_missing_block_leaves_what_was_there(site: Site, tmp_path: Path) -> None:
    taken = await site.take(image_of(tmp_path / "image", os.urandom(300 * BLOCK)), config=IngestConfig())
    found = {key_number(key): value async for key, value in entries(site, taken.root, Shape.NUMBERS)}
    site.lose(BlockId(found[250]))
    (tmp_path / "back").write_bytes(b"old")
    with pytest.raises(BlockMissing):
        await restore(site, taken, tmp_path / "back", overwrite=True)
    assert (tmp_path / "back").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["back", "image", "site"]


@pytest.mark.parametrize(("number", "body"), [(3, b"x"), (2**40, b"x"), (0, b"too short"), (2, b"longer than it")])
async def test_a_map_that_contradicts_the_size_is_refused(site: Site, tmp_path: Path, number: int, body: bytes) -> None:
    nodes: list[bytes] = []
    editor = MapEditor(Shape.NUMBERS, lambda _, node: nodes.append(node), reader=None, base=None)
    block = from_body(body)
    await editor.put(number_key(number), block.header.block_id)
    root = await editor.finish()
    put(site.store, [block, *(from_body(node, kind=Kind.NODE) for node in nodes)])
    with pytest.raises(ManifestDamaged):
        await restore_image(
            site,
            root,
            tmp_path / "back",
            size_bytes=2 * BLOCK + 5,
            block_bytes=BLOCK,
            overwrite=False,
            offload=site.offload,
            progress=site.progress,
        )
    assert not (tmp_path / "back").exists()


async def test_what_is_no_file_is_never_replaced_by_one(site: Site, tmp_path: Path) -> None:
    taken = await site.take(image_of(tmp_path / "image", b"new"), config=IngestConfig())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(SourceError, match="neither a file nor a block device"):
            await restore(site, taken, target, overwrite=True)
    assert (tmp_path / "pipe").is_fifo()


async def test_a_file_beside_the_target_that_is_somebody_elses_stays(site: Site, tmp_path: Path) -> None:
    taken = await site.take(image_of(tmp_path / "image", b"new"), config=IngestConfig())
    (tmp_path / "back.part").write_bytes(b"mine")
    await restore(site, taken, tmp_path / "back")
    assert (tmp_path / "back.part").read_bytes() == b"mine"
    await restore(site, taken, tmp_path / ("n" * 255))


async def test_no_room_is_said_as_that_and_leaves_nothing_behind(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = await site.take(image_of(tmp_path / "image", b"new"), config=IngestConfig())
    monkeypatch.setattr(image.LongWriter, "write", no_room)
    with pytest.raises(TargetFull, match=str(tmp_path)):
        await restore(site, taken, tmp_path / "back")
    assert sorted(os.listdir(tmp_path)) == ["image", "site"]


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_long_and_short_runs_with_holes_between_come_back_as_they_were(site: Site, tmp_path: Path) -> None:
    chance = random.Random(7)
    parts = [
        chance.randbytes(size) if n % 2 else bytes(size) for n, size in enumerate((70_000, 900_001, 3, 65_536, 10))
    ]
    data = b"".join(parts * 3)
    taken = await site.take(image_of(tmp_path / "image", data), config=IngestConfig())
    await restore(site, taken, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
