"""What we knew of each file the last time, so that a file that did not change is not opened.

A sidecar of one volume, and only ever a hint: if it is absent, damaged, of another version, or
made with other piece sizes, everything is read. It never vouches for the store: whoever uses
a remembered entry asks whether its blocks are still there.

A file is remembered only if nothing touched it in the last moments before the scan began
(`still`): a write right after we looked may have left no trace in its times.

The file is a header, a BLAKE3 of the rest, and one msgpack array a file in key order. A scan
goes in the same order, so old and new memo are walked side by side and no table is built.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
from blake3 import blake3

from replicator.core.files import write_durably
from replicator.core.logging import get_logger
from replicator.ingest.config import IngestConfig
from replicator.ingest.still import RACY_NS, Stamp

MAGIC: Final = b"\x89RMEMO"
VERSION: Final = 1
_DIGEST_BYTES: Final = 32


class MemoReader:
    """Last time's memo. Ask for keys in ascending order."""

    def __init__(self, path: Path | None, config: IngestConfig) -> None:
        self._records = _records(path, config)
        self._next = next(self._records, None)

    def find(self, key: bytes, stamp: Stamp) -> bytes | None:
        """The packed entry of this file, if it is as it was."""
        while self._next is not None and self._next[0] < key:
            self._next = next(self._records, None)
        found = self._next
        if found is None or found[0] != key or tuple(found[1:6]) != stamp:
            return None
        packed: bytes = found[6]
        return packed


def _records(path: Path | None, config: IngestConfig) -> Iterator[list[Any]]:
    if path is None:
        return
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        get_logger().warning("memo.unreadable", path=str(path), error=str(error), then="reading every file")
        return
    header = _header(config)
    start = len(header) + _DIGEST_BYTES
    body = memoryview(content)[start:]
    if content[: len(header)] != header or blake3(body).digest() != content[len(header) : start]:
        get_logger().warning("memo.ignored", path=str(path), then="reading every file")
        return
    unpacker = msgpack.Unpacker(raw=False, max_buffer_size=max(len(body), 1))
    unpacker.feed(body)
    yield from unpacker


def _header(config: IngestConfig) -> bytes:
    sizes = (config.piece_bytes_min, config.piece_bytes_beyond_min, config.piece_bytes_max)
    packed: bytes = msgpack.packb([VERSION, *sizes])
    return MAGIC + packed


class MemoWriter:
    """This time's memo. Give it keys in ascending order."""

    def __init__(self, config: IngestConfig, *, began_ns: int) -> None:
        self._config = config
        self._trusted_before_ns = began_ns - RACY_NS
        self._packer = msgpack.Packer(use_bin_type=True)
        self._body = bytearray()

    def add(self, key: bytes, stamp: Stamp, packed_entry: bytes) -> None:
        """Remember a file, unless it was touched too shortly before the scan."""
        if stamp.newest_ns < self._trusted_before_ns:
            self._body += self._packer.pack((key, *stamp, packed_entry))

    def save(self, path: Path) -> None:
        """Losing a memo costs time only, so a disk that refuses it does not fail the snapshot."""
        digest = blake3(self._body).digest()
        try:
            write_durably(path, b"".join((_header(self._config), digest, self._body)))
        except OSError as error:
            get_logger().warning("memo.not_saved", path=str(path), error=str(error))
