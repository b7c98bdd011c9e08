"""The bytes of version 1, frozen: this release reads them, and writes the same."""

import pytest

from protocol.messages.registry import decode, encode
from protocol.wire.envelope import Codec, unseal
from protocol.wire.frames import FRAME_HEADER_BYTES, FrameKind, parse_frame_header
from replicator.catalog.manifest.entries import decode_entry, encode_entry
from replicator.catalog.manifest.nodes import Node, decode_node, encode_node
from replicator.catalog.records import encode_record, open_record, sign_record
from replicator.core.errors import ManifestDamaged, Untrusted
from tests.golden.vectors import (
    BODIES,
    ENTRY,
    FRAMES,
    MESSAGES,
    NODES,
    RECORD,
    SIGNING_KEY,
    frozen,
    sample,
    vectors,
)

FROZEN = frozen()


def test_everything_that_is_stored_or_sent_is_frozen() -> None:
    assert FROZEN.keys() == vectors().keys()


@pytest.mark.parametrize("name", list(BODIES))
def test_a_frozen_block_opens(name: str) -> None:
    kind, body = BODIES[name]
    header, opened = unseal(FROZEN[f"block/{name}"])
    assert (header.kind, bytes(opened)) == (kind, body)
    assert header.codec == (Codec.RAW if name.endswith("raw") else Codec.LZ4)


@pytest.mark.parametrize("name", [name for name in FROZEN if not name.endswith("-lz4")])
def test_the_same_bytes_are_written_today(name: str) -> None:
    """But for LZ4, whose next release may pack better: its blocks are only read."""
    assert vectors()[name] == FROZEN[name]


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_a_frozen_message_is_read_and_written_back(cls: type) -> None:
    data = FROZEN[f"message/{cls.__name__}"]
    assert decode(data) == sample(cls)
    assert encode(decode(data)) == data


@pytest.mark.parametrize("kind", list(FrameKind))
def test_a_frozen_frame_is_read(kind: FrameKind) -> None:
    data = FROZEN[f"frame/{kind.name.lower()}"]
    header = parse_frame_header(data[:FRAME_HEADER_BYTES])
    stream, body, lane, flags = FRAMES[kind]
    assert (header.kind, header.stream, header.lane, header.flags) == (kind, stream, lane, flags)
    assert data[FRAME_HEADER_BYTES:] == body and header.length == len(body)


@pytest.mark.parametrize("name", list(NODES))
def test_a_frozen_node_is_read_and_written_back(name: str) -> None:
    shape, level, keys, values = NODES[name]
    node = decode_node(FROZEN[f"node/{name}"])
    assert node == Node(shape, level, keys, values)
    assert encode_node(node.shape, node.level, node.keys, node.values) == FROZEN[f"node/{name}"]


def test_a_frozen_entry_is_read_and_written_back() -> None:
    assert decode_entry(FROZEN["entry"]) == ENTRY
    assert encode_entry(decode_entry(FROZEN["entry"])) == FROZEN["entry"]


def test_a_frozen_record_is_trusted_read_and_written_back() -> None:
    record = open_record(FROZEN["record"])
    assert record == RECORD
    assert FROZEN["record"].startswith(encode_record(record))
    assert sign_record(record, SIGNING_KEY.sign) == FROZEN["record"]


def test_a_record_that_was_changed_by_one_bit_is_refused() -> None:
    for at in range(len(FROZEN["record"])):
        changed = bytearray(FROZEN["record"])
        changed[at] ^= 1
        with pytest.raises((Untrusted, ManifestDamaged)):
            open_record(bytes(changed))
