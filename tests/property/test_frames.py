"""Frame headers, and the buffer they are parsed from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed, ProtocolError, TooLarge
from protocol.limits import BLOCKS_FRAME_MAX, CONTROL_FRAME_MAX
from protocol.wire.buffer import ReceiveBuffer
from protocol.wire.frames import END_STREAM, FRAME_HEADER_BYTES, FrameKind, Lane, pack_header, parse_frame_header

KINDS = st.sampled_from(FrameKind)


@given(
    kind=KINDS, stream=st.integers(0, 2**32 - 1), length=st.integers(0, 4), lane=st.sampled_from(Lane),
    flags=st.sampled_from([0, END_STREAM]),
)  # fmt: skip
def test_a_header_comes_back(kind: FrameKind, stream: int, length: int, lane: Lane, flags: int) -> None:
    header = parse_frame_header(pack_header(kind, stream, length, lane=lane, flags=flags))
    assert (header.kind, header.stream, header.length, header.lane, header.flags) == (kind, stream, length, lane, flags)


@given(raw=st.binary(min_size=FRAME_HEADER_BYTES, max_size=FRAME_HEADER_BYTES))
def test_any_twelve_bytes_are_a_header_inside_its_limits_or_refused(raw: bytes) -> None:
    try:
        header = parse_frame_header(raw)
    except ProtocolError:
        return
    assert header.length <= BLOCKS_FRAME_MAX
    assert pack_header(header.kind, header.stream, header.length, lane=header.lane, flags=header.flags) == raw


@pytest.mark.parametrize(("at", "value"), [(4, 0), (4, 10), (5, 2), (5, 128), (6, 5), (7, 1)])
def test_an_unknown_kind_flag_or_lane_is_malformed(at: int, value: int) -> None:
    raw = bytearray(pack_header(FrameKind.MESSAGE, 1, 4))
    raw[at] = value
    with pytest.raises(Malformed):
        parse_frame_header(raw)


@pytest.mark.parametrize("kind", list(FrameKind))
def test_a_length_is_refused_before_a_byte_of_it_is_kept(kind: FrameKind) -> None:
    raw = bytearray(pack_header(kind, 1, 0))
    raw[:4] = b"\xff\xff\xff\xff"
    with pytest.raises(TooLarge):
        parse_frame_header(raw)
    raw[:4] = (CONTROL_FRAME_MAX + 1).to_bytes(4, "big")
    if kind is not FrameKind.BLOCKS:
        with pytest.raises(TooLarge):
            parse_frame_header(raw)


@given(pieces=st.lists(st.binary(max_size=3000), max_size=12), sizes=st.lists(st.integers(0, 5000), max_size=12))
def test_a_buffer_gives_back_what_it_got_in_any_cut(pieces: list[bytes], sizes: list[int]) -> None:
    buffer, whole, at = ReceiveBuffer(), b"", 0
    for turn in range(max(len(pieces), len(sizes))):
        if turn < len(pieces):
            buffer.append(pieces[turn])
            whole += pieces[turn]
        if turn < len(sizes):
            found = buffer.take(sizes[turn])
            assert found == (whole[at : at + sizes[turn]] if sizes[turn] <= len(whole) - at else None)
            at += len(found or b"")
        assert len(buffer) == len(whole) - at


def test_a_peer_that_sends_byte_by_byte_costs_little_memory() -> None:
    buffer = ReceiveBuffer()
    for _ in range(300_000):
        buffer.append(b"x")
    assert len(buffer._pieces) < 10
    assert buffer.take(300_000) == b"x" * 300_000
