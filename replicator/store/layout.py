"""The files of a store, and who may open it.

store/format        the version of all this, one line
store/lock          held by the one process that has the store open
store/ledger/       where each block lies: a cache of the segments
store/generation    how often the store was opened: tells a ledger that was set back from the last one
store/segments/00000001.seg …
store/sums/00000001.sums …  saves a scrub work, and nothing else
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from replicator.core.errors import ConfigError, StoreLocked
from replicator.core.files import sync_directory, write_durably

FORMAT: Final = "replicator store 1\n"
_OWNER_BYTES: Final = 32


class StoreLayout:
    """Paths of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "format"
        self.lock = root / "lock"
        self.ledger = root / "ledger"
        self.generation = root / "generation"
        self.segments = root / "segments"
        self.sums = root / "sums"

    def prepare(self) -> None:
        """Make the folders of a new store, or check that this is one that we can read.

        Raises `ConfigError` if the folder holds something else or something newer.
        """
        self.segments.mkdir(parents=True, exist_ok=True)
        if not self.format.exists():
            sync_directory(self.root.parent)
            if any(self.segments.iterdir()):
                raise ConfigError(
                    f"{self.root} has segments but no format file.",
                    hint=f"If this is a store of this release, put the line {FORMAT.strip()!r} into {self.format}.",
                )
            write_durably(self.format, FORMAT.encode())
            sync_directory(self.root)
        self.sums.mkdir(exist_ok=True)
        found = self.format.read_text(errors="replace")
        if found != FORMAT:
            raise ConfigError(f"{self.root} is {found.strip()!r}; this release reads {FORMAT.strip()!r}.")

    def read_generation(self) -> int:
        """How often the store has been opened; 0 if that is not known."""
        try:
            return max(0, int(self.generation.read_text(errors="replace")))
        except (FileNotFoundError, ValueError):
            return 0

    def write_generation(self, number: int) -> None:
        write_durably(self.generation, f"{number}\n".encode())

    def acquire(self) -> int:
        """Lock the store for this process; the lock goes with the process. Raises `StoreLocked`."""
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, _OWNER_BYTES, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise StoreLocked(
                f"The store at {self.root} is in use by process {owner}.",
                hint="Talk to that node, or stop it first.",
            ) from None
        _write_owner(handle, str(os.getpid()))
        return handle

    def release(self, handle: int) -> None:
        """Give the lock back, and take our number out of it: it will be another process's one day."""
        _write_owner(handle, "")
        os.close(handle)


def _write_owner(handle: int, text: str) -> None:
    """For people only. Padded, so that it never needs more room than it has: a full disk must not keep a store shut."""
    with suppress(OSError):
        os.pwrite(handle, f"{text}\n".rjust(_OWNER_BYTES).encode(), 0)
        os.ftruncate(handle, _OWNER_BYTES)
