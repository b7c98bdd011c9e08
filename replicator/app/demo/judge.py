"""The judge: sums and comparisons that owe nothing to the product.

Contents are judged by coreutils' `sha256sum`; everything else by `lstat` and, where it is
installed, by `rsync --dry-run --checksum -aHAX`.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path


def sha256_of(path: Path) -> str:
    done = subprocess.run(["sha256sum", "-b", "--", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.lstrip("\\").split()[0]


def sums_of_tree(tree: Path) -> bytes:
    """What `sha256sum` says of every regular file, sorted by name."""
    script = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum -b --zero"
    done = subprocess.run(["sh", "-c", script], cwd=tree, check=True, capture_output=True)
    return done.stdout


def facts_of_tree(tree: Path) -> dict[bytes, tuple[object, ...]]:
    """Mode, owner, time, size, links, attributes of every path."""
    facts: dict[bytes, tuple[object, ...]] = {}
    groups: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(tree)
    paths = [top] + [
        os.path.join(folder, name) for folder, folders, files in os.walk(top) for name in (*folders, *files)
    ]
    for path in sorted(paths):
        found = os.lstat(path)
        is_link, is_file = stat.S_ISLNK(found.st_mode), stat.S_ISREG(found.st_mode)
        same_as = b""
        if is_file and found.st_nlink > 1:
            same_as = groups.setdefault((found.st_dev, found.st_ino), path[len(top) :])
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        facts[path[len(top) :]] = (
            found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_size if is_file else 0,
            os.readlink(path) if is_link else b"", same_as, sorted(attributes.items()),
        )  # fmt: skip
    return facts


def differences(wanted: dict[bytes, tuple[object, ...]], found: dict[bytes, tuple[object, ...]]) -> list[str]:
    """Where two trees' facts differ, in words."""
    said: list[str] = []
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            said.append(f"{path.decode(errors='backslashreplace')}: {wanted.get(path)} became {found.get(path)}")
    return said


def rsync_says(wanted: Path, found: Path) -> list[str] | None:
    """What rsync would still have to change; None where there is no rsync."""
    if shutil.which("rsync") is None:
        return None
    command = ["rsync", "--dry-run", "--checksum", "-aHAX", "--delete", "--itemize-changes", f"{wanted}/", f"{found}/"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="backslashreplace")
    return done.stdout.splitlines()
