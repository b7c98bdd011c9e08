"""The rare refusals of the protocol, each met on purpose: no line of `protocol/` is without a test."""

import struct
from dataclasses import dataclass, replace
from zlib import crc32

import msgpack
import numpy as np
import pytest

import protocol.machines.reconcile_turn as turn_module
from protocol.errors import BadBlock, ErrorCode, Malformed, ProtocolError, TooLarge, Unexpected, VersionMismatch
from protocol.ids import short
from protocol.limits import SUMMARY_LEVEL_MAX, SUMMARY_TURNS_MAX
from protocol.machines.connection import Connection
from protocol.machines.events import HelloReceived, PeerLeft
from protocol.machines.reconcile import Reconciliation
from protocol.machines.reconcile_turn import (
    Answer,
    Inbox,
    Places,
    Sent,
    read_answers,
    read_cells,
    read_lists,
    read_marks,
    say_list,
)
from protocol.merkle import codes, diff
from protocol.merkle.cells import pack_records
from protocol.messages import registry
from protocol.messages.blocks import WantBlocks
from protocol.messages.mesh import PaceNotice
from protocol.messages.registry import Message, decode, encode, message
from protocol.messages.session import Refusal
from protocol.messages.snapshots import ListSnapshots
from protocol.messages.summary import SummaryAnswers, SummaryCells, SummaryClose, SummaryList, SummaryUnknown
from protocol.messages.versions import CURRENT, OLDEST, agree
from protocol.wire.envelope import HEADER_BYTES, Codec, seal, unseal
from protocol.wire.frames import FrameKind, Lane, pack_header
from protocol.wire.hashing import Kind, block_id, derived_key
from tests.property.test_reconcile import random_set, side
from tests.support.wire import DIALER, LISTENER, Pair, all_frames, connection, greeted, hello

WANT = WantBlocks(ids=bytes(32))
CLOSE = SummaryClose(count=0, sum_a=0, sum_b=0)
ONE_PLACE = Places(7, np.zeros(1, np.uint64))


def cells(count: int = 8, *, level: int = 10, width: int = 5, more: bool = True, checks: int = 0) -> SummaryCells:
    return SummaryCells(
        group=0, level=level, width=width, cells=bytes(count * width), checks=bytes(2 * checks), more=more
    )


def listed(tags: list[int], *, level: int = 7) -> SummaryList:
    records = pack_records(np.arange(len(tags), dtype=np.uint64), np.array(tags, np.uint64))
    return SummaryList(group=0, level=level, records=records, more=False)


def answers(states: list[int], asks: int = 0) -> SummaryAnswers:
    packed = codes.encode_states(np.array(states, np.uint8))
    return SummaryAnswers(cells_count=len(states), states=packed, asks=bytes(5 * asks))


# -- a connection -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side_before", "kind", "body"),
    [
        (greeted(is_dialer=False), FrameKind.PING, bytes(4)),
        (greeted(is_dialer=False), FrameKind.CREDIT, bytes(3)),
        (connection(is_dialer=False), FrameKind.HELLO, encode(WANT)),
    ],
)
def test_a_frame_of_the_wrong_shape_ends_the_connection(side_before: Connection, kind: FrameKind, body: bytes) -> None:
    side_before.receive_data(pack_header(kind, 0, len(body)) + body)
    with pytest.raises(ProtocolError):
        side_before.next_event()


def test_an_error_code_from_the_future_is_still_a_goodbye() -> None:
    end = greeted(is_dialer=False)
    body = encode(Refusal(error=200, reason="of tomorrow"))
    end.receive_data(pack_header(FrameKind.GOODBYE, 0, len(body)) + body)
    assert end.next_event() == PeerLeft(ErrorCode.MALFORMED, "of tomorrow")


def test_goodbye_is_said_once_and_after_it_nothing_is_granted_or_reset() -> None:
    from protocol.wire.frames import Lane

    end = greeted(is_dialer=True)
    stream = end.open_stream(WANT, lane=Lane.SYNC, end=False)
    all_frames(end)
    end.goodbye(ErrorCode.STOPPING, "")
    end.goodbye(ErrorCode.STOPPING, "")
    end.grant(stream, 5)
    end.reset(stream, ErrorCode.CANCELLED, "")
    assert len(all_frames(end)) == 1
    with pytest.raises(AssertionError, match="nothing to send"):
        end.next_frame()


def test_a_closed_connection_tells_no_room_and_no_credit() -> None:
    end = greeted(is_dialer=True)
    assert (end.queued_bytes(99), end.send_credit(99), end.is_open(99)) == (0, 0, False)


def test_versions_without_an_overlap_do_not_talk() -> None:
    ours = (OLDEST, CURRENT)
    assert agree(ours, (1, 99)) == CURRENT
    assert max(1, CURRENT - 1) == OLDEST
    for theirs in ((CURRENT + 1, CURRENT + 5), (0, OLDEST - 1)):
        with pytest.raises(VersionMismatch):
            agree(ours, theirs)
    assert hello().version_min == 1


