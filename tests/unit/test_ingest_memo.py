"""The memo of a tree: written and read a folder at a time, and nothing else is believed."""

import errno
import os
import tracemalloc
from pathlib import Path

import pytest

from protocol.ids import BlockId
from replicator.ingest import memo
from replicator.ingest.config import IngestConfig
from replicator.ingest.memo import MemoReader, MemoWriter
from replicator.ingest.sources import TreeSource

CONFIG, SOURCE, ROOT = IngestConfig(), TreeSource(path=Path("/somewhere")), BlockId(b"r" * 32)
FOLDERS, FILES = 800, 50


def stamp(number: int) -> bytes:
    return number.to_bytes(40, "little")


def key(folder: int, file: int | None = None) -> bytes:
    above = b"folder-%06d" % folder
    return above if file is None else above + b"\0file-%06d" % file


def write(path: Path) -> MemoWriter:
    writer = MemoWriter(path, CONFIG, SOURCE, incomplete=set())
    writer.add_folder(b"", stamp(1))
    for folder in range(FOLDERS):
        writer.add_folder(key(folder), stamp(folder + 2))
        for file in range(FILES):
            writer.add_file(
                key(folder, file), stamp(file + 1), b"e" * 150, ids=[bytes([file]) * 32], root=b"", size=9, again=False
            )
        if writer.is_full:
            writer.flush()
    writer.save(ROOT)
    return writer


def test_it_is_read_as_it_was_written_and_neither_takes_the_memory_of_the_whole(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write(tmp_path / "memo")
        size = (tmp_path / "memo").stat().st_size
        assert tracemalloc.get_traced_memory()[1] < size / 2
        tracemalloc.reset_peak()
        reader, seen = MemoReader(tmp_path / "memo", CONFIG, SOURCE), 0
        assert reader.root == ROOT and reader.find(b"") is not None
        for folder in range(FOLDERS):
            known = reader.find(key(folder))
            assert known is not None and known.stamp == stamp(folder + 2) and known.files == FILES
            seen += len(known.files_known())
        reader.end()
        assert seen == FOLDERS * FILES and not reader.has_skipped
        reader.close()
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()
    assert os.listdir(tmp_path) == ["memo"]


def test_records_that_are_kept_are_the_same_in_the_next_memo(tmp_path: Path) -> None:
    write(tmp_path / "memo")
    reader, writer = (
        MemoReader(tmp_path / "memo", CONFIG, SOURCE),
        MemoWriter(tmp_path / "next", CONFIG, SOURCE, incomplete=set()),
    )
    for name in [b"", *map(key, range(FOLDERS))]:
        known = reader.find(name)
        assert known is not None
        writer.keep(known)
    writer.save(ROOT)
    reader.close()
    one, other = (MemoReader(tmp_path / name, CONFIG, SOURCE) for name in ("memo", "next"))
    for name in [b"", *map(key, range(FOLDERS))]:
        assert one.find(name) == other.find(name) is not None


def test_a_memo_that_is_given_up_or_cannot_be_written_leaves_nothing_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = MemoWriter(tmp_path / "memo", CONFIG, SOURCE, incomplete=set())
    writer.add_folder(b"", stamp(1))
    writer.add(b"a", stamp(2))
    writer.flush()
    writer.discard()
    assert os.listdir(tmp_path) == []
    write(tmp_path / "memo")
    before = (tmp_path / "memo").read_bytes()

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(memo.os, "write", full)
    write(tmp_path / "memo")
    monkeypatch.undo()
    assert (tmp_path / "memo").read_bytes() == before and os.listdir(tmp_path) == ["memo"]


@pytest.mark.parametrize("keep", [0, 3, 50, 100, 1000, -1])
def test_one_that_was_cut_is_no_memo(tmp_path: Path, keep: int) -> None:
    write(tmp_path / "memo")
    content = (tmp_path / "memo").read_bytes()
    (tmp_path / "memo").write_bytes(content[:keep])
    reader = MemoReader(tmp_path / "memo", CONFIG, SOURCE)
    assert reader.root is None and reader.find(b"") is None and not reader.has_skipped


def test_one_that_cannot_be_read_to_its_end_is_not_built_upon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "memo")
    reader = MemoReader(tmp_path / "memo", CONFIG, SOURCE)
    assert reader.find(b"") is not None

    def refuses(handle: int, size: int, at: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(memo.os, "pread", refuses)
    assert reader.find(key(5)) is None and reader.has_skipped
    reader.close()
