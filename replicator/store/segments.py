"""Segment files: sealed blocks one after the other, only ever added to.

A segment starts with a header of 64 bytes and holds sealed blocks back to back. There are few
and large ones, never a file a block: ext4 takes milliseconds of kernel time a file after a
mass delete (measured), and one fsync of a segment makes a thousand blocks durable.

Nothing here knows which blocks matter; that is the ledger's business.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3

from protocol.wire.envelope import Buffer
from replicator.core.direct import LONG_RUN_BYTES, LongWriter, open_direct
from replicator.core.errors import SegmentLost, StoreReadOnly
from replicator.core.files import sync_directory
from replicator.store.ports import Place, SealedBlock
from replicator.store.sums import Stretch, SumFiles

SEGMENT_MAGIC: Final = b"\x89RSEG\r\n\x1a"
_HEADER: Final = struct.Struct(">8sIQ44x")
SEGMENT_HEADER_BYTES: Final = _HEADER.size
assert SEGMENT_HEADER_BYTES == 64
_IOV_MAX: Final = 512
_SUFFIX: Final = ".seg"
STRETCH_MIN: Final = 16 * 1024
"""Shorter runs get no sum: there would be a sum for each block. The first scrub takes sums of what it proves."""


class SegmentFiles:
    """All segments of one store. Not thread-safe by itself: `LocalStore` holds its lock around writes."""

    def __init__(
        self,
        folder: Path,
        *,
        sums: SumFiles,
        segment_bytes_max: int,
        past_cache: bool = True,
        long_run_bytes: int = LONG_RUN_BYTES,
    ) -> None:
        """`past_cache`: whether long runs go past the page cache, where the file system can do that."""
        self._folder = folder
        self.sums = sums
        self._stretches: list[Stretch] = []
        """Of the active segment."""
        self._bytes_max = segment_bytes_max
        self._past_cache = past_cache
        self.long_run_bytes = long_run_bytes
        self._writer = LongWriter(long_run_bytes=long_run_bytes)
        self._direct: int | None = None
        """The active segment, opened past the cache."""
        self._active: tuple[int, int] | None = None
        self._tail = 0
        self._unsynced: dict[int, int] = {}
        self._to_close: list[int] = []
        self.poisoned = ""
        self.number_taken = 0
        """The highest number that the ledger has ever seen: never used again, even if that file was deleted."""

    def path(self, number: int) -> Path:
        return self._folder / f"{number:08d}{_SUFFIX}"

    def numbers(self) -> list[int]:
        """The segments that exist, oldest first."""
        return sorted(
            int(entry.name.removesuffix(_SUFFIX))
            for entry in os.scandir(self._folder)
            if entry.name.endswith(_SUFFIX) and entry.name.removesuffix(_SUFFIX).isdigit()
        )

    def size(self, number: int) -> int:
        """Bytes in the file; 0 if it is gone."""
        try:
            return self.path(number).stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def active(self) -> int | None:
        """The segment that is being written to."""
        return None if self._active is None else self._active[0]

    def append(self, blocks: Sequence[SealedBlock]) -> list[Place]:
        """Write blocks at the end of the active segment, starting new ones as they fill up. Not durable yet."""
        places: list[Place] = []
        at = 0
        while at < len(blocks):
            number, handle = self._room()
            run: list[Buffer] = []
            start = end = self._tail
            while at < len(blocks) and len(run) < _IOV_MAX and (end < self._bytes_max or not run):
                size = len(blocks[at].sealed)
                places.append(Place(number, end, size))
                run.append(blocks[at].sealed)
                end += size
                at += 1
            self._write(handle, run, start, end)
            self._tail = end
            self._unsynced[number] = handle
        return places

    def _write(self, handle: int, run: Sequence[Buffer], start: int, end: int) -> None:
        if end - start < STRETCH_MIN:
            self._writer.write(handle, self._direct, run, start)
            return
        hasher = blake3()
        self._writer.write(handle, self._direct, run, start, tell=hasher.update)
        self._stretches.append(Stretch(start, end, hasher.digest()))

    def _room(self) -> tuple[int, int]:
        if self.poisoned:
            raise StoreReadOnly(self.poisoned, hint="Check the disk, then restart the node.")
        if self._active is not None and self._tail < self._bytes_max and os.fstat(self._active[1]).st_nlink:
            return self._active
        if self._active is not None:
            self._retire()
        number = max(self.numbers(), default=0)
        number = max(number, self.number_taken) + 1
        self.number_taken = number
        handle = os.open(self.path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.pwrite(handle, _HEADER.pack(SEGMENT_MAGIC, 1, number), 0)
            # The name must be durable before anything in it is acknowledged. The first bytes are
            # flushed with the first commit: until then nothing refers to them.
            sync_directory(self._folder)
        except BaseException:
            os.close(handle)
            raise
        self._active, self._tail = (number, handle), SEGMENT_HEADER_BYTES
        self._direct = self._open_past_cache(number, os.O_WRONLY)
        return self._active

    def _open_past_cache(self, number: int, flags: int) -> int | None:
        return open_direct(self.path(number), flags) if self._past_cache else None

    def _retire(self) -> None:
        assert self._active is not None
        # Not closed here: a flush that has taken it may be in the middle of it, and the number of a descriptor that is
        # closed goes to the next file that anybody opens. That one would be flushed in its place.
        self._to_close.append(self._active[1])
        self._save_sums(self._active[0])
        self._active = None
        self._close_direct()

    def _save_sums(self, number: int) -> None:
        if self._stretches:
            self.sums.save(number, self._stretches)
        self._stretches = []

    def _close_direct(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None

    def take_unsynced(self) -> list[tuple[int, int]]:
        """The segments with bytes that no `sync` has covered: number and descriptor. The taker must sync them."""
        taken = list(self._unsynced.items())
        self._unsynced = {}
        return taken

    def sync(self, taken: list[tuple[int, int]]) -> None:
        """Flush what `take_unsynced` named. A failure is final: no later flush on that file can be believed.

        Raises `StoreReadOnly`, `SegmentLost`.
        """
        lost: set[int] = set()
        for number, handle in taken:
            try:
                os.fdatasync(handle)
            except OSError as error:
                self.poisoned = f"The disk failed to flush segment {number}: {error.strerror}."
                raise StoreReadOnly(self.poisoned, hint="Check the disk, then restart the node.") from error
            if not os.fstat(handle).st_nlink:
                # Flushed into a file without a name: nobody will ever read it again.
                lost.add(number)
        if lost:
            raise SegmentLost(frozenset(lost))

    def drop_cache(self, taken: list[tuple[int, int]]) -> None:
        """Let the kernel reuse the pages of what was just flushed.

        A page that the kernel has at hand costs a copy; a fresh one of a virtual machine costs several times that
        (half of a receiver's system time in `python -m bench store_to_store`).
        """
        for _, handle in taken:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def close_retired(self) -> None:
        """Close full segments whose bytes are flushed. Only between two flushes."""
        unsynced = set(self._unsynced.values())
        for handle in [handle for handle in self._to_close if handle not in unsynced]:
            self._to_close.remove(handle)
            os.close(handle)

    def stop_writing_to(self, number: int) -> None:
        """Never append to this segment again: it is damaged, or is being emptied."""
        if self._active is not None and self._active[0] == number:
            self._retire()

    def remove(self, numbers: Sequence[int]) -> int:
        """Unlink segments in one go. Returns the bytes that this frees.

        The newest is cut down to its header instead: while that stands no number is given out
        twice, whatever becomes of the ledger, and an old copy of it cannot mistake new bytes for known ones.
        """
        newest = max(self.numbers(), default=0)
        freed = 0
        for number in numbers:
            freed += self.size(number)
            if number == newest:
                os.truncate(self.path(number), SEGMENT_HEADER_BYTES)
                freed -= SEGMENT_HEADER_BYTES
            else:
                self.path(number).unlink(missing_ok=True)
        if numbers:
            sync_directory(self._folder)
        self.sums.remove(numbers)
        return freed

    def open_to_read(self, number: int) -> int:
        """A descriptor, opened afresh so that a file that was replaced or removed is noticed."""
        return os.open(self.path(number), os.O_RDONLY)

    def open_past_cache(self, number: int) -> int | None:
        """The same for long runs; None where they go through the cache like all others."""
        return self._open_past_cache(number, os.O_RDONLY)

    def close(self) -> None:
        for handle in self._to_close:
            os.close(handle)
        if self._active is not None:
            os.close(self._active[1])
            self._save_sums(self._active[0])
        self._close_direct()
        self._to_close, self._active = [], None
