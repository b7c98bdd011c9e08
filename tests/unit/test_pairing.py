"""Pairing codes: what they say, what mistyping does, and how few guesses there are."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode
from protocol.ids import SiteId
from replicator.catalog.catalog import Catalog
from replicator.catalog.peers import plain_name
from replicator.core.errors import UsageError
from replicator.net.address import split_address
from replicator.net.pairing import PairingCode
from tests.support.clocks import FakeWallClock

CODE = PairingCode(("192.0.2.7:7421", "[2001:db8::1]:7421"), SiteId(bytes(range(32))), b"i" * 16, b"s" * 16)
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@pytest.fixture
def clock() -> FakeWallClock:
    return FakeWallClock()


@pytest.fixture
def catalog(tmp_path, clock):  # type: ignore[no-untyped-def]
    opened = Catalog(tmp_path / "catalog.sqlite", clock=clock)
    yield opened
    opened.close()


def test_a_code_survives_being_printed_copied_and_shouted() -> None:
    assert PairingCode.parse(str(CODE)) == CODE
    assert PairingCode.parse(f"  {str(CODE).upper()}\n") == CODE


@given(at=st.integers(4, 180), letter=st.sampled_from(ALPHABET))
def test_every_single_mistyped_letter_is_found_without_asking_anybody(at: int, letter: str) -> None:
    text = str(CODE)
    at = min(at, len(text) - 2)  # (The very last letter carries bits that mean nothing.)
    if text[at] != letter:
        with pytest.raises(UsageError):
            PairingCode.parse(text[:at] + letter + text[at + 1 :])


@given(at=st.integers(0, 180))
def test_two_letters_swapped_or_an_end_cut_off_are_found(at: int) -> None:
    text = str(CODE)
    with pytest.raises(UsageError):
        PairingCode.parse(text[: min(at, len(text) - 2)])
    swapped = text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]
    if swapped != text:
        with pytest.raises(UsageError):
            PairingCode.parse(swapped)


@given(text=st.text(max_size=200))
def test_nothing_that_somebody_could_paste_is_more_than_a_wrong_code(text: str) -> None:
    for candidate in (text, f"rp1-{text}", str(CODE) + text[:3]):
        try:
            PairingCode.parse(candidate)
        except UsageError as error:
            assert error.hint


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:port", "host:65536", "host:-1", "host:1x"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        split_address(address)


def test_ten_thousand_guesses_find_nothing_and_five_are_all_that_count(catalog: Catalog) -> None:
    rnd = random.Random(1)
    catalog.peers.add_invite(b"i" * 16, b"s" * 16, expires_ns=2**62)
    verdicts = [catalog.peers.redeem(b"i" * 16, rnd.randbytes(16), by=b"x" * 32) for _ in range(10_000)]
    assert verdicts[:5] == [ErrorCode.PAIR_CODE_WRONG] * 5
    assert set(verdicts[5:]) == {ErrorCode.PAIR_CODE_DEAD}
    assert catalog.peers.redeem(b"i" * 16, b"s" * 16, by=b"x" * 32) is ErrorCode.PAIR_CODE_DEAD


def test_four_wrong_guesses_leave_the_right_one(catalog: Catalog) -> None:
    catalog.peers.add_invite(b"i" * 16, b"s" * 16, expires_ns=2**62)
    for _ in range(4):
        assert catalog.peers.redeem(b"i" * 16, b"w" * 16, by=b"x" * 32) is ErrorCode.PAIR_CODE_WRONG
    assert catalog.peers.redeem(b"i" * 16, b"s" * 16, by=b"x" * 32) is ErrorCode.OK


def test_a_code_is_used_by_one_site_however_often_that_one_asks(catalog: Catalog) -> None:
    catalog.peers.add_invite(b"i" * 16, b"s" * 16, expires_ns=2**62)
    for _ in range(3):
        assert catalog.peers.redeem(b"i" * 16, b"s" * 16, by=b"x" * 32) is ErrorCode.OK
    assert catalog.peers.redeem(b"i" * 16, b"s" * 16, by=b"y" * 32) is ErrorCode.PAIR_CODE_USED


def test_a_code_ends_with_its_minutes(catalog: Catalog, clock: FakeWallClock) -> None:
    catalog.peers.add_invite(b"i" * 16, b"s" * 16, expires_ns=clock.now_ns() + 600 * 10**9)
    clock.advance(601)
    assert catalog.peers.redeem(b"i" * 16, b"s" * 16, by=b"x" * 32) is ErrorCode.PAIR_CODE_EXPIRED
    assert catalog.peers.redeem(b"n" * 16, b"s" * 16, by=b"x" * 32) is ErrorCode.PAIR_CODE_WRONG


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("cabin", "cabin"), ("\x1b[2J\x07", "2J"), ("../../etc", "etc"), ("", "site"),
        ("Füße am See", "F-e-am-See"), ("x" * 500, "x" * 63),
    ],
)  # fmt: skip
def test_the_name_that_a_site_gives_itself_is_made_plain(given_name: str, shown: str) -> None:
    assert plain_name(given_name) == shown


def test_two_sites_of_one_name_can_be_told_apart(catalog: Catalog) -> None:
    names = [catalog.peers.add(bytes([n]) * 32, name="cabin", addresses=[]).name for n in range(3)]
    assert names == ["cabin", "cabin-2", "cabin-3"]
    assert catalog.peers.add(bytes([1]) * 32, name="cabin", addresses=["a:1"]).name == "cabin-2"
