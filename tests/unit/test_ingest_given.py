"""Sources in memory: cut, stored and given back as if they had lain on a disk."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.ids import BlockId
from replicator.catalog.manifest.entries import PIECES_INLINE_MAX
from replicator.core.errors import NotFound, SourceError
from replicator.core.ports import SystemClock, ThreadOffload
from replicator.core.progress import Progress
from replicator.ingest.config import IngestConfig
from replicator.ingest.pipeline import take
from replicator.ingest.sources import GivenImage, GivenPath, GivenTree, ImageSource, Source, Taken, TreeSource
from replicator.repair.reader import HealingReader
from replicator.restore.memory import read_image, read_tree
from replicator.store.memory import MemoryStore
from tests.support.clocks import FakeMonotonic

FILE, LINK = stat.S_IFREG | 0o640, stat.S_IFLNK | 0o777
SMALL = IngestConfig(
    image_block_bytes=4096, piece_bytes_min=1024, piece_bytes_beyond_min=2048, piece_bytes_max=8192, batch_bytes=16384
)
pytestmark = pytest.mark.anyio


class Bench:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.reader = HealingReader(self.store, offload=ThreadOffload(), healer=None)

    async def take(self, source: Source) -> Taken:
        return await take(
            source, store=self.store, lease=self.store.begin("test"), offload=ThreadOffload(),
            progress=Progress(clock=FakeMonotonic()), clock=SystemClock(), memo=None, config=SMALL,
        )  # fmt: skip

    def block_ids(self) -> set[BlockId]:
        packed = b"".join(self.store.ids())
        return {BlockId(packed[at : at + 32]) for at in range(0, len(packed), 32)}


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield Bench()


def tree_of(*paths: GivenPath) -> GivenTree:
    return GivenTree(paths=lambda: paths)


def files(**contents: bytes) -> Callable[[], list[GivenPath]]:
    return lambda: [GivenPath(path=name.encode(), mode=FILE, content=body) for name, body in contents.items()]


async def test_a_tree_comes_back_with_its_modes_times_and_links(bench: Bench) -> None:
    taken = await bench.take(
        tree_of(
            GivenPath(path=b"b/deep/file", mode=FILE, mtime_ns=7, content=b"x" * 20_000),
            GivenPath(path=b"a", mode=LINK, target=b"b/deep"),
            GivenPath(path=b"empty", mode=FILE),
        )
    )
    found = await read_tree(bench.reader, taken.root)
    assert list(found) == [b"", b"a", b"b", b"b/deep", b"b/deep/file", b"empty"], "folders on the way are made up"
    entry, content = found[b"b/deep/file"]
    assert (entry.mode, entry.mtime_ns, content) == (FILE, 7, b"x" * 20_000)
    assert found[b"a"][0].target == b"b/deep" and found[b"empty"][1] == b""
    assert (taken.entries, taken.size_bytes) == (6, 20_000)


async def test_a_file_of_many_pieces_has_a_map_of_its_own(bench: Bench) -> None:
    body = os.urandom(8192 * (PIECES_INLINE_MAX + 20))
    taken = await bench.take(tree_of(GivenPath(path=b"large", mode=FILE, content=body)))
    entry, content = (await read_tree(bench.reader, taken.root))[b"large"]
    assert entry.pieces_root and content == body


async def test_what_lies_on_a_disk_too_is_cut_alike(bench: Bench, tmp_path: Path) -> None:
    body = os.urandom(200_000) + bytes(50_000) + os.urandom(10)
    (tmp_path / "file").write_bytes(body)
    await bench.take(TreeSource(path=tmp_path))
    before = bench.block_ids()
    taken = await bench.take(tree_of(GivenPath(path=b"file", mode=FILE, content=body)))
    assert len(bench.block_ids() - before) <= 1, "no more than the manifest's node is new"
    assert (await read_tree(bench.reader, taken.root))[b"file"][1] == body


async def test_an_image_has_the_same_root_from_memory_and_from_a_file(bench: Bench, tmp_path: Path) -> None:
    body = os.urandom(3 * 4096) + bytes(5 * 4096) + os.urandom(100)
    (tmp_path / "disk").write_bytes(body)
    from_file = await bench.take(ImageSource(path=tmp_path / "disk"))
    given = await bench.take(GivenImage(content=lambda: body))
    assert (given.root, given.entries, given.size_bytes) == (from_file.root, from_file.entries, from_file.size_bytes)
    assert await read_image(bench.reader, given.root, size_bytes=len(body), block_bytes=4096) == body


async def test_equal_content_has_an_equal_root_whatever_the_order_it_is_given_in(bench: Bench) -> None:
    one = await bench.take(GivenTree(paths=files(a=b"1", b=b"2")))
    other = await bench.take(GivenTree(paths=files(b=b"2", a=b"1")))
    assert one.root == other.root and other.blocks_new == 0


async def test_a_path_below_a_file_is_refused(bench: Bench) -> None:
    with pytest.raises(SourceError, match="not a folder"):
        await bench.take(tree_of(GivenPath(path=b"a", mode=FILE), GivenPath(path=b"a/b", mode=FILE)))


async def test_one_path_of_a_tree_can_be_read_alone(bench: Bench) -> None:
    taken = await bench.take(GivenTree(paths=files(a=b"1", b=b"2")))
    assert list(await read_tree(bench.reader, taken.root, only=b"b")) == [b"b"]
    with pytest.raises(NotFound):
        await read_tree(bench.reader, taken.root, only=b"c")
