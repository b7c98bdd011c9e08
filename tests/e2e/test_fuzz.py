"""A hostile peer: whatever it says costs it the link at most."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
import structlog

from protocol.errors import ProtocolError
from protocol.ids import BlockId, SnapshotId
from protocol.limits import BLOCK_BODY_MAX
from protocol.messages.repair import RepairBlocks
from protocol.messages.snapshots import SnapshotList
from protocol.wire.envelope import seal, unseal
from protocol.wire.frames import FrameKind, Lane, pack_header
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.entries import Entry, encode_entry
from replicator.catalog.manifest.nodes import Shape, encode_node, number_key
from replicator.catalog.records import sign_record
from replicator.core.errors import ManifestDamaged, PeerError
from tests.support.blocks import from_body
from tests.support.fuzz import fuzz, is_good
from tests.support.nodes import a_pair, write_tree
from tests.support.store import put
from tests.support.wire import greeted

FRAMES = 50_000


@pytest.mark.slow
async def test_fifty_thousand_frames_end_no_node_change_nothing_and_cost_little(tmp_path: Path) -> None:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        report = await fuzz(tmp_path, frames=FRAMES, seed=20261125)
    finally:
        structlog.configure(**before)
    assert report.frames >= FRAMES
    assert is_good(report), report
    assert report.lives > 500
    assert 0.2 < report.ended_by_node / report.lives < 0.95, "neither all refused at the door nor all let pass"


async def test_a_question_for_no_block_is_answered_and_the_link_lives_on(tmp_path: Path) -> None:
    """Found by fuzzing."""
    async with a_pair(tmp_path) as (home, cabin):
        link = await cabin.link_to(home)
        for _ in range(2):
            async with link.open(RepairBlocks(ids=b"", cause="missing"), lane=Lane.REPAIR) as stream:
                await stream.receive()
        assert link.is_open


def _frame(body: bytes) -> bytes:
    return pack_header(FrameKind.OPEN, 1, len(body), lane=Lane.SYNC) + body


BOMBS = {
    "arrays in arrays": _frame(b"\x91" * 200_000),
    "more elements than bytes": _frame(b"\xdd\xff\xff\xff\xff"),
    "a long text": _frame(b"\x92\x29\xdb\x00\x03\x00\x00" + b"x" * 0x30000),
    "many empty arrays": _frame(b"\xdc\xff\xff" + b"\x90" * 65535),
    "a map": _frame(b"\x92\x29\x81\x01\x01"),
    "an extension": _frame(b"\x92\x29\xc7\x03\x05abc"),
    "a frame of four gigabytes": pack_header(FrameKind.BLOCKS, 1, 0)[4:].rjust(12, b"\xff"),
}


def _cost(judge: object) -> float:
    """The least of three: another program may have the processor for a moment."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        with pytest.raises((ProtocolError, ManifestDamaged)):
            judge()  # type: ignore[operator]
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_msgpack_is_refused_within_ten_milliseconds(name: str) -> None:
    def judge() -> None:
        end = greeted(is_dialer=False)
        end.receive_data(BOMBS[name])
        while end.next_event() is not None:
            pass

    assert _cost(judge) < 0.01


def test_a_list_as_long_as_it_may_be_is_cheap_too() -> None:
    """Not refused: so it must not cost much."""
    body = msgpack.packb([SnapshotList.code, [b""] * 16384])
    began = time.thread_time()
    end = greeted(is_dialer=False)
    end.receive_data(_frame(body))
    end.next_event()
    assert time.thread_time() - began < 0.05


def test_a_block_that_unpacks_to_more_or_less_than_it_says_is_refused_within_ten_milliseconds() -> None:
    import struct
    from zlib import crc32

    honest = seal(Kind.DATA, bytes(BLOCK_BODY_MAX))
    assert len(honest) < BLOCK_BODY_MAX // 200

    def claiming(size: int) -> bytes:
        changed = bytearray(honest)
        changed[8:12] = struct.pack(">I", size)
        changed[52:56] = struct.pack(">I", crc32(changed[:52]))
        return bytes(changed)

    for size in (BLOCK_BODY_MAX - 1, len(honest) - 56, BLOCK_BODY_MAX + 1, 2**32 - 1):
        assert _cost(lambda size=size: unseal(claiming(size))) < 0.01


def test_a_tree_cannot_be_deeper_than_its_levels_count() -> None:
    from replicator.catalog.manifest.nodes import LEVEL_MAX, decode_node

    node = encode_node(Shape.PIECES, LEVEL_MAX, [number_key(1)], [bytes(32)])
    assert decode_node(node).level == LEVEL_MAX
    parts = msgpack.unpackb(node)
    parts[2] = LEVEL_MAX + 1
    assert _cost(lambda: decode_node(msgpack.packb(parts))) < 0.01


async def test_a_large_files_map_that_does_not_count_its_levels_down_is_refused(tmp_path: Path) -> None:
    """It could go on for ever: each answer would name one more node to ask for."""
    async with a_pair(tmp_path) as (home, cabin):
        genuine = await home.take(home.protect(write_tree(tmp_path / "data", files=1, size=10)))
        below, nodes = BlockId(bytes(31) + b"\1"), []
        for _ in range(5):
            body = encode_node(Shape.PIECES, 1, [number_key(1)], [below])
            below = block_id(Kind.NODE, body)
            nodes.append(body)
        entry = Entry(mode=0o100644, uid=0, gid=0, mtime_ns=0, size=1 << 30, pieces_root=below)
        nodes.append(encode_node(Shape.NAMES, 0, [b"endless"], [encode_entry(entry)]))
        put(home.store, [from_body(body, kind=Kind.NODE) for body in nodes])
        record = replace(
            genuine.record,
            snapshot_id=SnapshotId(b"e" * 16), root=block_id(Kind.NODE, nodes[-1]), sequence=9, entries=1,
        )  # fmt: skip
        signed = sign_record(record, home.parts.sign)
        snapshot = home.catalog.add_snapshot(signed, block_id(Kind.RECORD, signed))
        with pytest.raises(PeerError, match="not the map"):
            await home.send(snapshot, cabin)
        assert not cabin.holds(snapshot)
