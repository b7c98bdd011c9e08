"""Small inputs that would cost much if they were believed, and what it costs to refuse them.

Each is given to the decoder that would meet it. What a receive meets over several round trips (a map that never ends)
is in `tests/e2e/test_fuzz.py` and `tests/unit/test_descent.py`.
"""

import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Final
from zlib import crc32

import msgpack

from protocol.errors import ProtocolError
from protocol.limits import BLOCK_BODY_MAX
from protocol.wire.envelope import seal, unseal
from protocol.wire.frames import FrameKind, Lane, pack_header
from protocol.wire.hashing import Kind
from replicator.catalog.manifest.nodes import LEVEL_MAX, Shape, decode_node, encode_node, number_key
from replicator.core.errors import ManifestDamaged
from tests.support.wire import greeted

REFUSED_WITHIN_S: Final = 0.01


def frame(body: bytes) -> bytes:
    return pack_header(FrameKind.OPEN, 1, len(body), lane=Lane.SYNC) + body


def _hear(data: bytes) -> None:
    end = greeted(is_dialer=False)
    end.receive_data(data)
    while end.next_event() is not None:
        pass


def _claiming(size: int) -> None:
    """A megabyte of zeros in four kilobytes of LZ4 that says that it is `size`."""
    changed = bytearray(_ZEROS)
    changed[8:12] = struct.pack(">I", size)
    changed[52:56] = struct.pack(">I", crc32(changed[:52]))
    unseal(bytes(changed))


def _deep() -> None:
    parts = msgpack.unpackb(encode_node(Shape.PIECES, LEVEL_MAX, [number_key(1)], [bytes(32)]))
    parts[2] = LEVEL_MAX + 1
    decode_node(msgpack.packb(parts))


_ZEROS: Final = seal(Kind.DATA, bytes(BLOCK_BODY_MAX))
BOMBS: Final[dict[str, Callable[[], None]]] = {
    "arrays in arrays": partial(_hear, frame(b"\x91" * 200_000)),
    "more elements than bytes": partial(_hear, frame(b"\xdd\xff\xff\xff\xff")),
    "a long text": partial(_hear, frame(b"\x92\x29\xdb\x00\x03\x00\x00" + b"x" * 0x30000)),
    "many empty arrays": partial(_hear, frame(b"\xdc\xff\xff" + b"\x90" * 65535)),
    "a map": partial(_hear, frame(b"\x92\x29\x81\x01\x01")),
    "an extension": partial(_hear, frame(b"\x92\x29\xc7\x03\x05abc")),
    "a frame of four gigabytes": partial(_hear, pack_header(FrameKind.BLOCKS, 1, 0)[4:].rjust(12, b"\xff")),
    "a block that is a byte longer than it says": partial(_claiming, BLOCK_BODY_MAX - 1),
    "a block that says it is as small as it is packed": partial(_claiming, len(_ZEROS) - 56),
    "a block that says it is larger than any": partial(_claiming, BLOCK_BODY_MAX + 1),
    "a block of four gigabytes": partial(_claiming, 2**32 - 1),
    "a tree deeper than its levels count": _deep,
}
assert len(_ZEROS) < BLOCK_BODY_MAX // 200


def cost_of_refusing(bomb: Callable[[], None]) -> float:
    """CPU time of this thread, the least of three. Raises `AssertionError` if it is believed."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        try:
            bomb()
        except (ProtocolError, ManifestDamaged):
            took.append(time.thread_time() - began)
            continue
        raise AssertionError("a bomb was believed")
    return min(took)
