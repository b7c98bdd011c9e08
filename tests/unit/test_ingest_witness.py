"""An image that nobody wrote is not read again; any doubt, and it is."""

import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from replicator.ingest import image, witness
from replicator.ingest.config import IngestConfig
from replicator.ingest.sources import ImageSource, Taken
from tests.support.alone import Site

BLOCK = 65536
CONFIG = IngestConfig(batch_bytes=4 * BLOCK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    if not witness.tells_every_write(tmp_path.stat().st_dev):
        pytest.skip("the tests run on a file system whose times prove nothing")
    path = tmp_path / "image"
    path.write_bytes(os.urandom(20 * BLOCK) + bytes(BLOCK))
    return path


async def take(site: Site, path: Path, *, config: IngestConfig = CONFIG) -> Taken:
    return await site.take(ImageSource(path=path), config=config)


async def test_an_image_that_nobody_wrote_is_not_read_again(site: Site, path: Path) -> None:
    first = await take(site, path)
    again = await take(site, path)
    assert (again.root, again.entries, again.size_bytes) == (first.root, 20, 21 * BLOCK)
    assert (again.bytes_read, again.bytes_unchanged, again.blocks_new) == (0, 21 * BLOCK, 0)


def write_and_put_the_times_back(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"changed")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


async def test_a_write_whose_author_puts_the_times_back_is_seen(site: Site, path: Path) -> None:
    first = await take(site, path)
    write_and_put_the_times_back(path)
    second = await take(site, path)
    assert second.root != first.root and second.bytes_read == 21 * BLOCK


async def test_a_store_into_a_page_that_was_dirty_before_the_first_reading_is_seen(site: Site, path: Path) -> None:
    """Such a store moves no time, unless the page was flushed in between."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[5] ^= 1
        first = await take(site, path)
        await trio.sleep(0.02)  # Times tick each four milliseconds.
        memory[5] ^= 1
        second = await take(site, path)
    assert second.root != first.root


async def test_an_image_touched_just_now_is_not_believed(site: Site, path: Path) -> None:
    later = site.clock.ns
    site.clock.ns = time.time_ns()
    await take(site, path)
    site.clock.ns = later
    assert (await take(site, path)).bytes_read == 21 * BLOCK


async def test_an_image_that_changes_while_it_is_read_is_not_believed(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def racing(handle: int, buffers: list[memoryview], offset: int) -> int:
        count = real(handle, buffers, offset)
        with path.open("r+b") as file:
            file.write(b"late")
        return count

    with monkeypatch.context() as racy:
        racy.setattr(image.os, "preadv", racing)
        await take(site, path)
    assert (await take(site, path)).bytes_read == 21 * BLOCK


async def test_what_the_store_lost_is_read_and_written_again(site: Site, path: Path) -> None:
    first = await take(site, path)
    site.lose(first.root)
    again = await take(site, path)
    assert (again.root, again.blocks_new, again.bytes_read) == (first.root, 1, 21 * BLOCK)


async def test_a_restart_of_the_machine_ends_all_belief(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await take(site, path)
    monkeypatch.setattr(image, "boot_id", lambda: "another")
    assert (await take(site, path)).bytes_read == 21 * BLOCK
    assert (await take(site, path)).bytes_read == 0


async def test_times_of_other_file_systems_are_not_believed(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "_FILE_SYSTEMS", frozenset(("nfs4",)))
    await take(site, path)
    assert (await take(site, path)).bytes_read == 21 * BLOCK


async def test_a_damaged_sidecar_is_no_sidecar(site: Site, path: Path) -> None:
    await take(site, path)
    content = bytearray(site.memo.read_bytes())
    for at in range(len(content)):
        site.memo.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert witness.load_seen(site.memo) is None
    assert (await take(site, path)).bytes_read == 21 * BLOCK


async def test_another_block_size_is_another_map(site: Site, path: Path) -> None:
    await take(site, path)
    other = await take(site, path, config=IngestConfig(image_block_bytes=2 * BLOCK, batch_bytes=4 * BLOCK))
    assert other.bytes_read == 21 * BLOCK


@pytest.fixture
def device(path: Path) -> Iterator[Path]:
    if os.geteuid() or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup")
    made = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("no loop device to be had")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


async def test_a_block_device_is_always_read(site: Site, device: Path) -> None:
    first = await take(site, device)
    again = await take(site, device)
    assert first.root == again.root and again.bytes_read == 21 * BLOCK