def test_a_side_that_offers_less_is_taken_at_its_word_by_both() -> None:
    held_back = Connection(is_dialer=True, hello=replace(hello(), version_min=OLDEST, version_max=OLDEST))
    usual = connection(is_dialer=False)
    usual.receive_data(b"".join(held_back.next_frame()))
    held_back.receive_data(b"".join(usual.next_frame()))
    assert isinstance(usual.next_event(), HelloReceived) and isinstance(held_back.next_event(), HelloReceived)
    assert usual.version == held_back.version == OLDEST


@pytest.mark.parametrize("is_request", [True, False])
def test_a_message_of_a_later_version_than_agreed_ends_the_link_and_is_not_sent_either(is_request: bool) -> None:
    """A release of the agreed version would not know it: better found here than by the first mixed mesh."""
    later = PaceNotice(rate_bytes=5)
    assert later.since > OLDEST
    pair = Pair()
    pair.settle()
    sender, receiver = pair.sides
    request = ListSnapshots(volume_id=b"")
    if is_request:
        sender.open_stream(later, lane=Lane.CONTROL, end=True)
    else:
        stream = sender.open_stream(request, lane=Lane.CONTROL, end=False)
        sender.send_message(stream, later)
    receiver.version = OLDEST
    with pytest.raises(Malformed, match="not part of version"):
        while pair.write(DIALER):
            pair.deliver(LISTENER)
    receiver.version, sender.version = CURRENT, OLDEST
    with pytest.raises(AssertionError, match="PaceNotice to a peer of version"):
        sender.open_stream(later, lane=Lane.CONTROL, end=True)


@pytest.mark.parametrize("is_dialer", [True, False])
def test_a_site_of_the_next_version_and_one_of_this_agree_on_this(is_dialer: bool) -> None:
    """Sites are never upgraded at the same moment."""
    newer = Connection(is_dialer=is_dialer, hello=replace(hello(), version_min=CURRENT, version_max=CURRENT + 1))
    older = connection(is_dialer=not is_dialer)
    older.receive_data(b"".join(newer.next_frame()))
    assert isinstance(older.next_event(), HelloReceived)
    newer.receive_data(b"".join(older.next_frame()))
    assert isinstance(newer.next_event(), HelloReceived)
    assert older.version == newer.version == CURRENT


def test_a_message_that_has_grown_is_read_by_the_version_before_and_the_other_way_about() -> None:
    @message(code=0x7E, since=CURRENT)
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Grown(Message):
        first: int
        second: str = "as it was"

    try:
        assert decode(msgpack.packb([0x7E, 5])) == Grown(first=5)  # From the version before.
        assert decode(msgpack.packb([0x7E, 5, "now", b"later"])) == Grown(first=5, second="now")  # From the next one.
        with pytest.raises(Malformed):
            decode(msgpack.packb([0x7E]))
    finally:
        del registry._FORMS[0x7E]


# -- a reconciliation -------------------------------------------------------------------------


def opened() -> Reconciliation:
    machine = side(random_set(np.random.default_rng(1), 300))
    machine.start()
    return machine


@pytest.mark.parametrize(
    ("messages", "error", "why"),
    [
        ([WANT], Unexpected, "in a reconciliation"),
        ([cells(), answers([0] * 128)], Unexpected, "too late"),
        ([cells(width=6)], Malformed, "records of 6"),
        ([cells(0)], Malformed, "no records"),
        ([SummaryCells(group=0, level=10, width=4, cells=bytes(7), checks=b"", more=True)], Malformed, "no records"),
        ([SummaryAnswers(cells_count=4, states=bytes(9), asks=b"")], Malformed, "a code of 9"),
        ([answers([0] * 128), cells(), CLOSE], Malformed, "nothing more is to be said"),
        ([answers([1] + [0] * 127), CLOSE], Malformed, "one suffix for each"),
        ([answers([0] * 127), CLOSE], Malformed, "answered once"),
    ],
)
def test_a_turn_that_makes_no_sense_ends_the_session(
    messages: list[Message], error: type[ProtocolError], why: str
) -> None:
    machine = opened()
    with pytest.raises(error, match=why):
        for message in messages:
            machine.receive(message)


def test_a_session_does_not_go_on_after_its_last_turn() -> None:
    machine = opened()
    machine._turn = SUMMARY_TURNS_MAX
    with pytest.raises(Unexpected, match="goes on"):
        machine.receive(CLOSE)


def test_a_close_beside_a_suffix_that_is_unknown_is_answered_with_a_closer_look() -> None:
    machine = opened()
    assert machine.receive(answers([Answer.ASK] + [0] * 127, asks=1)) == []
    said = machine.receive(CLOSE)
    assert type(said[0]) is SummaryUnknown
    assert not machine.done


