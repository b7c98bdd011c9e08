"""The difference of two manifests, as messages and back.

For images: gap-coded block numbers and packed ids, about 33 bytes a changed block. For trees
and everything else: keys and values as they are. Messages are closed at `DIFF_FRAME_GOAL`, so
the receiver applies one while the next is on its way.
"""

from collections.abc import AsyncIterator, Iterator

from protocol.errors import Malformed
from protocol.ids import BLOCK_ID_BYTES, ZERO_BLOCK
from protocol.limits import DIFF_FRAME_GOAL
from protocol.messages.registry import Message
from protocol.messages.snapshots import DiffNames, DiffNumbers
from replicator.catalog.manifest.nodes import Shape, key_number, number_key

Change = tuple[bytes, bytes | None]


async def to_messages(changes: AsyncIterator[Change], shape: Shape) -> AsyncIterator[Message]:
    """Pack changes that come in key order."""
    if shape is Shape.NUMBERS:
        async for message in _numbers(changes):
            yield message
    else:
        async for message in _names(changes):
            yield message


async def _numbers(changes: AsyncIterator[Change]) -> AsyncIterator[Message]:
    gaps, ids, last = bytearray(), bytearray(), -1
    async for key, value in changes:
        number = key_number(key)
        gaps += varint(number - last - 1)
        ids += ZERO_BLOCK if value is None else value
        last = number
        if len(ids) + len(gaps) >= DIFF_FRAME_GOAL:
            yield DiffNumbers(gaps=bytes(gaps), ids=bytes(ids))
            gaps, ids = bytearray(), bytearray()
    if ids:
        yield DiffNumbers(gaps=bytes(gaps), ids=bytes(ids))


async def _names(changes: AsyncIterator[Change]) -> AsyncIterator[Message]:
    keys: list[bytes] = []
    values: list[bytes] = []
    size = 0
    async for key, value in changes:
        # An entry may be nearly as large as a frame: close the message before it, not after.
        coming = len(key) + len(value or b"") + 10
        if keys and size + coming > DIFF_FRAME_GOAL:
            yield DiffNames(keys=tuple(keys), values=tuple(values))
            keys, values, size = [], [], 0
        keys.append(key)
        values.append(value or b"")
        size += coming
    if keys:
        yield DiffNames(keys=tuple(keys), values=tuple(values))


class DifferenceReader:
    """Unpacks the messages of one stream. Raises `Malformed` for a message of the wrong kind or shape."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._last = -1

    def changes(self, message: Message) -> Iterator[Change]:
        if isinstance(message, DiffNumbers) and self._shape is Shape.NUMBERS:
            yield from self._from_numbers(message)
        elif isinstance(message, DiffNames) and self._shape is Shape.NAMES:
            if len(message.keys) != len(message.values) or not message.keys:
                raise Malformed("a difference has not one value a key, or none at all")
            for key, value in zip(message.keys, message.values, strict=True):
                yield key, value or None
        else:
            raise Malformed(f"{type(message).__name__} in a difference of {self._shape.name}")

    def _from_numbers(self, message: DiffNumbers) -> Iterator[Change]:
        if not message.ids:
            raise Malformed("a difference says nothing")
        at = 0
        for index in range(0, len(message.ids), BLOCK_ID_BYTES):
            gap, at = read_varint(message.gaps, at)
            self._last += gap + 1
            if self._last >= 2**63:
                raise Malformed("a block number is out of range")
            value = message.ids[index : index + BLOCK_ID_BYTES]
            yield number_key(self._last), None if value == ZERO_BLOCK else value
        if at != len(message.gaps):
            raise Malformed("a difference has more gaps than ids")


def varint(number: int) -> bytes:
    """LEB128: seven bits a byte, low ones first, the top bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next one starts. Raises `Malformed` past the end or over 63 bits."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise Malformed("a varint is cut short or too long")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
