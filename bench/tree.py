"""The small files that are measured on: real ones of this machine's /usr, chosen by a seed.

Regular files of up to a quarter of a mebibyte are drawn until there are enough of them; then small
ones are exchanged for larger ones until their mean size is that of 566 MiB in 50,000 files.
Where a machine has too few, the same ones are taken again with a line of their own in front, so
that no two are equal. Two machines with the same packages and seed see the same tree.
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOURCE: Final = Path("/usr")
MEAN_BYTES: Final = 566 * 2**20 // 50_000
_FILE_MAX: Final = 256 * 1024
_SMALL: Final = 4 * 1024
_LARGE: Final = 20 * 1024


def make_tree(folder: Path, *, files: int, seed: int, source: Path = SOURCE) -> int:
    """Write the tree and return its bytes. One that was made before, in full, is taken as it is."""
    done = folder.with_name(folder.name + ".done")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for number, (name, path) in enumerate(_chosen(source, files=files, seed=seed)):
            _copy(path, folder / name, first_line=b"" if name == str(path.relative_to(source)) else b"# %d\n" % number)
        os.sync()
        done.write_text(str(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())))
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return int(done.read_text())


def _chosen(source: Path, *, files: int, seed: int) -> list[tuple[str, Path]]:
    """Names in the tree, and the files that they are copies of."""
    chance = random.Random(seed)
    found = sorted((path, size) for path, size in _files(source) if 0 < size <= _FILE_MAX)
    chance.shuffle(found)
    if len(found) < files:
        names = [(f"copy-{at // len(found)}/{found[at % len(found)][0]}", at % len(found)) for at in range(files)]
        return [(name.removeprefix("copy-0/"), source / found[at][0]) for name, at in names]
    taken, rest = found[:files], found[files:]
    missing = MEAN_BYTES * files - sum(size for _, size in taken)
    larger = iter([one for one in rest if one[1] >= _LARGE])
    for at, (_, size) in enumerate(taken):
        if missing <= 0:
            break
        if size < _SMALL and (other := next(larger, None)) is not None:
            taken[at] = other
            missing -= other[1] - size
    return sorted((path, source / path) for path, _ in taken)


def _files(source: Path) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(source)), path.stat().st_size


def _copy(path: Path, target: Path, *, first_line: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(first_line + path.read_bytes())
    times = path.stat()
    os.utime(target, ns=(times.st_mtime_ns, times.st_mtime_ns))


@contextmanager
def changed_files(folder: Path, *, share: float, seed: int) -> Iterator[int]:
    """A line is put into the middle of that share of the files; they are as they were afterwards. Yields how many."""
    chance = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    before: dict[Path, tuple[bytes, os.stat_result]] = {}
    try:
        for path in chance.sample(paths, max(1, int(len(paths) * share))):
            content = path.read_bytes()
            before[path] = content, path.stat()
            middle = len(content) // 2
            path.write_bytes(content[:middle] + b"%x\n" % chance.getrandbits(128) + content[middle:])
        os.sync()
        yield len(before)
    finally:
        for path, (content, times) in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
