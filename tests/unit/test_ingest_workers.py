"""Small files that worker processes read: the same snapshot, whatever becomes of a process."""

import os
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.ids import BlockId
from protocol.wire.envelope import seal
from protocol.wire.hashing import Kind, block_id
from replicator.core.errors import StoreError
from replicator.ingest import reading, worker_process, workers
from replicator.ingest.reading import Content
from replicator.ingest.still import stamp
from replicator.ingest.workers import Worker, WorkerGone
from tests.support.alone import SMALL, Site

WORKERS = replace(SMALL, workers_max=2, worker_from_files=0, batch_files=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything that a small file can be, often enough for some batches."""
    folder = tmp_path / "folder"
    for number in range(120):
        path = folder / f"part-{number % 3}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d " % number * (number * 17 + 1))
        path.chmod(0o600 + number % 64)
    (folder / "part-1" / "twice").hardlink_to(folder / "part-0" / "file-0")
    (folder / "part-1" / "empty").touch()
    (folder / "part-1" / "zeros").write_bytes(bytes(3 * SMALL.piece_bytes_min))
    (folder / "part-1" / "pieces").write_bytes(os.urandom(40_000))
    (folder / "part-1" / os.fsdecode(b"no text \xff")).write_bytes(b"x")
    with (folder / "part-2" / "sparse").open("wb") as file:
        file.seek(10 * SMALL.piece_bytes_min)
        file.write(b"end")
    return folder


@pytest.fixture
def worker(folder: Path) -> Iterator[Worker]:
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    worker = Worker(root, WORKERS, hole_before_ns=time.time_ns())
    yield worker
    worker.end()
    os.close(root)


async def root_without(site: Site, folder: Path) -> BlockId:
    return (await site.take(folder, memo=False)).root


async def test_what_workers_read_is_what_would_have_been_read_here(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.setxattr(folder / "part-0" / "file-3", "user.colour", b"green")
    expected = await site.take(folder, memo=False)
    opened: list[bytes] = []
    real = reading.open_file

    def noting(folders: reading.Folders, key: bytes) -> int:
        opened.append(key)
        return real(folders, key)

    monkeypatch.setattr(reading, "open_file", noting)
    fresh = Site(site.memo.parent.parent / "other")
    taken = await fresh.take(folder, config=WORKERS)
    assert replace(taken, blocks_new=0, bytes_new=0) == replace(expected, blocks_new=0, bytes_new=0)
    assert len(opened) < 30, "all but the rest of a few were opened elsewhere"
    assert (await fresh.entries(taken.root)) == (await site.entries(expected.root))
    fresh.store.close()


async def test_a_worker_that_is_killed_in_the_middle_costs_nothing(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker.read
    killed: list[int] = []

    def killing(self: Worker, keys: list[bytes]) -> list[Content | OSError | None]:
        if not killed:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return real(self, keys)

    monkeypatch.setattr(Worker, "read", killing)
    taken = await site.take(folder, config=WORKERS)
    assert killed
    assert taken.root == await root_without(site, folder)
    assert not taken.skipped


async def test_a_worker_that_dies_between_reading_and_packing_costs_nothing(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(self: Worker, _names: list[BlockId]) -> None:
        self._process.kill()
        raise WorkerGone("in the middle")

    monkeypatch.setattr(Worker, "seal", dying)
    taken = await site.take(folder, config=WORKERS)
    assert taken.root == await root_without(site, folder)


async def test_without_a_program_to_start_the_files_are_read_here_and_it_is_tried_once(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    real = Worker.__init__

    def trying(self: Worker, root: int, config: object, *, hole_before_ns: int) -> None:
        tried.append(root)
        real(self, root, WORKERS, hole_before_ns=hole_before_ns)

    monkeypatch.setattr(Worker, "__init__", trying)
    monkeypatch.setattr(workers.sys, "executable", "/there/is/no/python")
    taken = await site.take(folder, config=replace(WORKERS, workers_max=1))
    assert taken.root == await root_without(site, folder)
    assert len(tried) == 1


async def test_no_process_is_left_after_a_snapshot(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Worker] = []
    real = Worker.__init__

    def noting(self: Worker, root: int, config: object, *, hole_before_ns: int) -> None:
        real(self, root, WORKERS, hole_before_ns=hole_before_ns)
        started.append(self)

    monkeypatch.setattr(Worker, "__init__", noting)
    await site.take(folder, config=WORKERS)
    assert started
    assert [one._process.poll() for one in started] == [0] * len(started)


async def test_few_files_start_no_process(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.sys, "executable", "/there/is/no/python")
    monkeypatch.setattr(workers.Workers, "_take", lambda _self: pytest.fail("a process is not worth its start"))
    await site.take(folder, config=replace(WORKERS, worker_from_files=10_000))


def test_a_process_ends_when_the_other_side_does(worker: Worker) -> None:
    worker._link.close()
    assert worker._process.wait(timeout=20) == 0


def test_each_file_is_told_as_it_was_read(folder: Path, worker: Worker) -> None:
    (folder / "grown").write_bytes(bytes(range(256)) * 2048)  # Larger than a batch.
    told = worker.read([b"part-1\0file-1", b"gone", b"grown", b"part-1\0empty"])
    content, gone, grown, empty = told
    assert isinstance(content, Content) and isinstance(empty, Content)
    status = os.stat(folder / "part-1" / "file-1")
    assert stamp(content.status) == stamp(status)
    assert content.status.st_blocks == status.st_blocks and content.status.st_nlink == status.st_nlink
    assert stat.S_IMODE(content.status.st_mode) == stat.S_IMODE(status.st_mode)
    body = (folder / "part-1" / "file-1").read_bytes()
    assert content.pieces.ids == [block_id(Kind.DATA, body)] and content.pieces.size == len(body)
    assert [bytes(block.sealed) for block in worker.seal(content.pieces.ids)] == [seal(Kind.DATA, body)]
    assert isinstance(gone, FileNotFoundError)
    assert grown is None
    assert empty.pieces.ids == []


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, worker: Worker) -> None:
    (folder / "way-out").symlink_to("/etc")
    assert isinstance(worker.read([b"way-out\0hostname"])[0], OSError)


def test_blocks_that_come_back_in_another_order_are_not_taken(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [content.pieces.ids[0] for content in worker.read([b"part-0\0file-3", b"part-1\0file-1"])]  # type: ignore[union-attr]
    real = Worker._tell
    monkeypatch.setattr(Worker, "_tell", lambda self, _message: real(self, ["seal", names[1] + names[0]]))
    with pytest.raises(StoreError, match="another came back"):
        worker.seal(names)


def test_a_block_that_is_damaged_on_its_way_is_not_taken(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [content.pieces.ids[0] for content in worker.read([b"part-0\0file-3", b"part-1\0file-1"])]  # type: ignore[union-attr]
    run = worker_process.receive

    def flipped(link: object) -> bytearray:
        message = run(link)  # type: ignore[arg-type]
        assert message is not None
        if message:
            message[20] ^= 1  # in the id of the first block
        return message

    monkeypatch.setattr(workers, "receive", flipped)
    with pytest.raises(StoreError, match="survive"):
        worker.seal(names)
