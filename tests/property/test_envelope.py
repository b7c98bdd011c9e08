"""The sealed block: what goes in comes out, and nothing else ever does."""

import random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed, ProtocolError, TooLarge
from protocol.limits import BLOCK_BODY_MAX
from protocol.wire.envelope import Codec, parse_header, seal, unseal, walk
from protocol.wire.hashing import Kind, block_id
from tests.support.blocks import body_of, flipped

REPEATED = st.builds(lambda part, times: part * times, st.binary(min_size=1), st.integers(0, 200))
BODIES = st.binary(max_size=3000) | REPEATED
KINDS = st.sampled_from(Kind)


@given(kind=KINDS, body=BODIES, before=st.binary(max_size=20), after=st.binary(max_size=20))
def test_any_body_comes_back_from_anywhere_in_a_buffer(kind: Kind, body: bytes, before: bytes, after: bytes) -> None:
    sealed = seal(kind, body)
    header, opened = unseal(before + sealed + after, len(before))
    assert bytes(opened) == body
    assert (header.kind, header.block_id, header.sealed_bytes) == (kind, block_id(kind, body), len(sealed))


@given(parts=st.lists(st.tuples(KINDS, BODIES), max_size=5))
def test_a_run_is_walked_without_opening_it(parts: list[tuple[Kind, bytes]]) -> None:
    run = b"".join(seal(kind, body) for kind, body in parts)
    assert [header.block_id for _, header in walk(run)] == [block_id(kind, body) for kind, body in parts]
    if run:
        with pytest.raises(Malformed):
            list(walk(run[:-1]))


@pytest.mark.parametrize("seed", [0, 1, 2, 3], ids=["packed", "raw", "packed too", "raw too"])
def test_no_single_flipped_bit_gets_wrong_bytes_out(seed: int) -> None:
    """Each one is noticed, also one that LZ4 would shrug off: it can say the same body in two ways."""
    body = body_of(seed, 400)
    sealed = seal(Kind.DATA, body)
    unnoticed = []
    for bit in range(len(sealed) * 8):
        try:
            assert bytes(unseal(flipped(sealed, bit))[1]) == body
            unnoticed.append(bit)
        except ProtocolError:
            pass
    assert parse_header(sealed).codec == (Codec.RAW if seed % 2 else Codec.LZ4)
    assert unnoticed == []


@given(kind=KINDS, body=BODIES, cut=st.integers(0, 4000))
def test_a_block_cut_short_is_malformed(kind: Kind, body: bytes, cut: int) -> None:
    sealed = seal(kind, body)
    with pytest.raises(Malformed):
        unseal(sealed[: cut % len(sealed)])


@given(
    body=BODIES, kind=st.integers(0, 4), codec=st.integers(0, 3), flags=st.sampled_from([0, 1]),
    body_bytes=st.sampled_from([0, 1, 1000, BLOCK_BODY_MAX, BLOCK_BODY_MAX + 1, 2**32 - 1]),
    payload_bytes=st.sampled_from([None, 0, 1, 1000, BLOCK_BODY_MAX, 2**32 - 1]),
)  # fmt: skip
def test_a_forged_header_with_a_right_checksum_is_refused(
    body: bytes, kind: int, codec: int, flags: int, body_bytes: int, payload_bytes: int | None
) -> None:
    """The checksum is no secret: whoever lies in the header computes it too."""
    size = len(body) if payload_bytes is None else payload_bytes
    fields = b"\x89RSB" + bytes([1, kind, codec, flags]) + body_bytes.to_bytes(4, "big") + size.to_bytes(4, "big")
    fields += block_id(Kind.DATA, body) + (crc32(body) if codec else 0).to_bytes(4, "big")
    forged = fields + crc32(fields).to_bytes(4, "big") + body
    try:
        header, opened = unseal(forged)
    except ProtocolError:
        return
    assert block_id(header.kind, bytes(opened)) == header.block_id


def test_a_body_over_the_limit_is_not_sealed() -> None:
    seal(Kind.DATA, bytes(BLOCK_BODY_MAX))
    with pytest.raises(TooLarge):
        seal(Kind.DATA, bytes(BLOCK_BODY_MAX + 1))


def test_the_same_body_has_another_name_in_each_domain() -> None:
    assert len({block_id(kind, b"body") for kind in Kind}) == len(Kind)


@given(junk=st.binary(max_size=300), seed=st.integers(0, 1000))
def test_bytes_of_strangers_never_raise_anything_else(junk: bytes, seed: int) -> None:
    rnd = random.Random(seed)
    sealed = bytearray(seal(Kind.DATA, junk))
    for _ in range(rnd.randrange(1, 8)):
        sealed[rnd.randrange(len(sealed))] = rnd.randrange(256)
    for data in (junk, bytes(sealed)):
        try:
            unseal(data)
        except ProtocolError:
            continue
