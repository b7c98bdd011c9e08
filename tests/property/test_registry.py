"""Messages: each one survives the wire, and grows only at its end."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocol.machines.connection  # noqa: F401  (all messages register)
from protocol.errors import Malformed, ProtocolError, TooLarge
from protocol.limits import CONTROL_FRAME_MAX, LIST_MAX, TEXT_MAX
from protocol.messages import registry
from protocol.messages.registry import Message, Size, decode, encode, message, registered, unpack
from protocol.messages.session import PairWelcome, Refusal
from protocol.messages.snapshots import DiffNames
from tests.support.messages import any_message, messages_of

ALL = list(registered().values())


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_message_survives_the_wire(cls: type[Message]) -> None:
    @given(item=messages_of(cls))
    def survives(item: Message) -> None:
        assert decode(encode(item)) == item

    survives()


ANYTHING = st.integers(-(2**63), 2**63) | st.text(max_size=50) | st.binary(max_size=50) | st.booleans()


@given(item=any_message(), more=st.lists(ANYTHING, max_size=3))
def test_fields_that_a_newer_release_appends_are_ignored(item: Message, more: list[object]) -> None:
    parts = unpack(encode(item))
    assert decode(msgpack.packb(parts + more)) == item


@given(item=any_message(), data=st.data())
def test_a_missing_field_without_default_is_malformed(item: Message, data: st.DataObject) -> None:
    parts = unpack(encode(item))
    required = sum(field.default is field.default_factory for field in fields(item))  # type: ignore[arg-type]
    if required:
        with pytest.raises(Malformed):
            decode(msgpack.packb(parts[: data.draw(st.integers(0, required))]))


@pytest.fixture
def grown() -> Iterator[type[Message]]:
    """A message as a later version might have it: the last field came with a default."""

    @message(code=0xFFF0, since=2)
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Grown(Message):
        old: Annotated[bytes, Size(2, multiple=True, most=2)]
        names: tuple[str, ...]
        new: int = 7

    yield Grown
    del registry._FORMS[0xFFF0]


def test_a_field_that_an_older_release_did_not_send_has_its_default(grown: type[Message]) -> None:
    assert decode(msgpack.packb([0xFFF0, b"ab", ["x"]])) == grown(old=b"ab", names=("x",), new=7)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([0xFFF0, b"abc", []], Malformed),
        ([0xFFF0, b"abcdef", []], TooLarge),
        ([0xFFF0, "ab", []], Malformed),
        ([0xFFF0, b"ab", ["x", b"y"]], Malformed),
        ([0xFFF0, b"ab", {}], Malformed),
        ([0xFFF0, b"ab", [], -1], Malformed),
        ([0xFFF0, b"ab", [], True], Malformed),
        ([0xFFF0, b"ab", [], 1.0], Malformed),
        ([0xFFF1], Malformed),
        ([True], Malformed),
        ([], Malformed),
        (7, Malformed),
        ({"a": 1}, Malformed),
        ([0xFFF0, b"ab", ["x" * (TEXT_MAX + 1)]], Malformed),
        ([0xFFF0, b"ab", ["x"] * (LIST_MAX + 1)], Malformed),
        ([0xFFF0, b"ab", [], msgpack.ExtType(1, b"x")], Malformed),
        ([0xFFF0, b"ab", [], msgpack.ExtType(1, b"")], Malformed),
        ([0xFFF0, b"ab", [], msgpack.Timestamp(1)], Malformed),
    ],
)
def test_a_field_of_the_wrong_type_or_size_is_refused(
    grown: type[Message], parts: object, error: type[ProtocolError]
) -> None:
    with pytest.raises(error):
        decode(msgpack.packb(parts))


@pytest.mark.parametrize("bomb", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x81\x01\x01"])
def test_a_bomb_is_malformed(bomb: bytes) -> None:
    with pytest.raises(Malformed):
        decode(bomb)


@given(junk=st.binary(max_size=200))
def test_junk_is_malformed_and_nothing_else(junk: bytes) -> None:
    try:
        decode(junk)
    except ProtocolError:
        return


@given(item=any_message(), data=st.data())
def test_a_mutated_message_is_a_message_or_a_protocol_error(item: Message, data: st.DataObject) -> None:
    raw = bytearray(encode(item))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(raw))
    except ProtocolError:
        return


def test_what_the_peer_would_refuse_is_not_sent() -> None:
    with pytest.raises(TooLarge):
        encode(Refusal(error=1, reason="ä" * (TEXT_MAX // 2 + 1)))
    with pytest.raises(TooLarge):
        encode(PairWelcome(site_id=bytes(32), name="x", addresses=("x" * (TEXT_MAX + 1),)))  # type: ignore[arg-type]
    with pytest.raises(TooLarge):
        encode(DiffNames(keys=(b"",) * (LIST_MAX + 1), values=()))
    with pytest.raises(TooLarge):
        encode(DiffNames(keys=(bytes(CONTROL_FRAME_MAX),), values=()))
