"""Real data to protect: a copy of a real tree with everything odd in it, and a real ext4 image.

The copy is worked on, so that nothing of the user's is ever changed.
"""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replicator.core.errors import SourceError

FILES_MIN: Final = 5000
_BYTES_MAX: Final = 250_000_000
_FILES_MAX: Final = 9000
_CANDIDATES: Final = ("/usr/lib/python3.11", "/usr/lib/python3", "/usr/share", "/usr/lib", "/etc")
_IMAGE_BYTES: Final = 512 * 1024 * 1024
_IMAGE_FILES_BYTES: Final = 120_000_000
_IMAGE_FILES_BYTES_MIN: Final = 60_000_000
"""Less than this would not fill the few segments that the demo damages, each in another way."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is protected."""

    tree: Path
    image: Path
    tree_files: int
    came_from: str


def make_material(work: Path, given: Path | None) -> Material:
    """Raises `SourceError` if there is no tree to be had, or no mkfs."""
    tree = work / "tree"
    if given is not None:
        if not given.is_dir():
            raise SourceError(
                f"{given} is not a folder.", hint="Give a folder, or nothing for a real one of this system."
            )
        subprocess.run(["cp", "-a", "--reflink=auto", "--", str(given), str(tree)], check=True)
        came_from = str(given)
    else:
        came_from = _gather(tree)
    _add_oddities(tree)
    image = work / "disk.img"
    _make_image(image, tree)
    return Material(tree, image, count_files(tree), came_from)


def count_files(tree: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(tree))


def _gather(tree: Path) -> str:
    """Copy files of this system, folder by folder, until there are enough."""
    tree.mkdir()
    files = size = 0
    used: list[str] = []
    for candidate in map(Path, _CANDIDATES):
        if not candidate.is_dir() or files >= _FILES_MAX:
            continue
        used.append(str(candidate))
        for path, count in _walk(candidate):
            if files >= _FILES_MAX or size > _BYTES_MAX:
                break
            files += 1
            size += count
            beside = tree / path.relative_to("/")
            beside.parent.mkdir(parents=True, exist_ok=True)
            if not beside.is_symlink() and not beside.exists():
                shutil.copy2(path, beside, follow_symlinks=False)
    if files < FILES_MIN:
        raise SourceError(
            f"Only {files} files were found on this system.", hint="Give a folder: `replicator demo PATH`."
        )
    return ", ".join(used)


def _walk(top: Path) -> Iterator[tuple[Path, int]]:
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            try:
                found = path.lstat()
            except OSError:
                continue
            if found.st_size < 8_000_000 and (path.is_symlink() or (path.is_file() and os.access(path, os.R_OK))):
                yield path, found.st_size


def _add_oddities(tree: Path) -> None:
    """Links, modes, names and holes that a real tree may not happen to have."""
    odd = tree / "odd things"
    odd.mkdir(exist_ok=True)
    (odd / "empty file").write_bytes(b"")
    (odd / "empty folder").mkdir(exist_ok=True)
    (odd / "plain").write_bytes(b"the same bytes under two names\n")
    _again(os.link, odd / "plain", odd / "hard link")
    _again(os.symlink, "plain", odd / "link")
    _again(os.symlink, "/nowhere/at all", odd / "dangling link")
    _again(os.mkfifo, odd / "pipe", None)
    for name in (b"line\nbreak", b"not utf-8 \xff\xfe", "käse ünd 日本".encode(), b"-rf", b" leading and trailing "):
        with open(os.path.join(os.fsencode(odd), name), "wb") as file:
            file.write(name * 10)
    unreadable = (0o000,) if os.geteuid() == 0 else ()
    for mode in (0o400, 0o755, 0o4711, 0o1777, *unreadable):
        path = odd / f"mode {mode:o}"
        path.write_bytes(b"x" * mode)
        path.chmod(mode)
    with (odd / "sparse").open("wb") as file:
        file.seek(40_000_000)
        file.write(b"after the hole")
        file.truncate(60_000_000)
    with contextlib.suppress(OSError):  # a file system without extended attributes has none to lose
        os.setxattr(odd / "plain", "user.comment", b"kept, too")
    os.utime(odd / "plain", ns=(1_000_000_001, 1_234_567_890_123_456_789))


def _again(make: object, first: object, second: object) -> None:
    target = second or first
    if not os.path.lexists(target):  # type: ignore[arg-type]
        make(first, second) if second is not None else make(first)  # type: ignore[operator]


def _make_image(image: Path, tree: Path) -> None:
    mkfs = _tool("mkfs.ext4")
    inside = image.with_name("inside")
    inside.mkdir()
    size = 0
    # A small PATH is topped up from this system: the image is a disk's, whatever the tree is.
    tops = [(tree, _IMAGE_FILES_BYTES), *((Path(one), _IMAGE_FILES_BYTES_MIN) for one in _CANDIDATES)]
    for top, bytes_max in tops:
        for path, count in _walk(top):
            if size > bytes_max:
                break
            if path.is_symlink():
                continue
            beside = inside / path.relative_to(top)
            if not beside.exists():
                size += count
                beside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, beside)
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run([mkfs, "-q", "-F", "-d", str(inside), str(image)], check=True, capture_output=True)
    shutil.rmtree(inside)


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise SourceError(f"{name} is not on this machine.", hint="Install e2fsprogs.")
    return found


def change_one_percent(material: Material, *, seed: int) -> tuple[int, int]:
    """Change about 1 % of the tree's files and write about 1 % of new data into the image's file system.

    Returns the files changed and the bytes written into the image.
    """
    chance = random.Random(seed)
    files = [path for path, size in _walk(material.tree) if size and not path.is_symlink() and path.is_file()]
    chosen = chance.sample(files, max(1, len(files) // 100))
    for number, path in enumerate(chosen):
        if number % 10 == 7:
            path.rename(path.with_name(path.name + ".renamed"))
        elif number % 10 == 8:
            path.unlink()
        else:
            mode = path.stat().st_mode
            path.chmod(mode | 0o600)
            with path.open("r+b") as file:
                file.seek(chance.randrange(path.stat().st_size))
                file.write(chance.randbytes(64))
            path.chmod(mode & 0o7777)
    fresh = material.image.with_name("fresh")
    fresh.write_bytes(chance.randbytes(material.image.stat().st_blocks * 512 // 100))
    command = [_tool("debugfs"), "-w", "-R", f"write {fresh} fresh-{seed}", str(material.image)]
    subprocess.run(command, check=True, capture_output=True)
    written = fresh.stat().st_size
    fresh.unlink()
    return len(chosen), written
