"""A hostile peer: whatever it says costs it the link at most."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
import structlog

from protocol.ids import BlockId, SnapshotId
from protocol.messages.repair import RepairBlocks
from protocol.messages.snapshots import SnapshotList
from protocol.wire.frames import Lane
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.entries import Entry, encode_entry
from replicator.catalog.manifest.nodes import Shape, encode_node, number_key
from replicator.catalog.records import sign_record
from replicator.core.errors import PeerError
from tests.support.blocks import from_body
from tests.support.bombs import BOMBS, REFUSED_WITHIN_S, cost_of_refusing, frame
from tests.support.fuzz import failings, fuzz
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
    assert failings(report) == [], report
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


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_ten_milliseconds(name: str) -> None:
    assert cost_of_refusing(BOMBS[name]) < REFUSED_WITHIN_S


def test_a_list_as_long_as_it_may_be_is_cheap_too() -> None:
    """Not refused: so it must not cost much."""
    body = msgpack.packb([SnapshotList.code, [b""] * 16384])
    began = time.thread_time()
    end = greeted(is_dialer=False)
    end.receive_data(frame(body))
    end.next_event()
    assert time.thread_time() - began < 0.05


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
