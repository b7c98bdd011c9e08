"""Past the page cache: whichever way bytes go, they are the same bytes."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.core import direct
from replicator.core.direct import LONG_RUN_BYTES, PAGE, LongWriter, aligned, open_direct, page_span, read_long
from replicator.store import reading
from replicator.store.reading import SegmentReader
from replicator.store.segments import SegmentFiles
from replicator.store.sums import SumFiles
from tests.support.blocks import sealed_blocks

LONG = LONG_RUN_BYTES
SIZES = (1, 56, PAGE - 1, PAGE, PAGE + 1, 70_000, LONG - 1, LONG, 3 * LONG + 17, 9_000_001)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, int, Path]]:
    path = tmp_path / "file"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    past = open_direct(path, os.O_RDWR)
    if past is None:
        pytest.skip("this file system knows no O_DIRECT")
    yield handle, past, path
    os.close(handle)
    os.close(past)


def test_runs_one_after_the_other_are_the_file_that_a_plain_write_makes(file: tuple[int, int, Path]) -> None:
    handle, past, path = file
    chance, writer, expected = random.Random(1), LongWriter(), bytearray(os.urandom(64))
    os.pwrite(handle, expected, 0)
    for _ in range(3):
        for size in chance.sample(SIZES, len(SIZES)):
            data = chance.randbytes(size)
            cuts = sorted(chance.randrange(size + 1) for _ in range(5))
            run = [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
            writer.write(handle, past, run, len(expected))
            expected += data
            assert os.fstat(handle).st_size == len(expected)
    assert path.read_bytes() == expected
    for _ in range(200):
        at, size = chance.randrange(len(expected) + 10), chance.choice(SIZES)
        assert read_long(handle, past, size, at) == expected[at : at + size]
        room = aligned(page_span(size, at))
        assert read_long(handle, past, size, at, into=room) == expected[at : at + size]


def test_long_runs_do_go_past_the_cache(file: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    handle, past, _ = file
    used: list[int] = []
    real = os.pwrite
    monkeypatch.setattr(direct.os, "pwrite", lambda h, data, at: (used.append(h), real(h, data, at))[1])
    LongWriter().write(handle, past, [bytes(4 * LONG_RUN_BYTES)], 100)
    assert past in used


@pytest.mark.parametrize("mood", ["short", "odd", "nothing", "einval"])
def test_a_kernel_that_does_less_than_asked_costs_no_byte(
    file: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch, mood: str
) -> None:
    handle, past, path = file
    real_write, real_read, calls = os.pwrite, os.preadv, 0
    shares = {"short": 2 * PAGE, "odd": 2 * PAGE + 100, "nothing": 0}

    def write(to: int, data: memoryview, at: int) -> int:
        nonlocal calls
        if to != past or calls:
            return real_write(to, data, at)
        calls += 1
        if mood == "einval":
            raise OSError(errno.EINVAL, "not here")
        # What is written past the cache must be whole pages; the rest of an odd one reaches the disk all the same.
        return real_write(handle, data[: shares[mood]], at) if shares[mood] else 0

    def read(of: int, into: list[memoryview], at: int) -> int:
        nonlocal calls
        if of != past or calls > 1:
            return real_read(of, into, at)
        calls += 1
        if mood == "einval":
            raise OSError(errno.EINVAL, "not here")
        return real_read(handle, [into[0][: shares[mood]]], at) if shares[mood] else 0

    monkeypatch.setattr(direct.os, "pwrite", write)
    monkeypatch.setattr(direct.os, "preadv", read)
    data = random.Random(2).randbytes(3 * LONG_RUN_BYTES + 5)
    LongWriter().write(handle, past, [data], 77)
    assert calls == 1 and path.read_bytes()[77:] == data
    assert read_long(handle, past, len(data), 77) == data
    assert calls == 2


def test_an_error_of_the_disk_is_not_taken_for_a_lack_of_o_direct(
    file: tuple[int, int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, past, _ = file

    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "a bad sector")

    monkeypatch.setattr(direct.os, "pwrite", refuse)
    monkeypatch.setattr(direct.os, "preadv", refuse)
    with pytest.raises(OSError, match="a bad sector"):
        LongWriter().write(handle, past, [bytes(4 * LONG_RUN_BYTES)], 0)
    with pytest.raises(OSError, match="a bad sector"):
        read_long(handle, past, LONG_RUN_BYTES, 0)


def test_where_nothing_goes_past_the_cache_segments_are_the_same(tmp_path: Path) -> None:
    blocks = sealed_blocks(*range(1, 80, 2), size=60_000)
    for name, past_cache in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        files = SegmentFiles(tmp_path / name, sums=SumFiles(tmp_path), segment_bytes_max=1 << 20, past_cache=past_cache)
        files.append(blocks)
        assert past_cache or files.open_past_cache(1) is None
        files.close()
    names = sorted(path.name for path in (tmp_path / "with").iterdir())
    assert len(names) > 2 and names == sorted(path.name for path in (tmp_path / "without").iterdir())
    for one in names:
        assert (tmp_path / "with" / one).read_bytes() == (tmp_path / "without" / one).read_bytes()


def test_a_run_that_is_in_the_cache_is_read_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SegmentFiles(tmp_path, sums=SumFiles(tmp_path), segment_bytes_max=1 << 24)
    files.append(sealed_blocks(*range(1, 40, 2), size=60_000))
    past, size = [], files.size(1)
    real = reading.read_long
    monkeypatch.setattr(reading, "read_long", lambda *args, **more: (past.append(1), real(*args, **more))[1])
    for is_cold in (True, False):
        handle = files.open_to_read(1)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        if not is_cold:
            os.pread(handle, size, 0)
        os.close(handle)
        past.clear()
        with SegmentReader(files, 1) as reader:
            assert len(reader.read(size - 64, 64)) == size - 64
        assert bool(past) is is_cold
    files.close()
