"""One link: strangers cannot break it but by breaking the rules, and two honest ends never get stuck."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol.machines.connection as connection_module
from protocol.errors import CreditExceeded, ErrorCode, Malformed, ProtocolError, Unexpected
from protocol.limits import STREAM_CREDIT
from protocol.machines.connection import Connection, State
from protocol.machines.events import (
    BlocksReceived,
    CreditGranted,
    HelloReceived,
    MessageReceived,
    PeerLeft,
    PongReceived,
    StreamOpened,
    StreamReset,
)
from protocol.messages.blocks import BlocksSent, WantBlocks
from protocol.messages.registry import encode
from protocol.messages.repair import RepairBlocks
from protocol.messages.session import Refusal
from protocol.wire.frames import END_STREAM, FrameKind, Lane, pack_header
from tests.support.messages import any_message
from tests.support.talk import Talk
from tests.support.wire import DIALER, LISTENER, Pair, all_frames, connection, events_of, greeted, heard, hello

WANT = WantBlocks(ids=bytes(32))
ROLES = st.booleans()
NEW_AND_GREETED = st.sampled_from([connection, greeted])


def frame(kind: FrameKind, stream: int, body: bytes = b"", *, lane: Lane = Lane.SYNC, flags: int = 0) -> bytes:
    return pack_header(kind, stream, len(body), lane=lane, flags=flags) + body


# -- what strangers may send ------------------------------------------------------------------


@given(junk=st.binary(max_size=400), is_dialer=ROLES, make=NEW_AND_GREETED)
def test_random_bytes_raise_protocol_errors_only(junk: bytes, is_dialer: bool, make: type[Connection]) -> None:
    heard(make(is_dialer=is_dialer), [junk])


FRAMES = st.builds(
    frame,
    st.sampled_from([kind for kind in FrameKind if kind not in (FrameKind.CREDIT, FrameKind.PING, FrameKind.PONG)]),
    st.integers(0, 6),
    st.binary(max_size=60) | any_message().map(encode).filter(lambda body: len(body) < 4096),
    lane=st.sampled_from(Lane),
    flags=st.sampled_from([0, END_STREAM]),
) | st.builds(
    frame,
    st.sampled_from([FrameKind.CREDIT, FrameKind.PING, FrameKind.PONG]),
    st.integers(0, 6),
    st.binary(max_size=4) | st.binary(min_size=4, max_size=4),
)


@given(frames=st.lists(FRAMES, max_size=12), is_dialer=ROLES, make=NEW_AND_GREETED)
def test_any_sequence_of_whole_frames_raises_protocol_errors_only(
    frames: list[bytes], is_dialer: bool, make: type[Connection]
) -> None:
    side = make(is_dialer=is_dialer)
    before = side.state
    events, error = heard(side, frames)
    if before is State.GREETING:
        assert all(isinstance(event, HelloReceived | PeerLeft) for event in events[:1])
    if error:
        side.receive_data(frame(FrameKind.PING, 0, b"12345678"))
        assert side.next_event() is None


def transcript(seed: int) -> list[bytes]:
    """What an honest dialer writes in a short talk, frame by frame."""
    rnd = random.Random(seed)
    pair = Pair()
    written = [b"".join(pair.sides[DIALER].next_frame())]
    pair.write(LISTENER)
    pair.deliver(DIALER)
    dialer = pair.sides[DIALER]
    for _ in range(rnd.randrange(1, 6)):
        stream = dialer.open_stream(WANT, lane=rnd.choice(list(Lane)), end=False)
        dialer.send_blocks(stream, [rnd.randbytes(rnd.randrange(50))])
        dialer.send_message(stream, BlocksSent(missing=b""), end=rnd.random() < 0.5)
        if rnd.random() < 0.3:
            dialer.reset(stream, ErrorCode.CANCELLED, "no more")
    dialer.ping(b"12345678")
    return written + all_frames(dialer)


@given(seed=st.integers(0, 1000), data=st.data())
def test_a_mutated_talk_raises_protocol_errors_only(seed: int, data: st.DataObject) -> None:
    frames = transcript(seed)
    rnd = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(rnd.randrange(1, 5)):
        at = rnd.randrange(len(frames))
        match rnd.randrange(5):
            case 0:
                frames.insert(at, frames[rnd.randrange(len(frames))])
            case 1:
                frames[at] = frames[-1]
            case 2 if frames[at]:
                raw = bytearray(frames[at])
                raw[rnd.randrange(min(len(raw), 24))] = rnd.randrange(256)
                frames[at] = bytes(raw)
            case 3 if frames[at]:
                frames[at] = frames[at][: rnd.randrange(len(frames[at]))]
            case 4:
                rnd.shuffle(frames)
    heard(connection(is_dialer=False), frames)


@given(seed=st.integers(0, 1000), flip=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 40), max_size=8))
def test_however_the_bytes_are_cut_they_mean_the_same(seed: int, flip: int, cuts: list[int]) -> None:
    whole = bytearray(b"".join(transcript(seed)))
    if flip % 2:
        whole[flip % len(whole)] ^= 1 << flip % 8
    data = bytes(whole)
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    expected = heard(connection(is_dialer=False), [data])
    assert heard(connection(is_dialer=False), [*pieces, data[at:]]) == expected
    assert heard(connection(is_dialer=False), [data[at : at + 1] for at in range(len(data))]) == expected


@pytest.mark.parametrize(
    "frames",
    [
        [frame(FrameKind.MESSAGE, 1, encode(WANT))],
        [frame(FrameKind.OPEN, 2, encode(WANT))],
        [frame(FrameKind.OPEN, 0, encode(WANT))],
        [frame(FrameKind.OPEN, 3, encode(WANT)), frame(FrameKind.OPEN, 3, encode(WANT))],
        [frame(FrameKind.OPEN, 3, encode(WANT)), frame(FrameKind.BLOCKS, 1, b"x")],
        [frame(FrameKind.OPEN, 1 + 2 * 64, encode(WANT))],
        [frame(FrameKind.OPEN, 1, encode(WANT), flags=END_STREAM), frame(FrameKind.BLOCKS, 1, b"x")],
        [frame(FrameKind.CREDIT, 2, bytes(4))],
        [frame(FrameKind.RESET, 0, encode(Refusal(error=1, reason="")))],
        [frame(FrameKind.HELLO, 0, encode(hello()))],
        [frame(FrameKind.GOODBYE, 0, encode(WANT))],
    ],
)
def test_a_frame_at_the_wrong_moment_is_unexpected(frames: list[bytes]) -> None:
    side = greeted(is_dialer=False)
    side.receive_data(b"".join(frames))
    with pytest.raises(Unexpected):
        events_of(side)


def test_nothing_but_a_hello_or_a_goodbye_opens_a_talk() -> None:
    for kind in set(FrameKind) - {FrameKind.HELLO, FrameKind.GOODBYE}:
        side = connection(is_dialer=False)
        side.receive_data(pack_header(kind, 1, 0))
        with pytest.raises(Unexpected):
            side.next_event()


def test_a_peer_that_sends_more_than_it_was_granted_is_cut_off() -> None:
    side = greeted(is_dialer=False)
    side.receive_data(frame(FrameKind.OPEN, 1, encode(WANT)))
    chunk = bytes(4 * 1024 * 1024)
    for _ in range(STREAM_CREDIT // len(chunk)):
        side.receive_data(frame(FrameKind.BLOCKS, 1, chunk))
    assert sum(len(e.sealed) for e in events_of(side) if isinstance(e, BlocksReceived)) == STREAM_CREDIT
    side.receive_data(frame(FrameKind.BLOCKS, 1, b"x"))
    with pytest.raises(CreditExceeded):
        side.next_event()


def test_a_peer_that_opens_too_many_streams_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "STREAMS_MAX", 2)
    side = greeted(is_dialer=False)
    side.receive_data(b"".join(frame(FrameKind.OPEN, stream, encode(WANT)) for stream in (1, 3, 5)))
    with pytest.raises(CreditExceeded):
        events_of(side)


def test_a_peer_that_pings_and_never_reads_is_cut_off() -> None:
    side = greeted(is_dialer=False)
    side.receive_data(frame(FrameKind.PING, 0, bytes(8)) * 10_000)
    with pytest.raises(CreditExceeded):
        events_of(side)
    assert side.statistics().queued_bytes < 4096


def test_after_an_error_only_a_goodbye_goes_out_and_nothing_comes_in() -> None:
    side = greeted(is_dialer=False)
    side.receive_data(frame(FrameKind.OPEN, 1, b"junk") + frame(FrameKind.OPEN, 3, encode(WANT)))
    with pytest.raises(Malformed):
        side.next_event()
    assert side.next_event() is None
    side.goodbye(ErrorCode.MALFORMED, "junk")
    (last,) = all_frames(side)
    assert last[4] == FrameKind.GOODBYE
    assert side.next_event() is None


def test_a_half_frame_does_not_survive_a_goodbye() -> None:
    side = greeted(is_dialer=False)
    whole = frame(FrameKind.OPEN, 1, encode(WANT))
    side.receive_data(whole[:20])
    assert side.next_event() is None
    side.goodbye(ErrorCode.STOPPING, "good night")
    side.receive_data(whole[20:])
    assert side.next_event() is None


# -- what two honest ends do ------------------------------------------------------------------


def open_pair() -> Pair:
    pair = Pair()
    pair.settle()
    return pair


def test_a_question_and_its_answers_arrive_and_leave_nothing_behind() -> None:
    pair = open_pair()
    dialer, listener = pair.sides
    stream = dialer.open_stream(WANT, lane=Lane.SYNC, end=True)
    pair.settle()
    listener.send_blocks(stream, [b"sealed", memoryview(b" bytes")])
    listener.send_message(stream, BlocksSent(missing=b""), end=True)
    pair.settle()
    assert pair.events[LISTENER][1:] == [StreamOpened(stream, Lane.SYNC, WANT, True)]
    assert pair.events[DIALER][1:] == [
        BlocksReceived(stream, b"sealed bytes", False),
        MessageReceived(stream, BlocksSent(missing=b""), len(encode(BlocksSent(missing=b""))), True),
    ]
    assert [side.statistics().streams_open for side in pair.sides] == [0, 0]


def test_a_repair_behind_a_hundred_bulk_frames_goes_out_next() -> None:
    pair = open_pair()
    dialer = pair.sides[DIALER]
    bulk = dialer.open_stream(WANT, lane=Lane.SYNC, end=False)
    for _ in range(100):
        dialer.send_blocks(bulk, [bytes(1000)])
    dialer.open_stream(RepairBlocks(ids=bytes(32), cause="corrupt"), lane=Lane.REPAIR, end=True)
    assert dialer.next_lane() is not None and dialer.next_lane()[0] is Lane.REPAIR  # type: ignore[index]
    pair.write(DIALER)
    (event,) = pair.deliver(LISTENER)
    assert isinstance(event, StreamOpened) and isinstance(event.request, RepairBlocks)


def test_frames_leave_in_the_order_of_their_lanes_and_a_later_stream_may_arrive_first() -> None:
    pair = open_pair()
    streams = [pair.sides[DIALER].open_stream(WANT, lane=lane, end=True) for lane in reversed(Lane)]
    pair.settle()
    opened = [event for event in pair.events[LISTENER] if isinstance(event, StreamOpened)]
    assert [event.lane for event in opened] == list(Lane)
    assert [event.stream for event in opened] == streams[::-1]


@pytest.mark.parametrize("lane", list(Lane))
def test_a_reset_does_not_overtake_its_open(lane: Lane) -> None:
    pair = open_pair()
    dialer = pair.sides[DIALER]
    stream = dialer.open_stream(WANT, lane=lane, end=False)
    dialer.send_blocks(stream, [b"never sent"])
    dialer.reset(stream, ErrorCode.CANCELLED, "changed my mind")
    pair.settle()
    assert pair.events[LISTENER][1:] == [
        StreamOpened(stream, lane, WANT, False),
        StreamReset(stream, ErrorCode.CANCELLED, "changed my mind"),
    ]


def test_a_question_that_nobody_asks_any_more_is_taken_back_in_the_same_breath() -> None:
    """Written one by one under a slow rule, the peer would answer in between, and at a pace of before or after."""
    pair = open_pair()
    dialer = pair.sides[DIALER]
    dialer.open_stream(WANT, lane=Lane.SYNC, end=True)
    unwanted = dialer.open_stream(WANT, lane=Lane.SYNC, end=True)
    dialer.reset(unwanted, ErrorCode.CANCELLED, "no longer wanted")
    assert dialer.next_lane() is not None
    dialer.next_frame()
    written = b"".join(dialer.next_frame())
    assert dialer.next_lane() is None and dialer.statistics().frames_out == 4
    pair.sides[LISTENER].receive_data(written)
    assert isinstance(pair.sides[LISTENER].next_event(), StreamOpened)
    assert pair.sides[LISTENER].next_event() == StreamReset(unwanted, ErrorCode.CANCELLED, "no longer wanted")


def test_a_reset_waits_behind_no_bulk_and_comes_before_what_is_asked_next() -> None:
    """A pace that is told after a receive has ended must find its questions ended."""
    pair = open_pair()
    dialer = pair.sides[DIALER]
    stream = dialer.open_stream(WANT, lane=Lane.SYNC, end=True)
    bulk = dialer.open_stream(WANT, lane=Lane.SYNC, end=False)
    pair.settle()
    dialer.send_blocks(bulk, [bytes(5_000)])
    dialer.reset(stream, ErrorCode.CANCELLED, "no longer wanted")
    dialer.open_stream(WANT, lane=Lane.CONTROL, end=True)
    pair.settle()
    kinds = [type(event) for event in pair.events[LISTENER][-3:]]
    assert kinds == [StreamReset, StreamOpened, BlocksReceived]


def test_what_nobody_wants_any_more_is_not_sent_although_the_answer_was_complete() -> None:
    """A whole answer may wait for minutes under a slow rule. Whoever asked has gone; its bytes would still go out."""
    pair = open_pair()
    dialer, listener = pair.sides
    stream = dialer.open_stream(WANT, lane=Lane.SYNC, end=True)
    pair.settle()
    listener.send_blocks(stream, [bytes(5_000)])
    listener.send_blocks(stream, [bytes(5_000)], end=True)
    assert not listener.is_open(stream)
    dialer.reset(stream, ErrorCode.CANCELLED, "no longer wanted")
    pair.write(DIALER)
    pair.deliver(LISTENER)
    assert listener.statistics().queued_bytes == 0


def test_a_stream_of_ours_that_the_peer_has_reset_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "STREAMS_MAX", 1)
    pair = open_pair()
    dialer, listener = pair.sides
    stream = dialer.open_stream(WANT, lane=Lane.SEED, end=False)
    pair.settle()
    listener.send_message(stream, WANT, end=True)
    pair.write(LISTENER)
    pair.deliver(DIALER)
    dialer.send_message(stream, WANT, end=True)
    assert not dialer.can_open(), "its last frame waits, and the peer counts it as open"
    listener.reset(stream, ErrorCode.CANCELLED, "no longer wanted")
    pair.write(LISTENER)
    pair.deliver(DIALER)
    assert dialer.can_open() and dialer.statistics().queued_bytes == 0


def test_credit_does_not_overtake_the_open_of_its_stream() -> None:
    pair = open_pair()
    dialer = pair.sides[DIALER]
    stream = dialer.open_stream(WANT, lane=Lane.SEED, end=True)
    dialer.grant(stream, 1_000_000)
    pair.settle()
    assert pair.events[LISTENER][2:] == [CreditGranted(stream)]
    assert pair.sides[LISTENER].send_credit(stream) == STREAM_CREDIT + 1_000_000


def test_a_stream_whose_end_still_waits_counts_for_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "STREAMS_MAX", 2)
    pair = open_pair()
    dialer, listener = pair.sides
    streams = [dialer.open_stream(WANT, lane=Lane.SEED, end=False) for _ in range(2)]
    pair.settle()
    dialer.reset(streams[0], ErrorCode.CANCELLED, "")
    dialer.send_message(streams[1], WANT, end=True)
    listener.send_message(streams[1], WANT, end=True)
    pair.write(LISTENER)
    pair.deliver(DIALER)
    assert dialer.statistics().streams_open == 0
    assert not dialer.can_open()
    pair.write(DIALER)
    assert dialer.can_open()
    dialer.open_stream(WANT, lane=Lane.CONTROL, end=True)
    pair.settle()


def test_a_reason_that_is_not_valid_text_is_sent_all_the_same() -> None:
    pair = open_pair()
    stream = pair.sides[DIALER].open_stream(WANT, lane=Lane.SYNC, end=False)
    pair.sides[DIALER].reset(stream, ErrorCode.STORAGE, "no such file: \udcff" + "\N{BRAHMI LETTER KA}" * 2000)
    pair.settle()
    assert isinstance(pair.events[LISTENER][-1], StreamReset)


def test_a_ping_is_answered_with_its_token() -> None:
    pair = open_pair()
    for token in (b"12345678", b"abcdefgh"):
        pair.sides[DIALER].ping(token)
    pair.settle()
    assert pair.events[DIALER][1:] == [PongReceived(b"12345678"), PongReceived(b"abcdefgh")]


def step(talk: Talk, rnd: random.Random) -> None:
    """Anything that an end may do."""
    side = rnd.randrange(2)
    streams = talk.known[side]
    match rnd.randrange(9):
        case 0:
            talk.open(side, rnd.choice(list(Lane)), end=rnd.random() < 0.3)
        case 1 | 2 | 3 if streams:
            talk.send(side, rnd.choice(streams), rnd.choice([0, 10, 1000, 300_000]), end=rnd.random() < 0.2)
        case 4 if streams and rnd.random() < 0.3:
            talk.reset(side, rnd.choice(streams))
        case 5 if streams:
            talk.grant(side, rnd.choice(streams), more=rnd.choice([0, 1000]))
        case 6:
            talk.pair.write(side)
        case 7:
            talk.deliver(side, rnd.choice([1, 7, 100, None]))
        case 8 if rnd.random() < 0.2:
            talk.pair.sides[side].ping(bytes(8))


@given(seed=st.integers(0, 2**32))
def test_two_ends_that_do_anything_never_break_a_rule_or_lose_a_byte(seed: int) -> None:
    rnd = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection_module, "STREAMS_MAX", 3)
        talk = Talk()
        try:
            for _ in range(250):
                step(talk, rnd)
            talk.finish()
        except ProtocolError as error:  # pragma: no cover
            pytest.fail(f"an honest peer was accused: {error!r}")


def test_what_waited_for_a_line_that_is_gone_is_let_go_of_and_counted_on() -> None:
    pair = open_pair()
    dialer = pair.sides[DIALER]
    stream = dialer.open_stream(WANT, lane=Lane.SYNC, end=False)
    dialer.send_blocks(stream, [bytes(100_000)])
    sent = dialer.statistics().bytes_out
    dialer.forget()
    left = dialer.statistics()
    assert (left.queued_bytes, left.streams_open, left.bytes_out) == (0, 0, sent)
    assert not dialer.is_open(stream) and dialer.next_lane() is None
    dialer.grant(stream, 1)
    dialer.reset(stream, ErrorCode.CANCELLED, "")
    assert dialer.statistics().queued_bytes == 0
