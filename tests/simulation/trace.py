"""Everything that can be seen of a world, as one hash and, if asked for, as lines."""

import hashlib
from collections.abc import Callable

import trio


class Trace:
    """One seed must give one of these, byte for byte, in any process."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._show = show
        self.lines_count = 0

    def note(self, what: str) -> None:
        line = f"{trio.current_time():.6f} {what}"
        self._hash.update(line.encode(errors="backslashreplace") + b"\n")
        self.lines_count += 1
        if self._show is not None:
            self._show(line)

    def note_bytes(self, source: str, target: str, data: bytes) -> None:
        self._hash.update(f"{trio.current_time():.6f} {source}>{target} {len(data)} ".encode() + data)
        if self._show is not None:
            self._show(f"{trio.current_time():.6f} {source}>{target} {len(data)} {hashlib.sha1(data).hexdigest()[:8]}")

    def digest(self) -> str:
        return self._hash.hexdigest()