def test_every_open_cell_has_to_be_looked_at() -> None:
    machine = opened()
    machine._sent_asks = [ONE_PLACE]
    unknown = SummaryUnknown(asks_count=1, marks=codes.encode_flags(np.ones(1, np.bool_)))
    with pytest.raises(Malformed, match="not every open cell"):
        for message in (answers([Answer.OPEN] + [0] * 127), unknown, cells(more=False)):
            machine.receive(message)


def test_answers_and_marks_are_about_what_was_sent() -> None:
    with pytest.raises(Malformed, match="never sent"):
        list(read_answers([answers([0])], []))
    with pytest.raises(Malformed, match="answered once"):
        list(read_answers([answers([0, 0])], [Sent(ONE_PLACE, 5)]))
    with pytest.raises(Malformed, match="marked once"):
        read_marks([(2, codes.DENSE + b"\0")], 3)


@pytest.mark.parametrize(
    ("parts", "error", "why"),
    [
        ([cells(4), cells(4, width=4)], Malformed, "one width"),
        ([cells(7)], Malformed, "do not cover"),
        ([cells(8, level=7)], Malformed, "do not cover"),
        ([cells(8, checks=3)], Malformed, "one check"),
        ([cells(8, level=40)], TooLarge, "level 40"),
        ([cells(8, level=SUMMARY_LEVEL_MAX + 1)], Malformed, "group 0"),
    ],
)
def test_cells_cover_what_is_open_and_no_more(parts: list[SummaryCells], error: type[ProtocolError], why: str) -> None:
    with pytest.raises(error, match=why):
        read_cells(parts, [ONE_PLACE])


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (listed([1, 1]), "do not cover"),
        (listed([1], level=6), "do not cover"),
        (listed([0, 1]), "no beginning"),
        (listed([3]), "no beginning"),
        (listed([2, 0]), "no beginning"),
    ],
)
def test_lists_cover_what_is_open_cell_by_cell(part: SummaryList, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        read_lists([part], [ONE_PLACE])


def test_lists_are_bounded_on_the_way_in_and_on_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "SUMMARY_TURN_LIST_MAX", 4)
    with pytest.raises(TooLarge):
        Inbox().take(listed([1] * 5), questions_count=0)
    with pytest.raises(TooLarge):
        say_list(0, 7, np.arange(5, dtype=np.uint64), np.array([0, 5]))


@pytest.mark.parametrize(
    "code", [codes.DENSE, b"\x07", codes.SPARSE + b"\x80", codes.SPARSE + b"\x7f", codes.SPARSE + b"\x80" * 4 + b"\1"]
)
def test_a_code_that_does_not_fit_its_count_is_malformed(code: bytes) -> None:
    for unpacked in (codes.decode_flags, codes.decode_states):
        with pytest.raises(Malformed):
            unpacked(code, 9)


def test_near_the_deepest_level_a_split_stops_there() -> None:
    found = diff.plan_next(1, level=SUMMARY_LEVEL_MAX - 1, blocks=10**6, held=10**6, is_first=False)
    assert found == SUMMARY_LEVEL_MAX


# -- a sealed block ---------------------------------------------------------------------------


def test_a_payload_with_a_right_checksum_that_lz4_cannot_open_is_bad() -> None:
    sealed = bytearray(seal(Kind.DATA, b"all work and no play " * 40))
    assert sealed[6] == Codec.LZ4
    sealed[HEADER_BYTES:] = b"\xff" * (len(sealed) - HEADER_BYTES)
    sealed[48:52] = struct.pack(">I", crc32(sealed[HEADER_BYTES:]))
    sealed[52:56] = struct.pack(">I", crc32(sealed[:52]))
    with pytest.raises(BadBlock, match="LZ4"):
        unseal(bytes(sealed))


def test_names_and_keys_come_from_content_and_context() -> None:
    assert derived_key("one", b"x") != derived_key("two", b"x")
    assert short(block_id(Kind.DATA, b"")) == "af1349b9f5f9"


def test_a_large_cell_that_is_still_open_at_the_end_is_split_once_and_listed_where_that_could_fail() -> None:
    rng = np.random.default_rng(1)
    spread, crowded = side(random_set(rng, 20_000)), side(random_set(rng, 20_000, b"\x01\x02\x03\x04"))
    top = Places(2, np.zeros(1, np.uint64))
    assert spread._plan_last(top) == 2 + diff.LAST_SPLIT_BITS
    assert crowded._plan_last(top) == 2, "no split parts what shares 32 bits"
    small = Places(12, np.arange(4, dtype=np.uint64))
    assert spread._plan_last(small) == 12, "a short list is cheaper"
    spread._begin(lane=1)
    assert spread._plan_last(top) == 2, "a second attempt takes no chances"
