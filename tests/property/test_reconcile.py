"""Two sites that do not share all blocks find out which, whatever the sets and whatever arrives."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.derived import DerivedSet, derived_ids, random_heads
from bench.reconcile import measure
from protocol.errors import Malformed, ProtocolError, TooLarge, Unexpected
from protocol.ids import SnapshotId
from protocol.limits import (
    CONTROL_FRAME_MAX,
    SUMMARY_TURN_CELLS_MAX,
    SUMMARY_TURN_MESSAGES_MAX,
    SUMMARY_TURNS_MAX,
)
from protocol.machines.reconcile import Reconciled, Reconciliation
from protocol.machines.reconcile_turn import Answer
from protocol.merkle import codes
from protocol.merkle.cells import U64, pack_records
from protocol.messages.registry import Message, decode, encode
from protocol.messages.summary import SummaryAnswers, SummaryCells, SummaryClose, SummaryOpen
from protocol.wire.frames import FRAME_HEADER_BYTES
from replicator.index.tokens import TokenKey, heads
from replicator.index.view import FrozenSet

SNAPSHOT, NONCE = SnapshotId(b"s" * 16), b"nonce of 16 byte"
KEY = TokenKey(snapshot_id=SNAPSHOT, nonce=NONCE)

Tamper = Callable[[int, list[bytes]], list[bytes]]
"""Given the number of a turn and its messages, what arrives instead."""


def side(ids: set[bytes], key: TokenKey = KEY) -> Reconciliation:
    return Reconciliation(FrozenSet(b"".join(sorted(ids)), key), snapshot_id=SNAPSHOT, nonce=NONCE)


def converse(initiator: Reconciliation, responder: Reconciliation, tamper: Tamper = lambda _, turn: turn) -> int:
    """Pass bytes until nobody says more; the number of turns. Raises `ProtocolError` as the sides do."""
    sides, turns = (initiator, responder), 0
    messages = initiator.start()
    while messages:
        turns += 1
        assert turns <= 2 * SUMMARY_TURNS_MAX + 1, "a session without end"
        packed = [encode(message) for message in messages]
        assert max(map(len, packed)) <= CONTROL_FRAME_MAX
        arrived = [decode(data) for data in tamper(turns, packed)]
        messages = [answer for message in arrived for answer in sides[turns % 2].receive(message)]
    return turns


def assert_exact(mine: set[bytes], theirs: set[bytes], initiator: Reconciliation, responder: Reconciliation) -> None:
    assert (initiator.done, responder.done) == (True, True)
    assert initiator.result.peer_lacks == b"".join(sorted(mine - theirs))
    assert responder.result.peer_lacks == b"".join(sorted(theirs - mine))
    assert initiator.result.shared_count == responder.result.shared_count == len(mine & theirs)
    assert [initiator.result.is_confirmed, responder.result.is_confirmed].count(True) == 1


def random_set(rng: np.random.Generator, count: int, prefix: bytes = b"") -> set[bytes]:
    return {prefix + rng.bytes(32 - len(prefix)) for _ in range(count)}


_sizes = st.one_of(st.just(0), st.integers(0, 12), st.integers(0, 2500))
_prefixes = st.sampled_from([b"", b"", b"", b"\x00", b"\x5a\xa5\x5a"])


@settings(max_examples=120, deadline=None)
@given(_sizes, _sizes, _sizes, _prefixes, st.integers(0, 2**32))
@example(0, 109, 1088, b"", 1)  # Crowded cells, whose count looks like that of a single block: once taken for guesses.
def test_two_random_sets_always_reconcile_exactly(
    shared: int, only_mine: int, only_theirs: int, prefix: bytes, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    both = random_set(rng, shared) | random_set(rng, shared // 4, prefix)
    mine, theirs = both | random_set(rng, only_mine, prefix), both | random_set(rng, only_theirs)
    initiator, responder = side(mine), side(theirs)
    turns = converse(initiator, responder)
    assert_exact(mine, theirs, initiator, responder)
    assert turns <= SUMMARY_TURNS_MAX
    assert initiator.result.turns_count == responder.result.turns_count == turns
    assert initiator.result.wire_bytes == responder.result.wire_bytes


@pytest.mark.parametrize("seed", range(12))
def test_many_differences_take_three_round_trips_at_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured = measure(random_heads(rng, 20_000), int(rng.integers(1, 20_000)), rng)
    assert measured.result.turns_count <= SUMMARY_TURNS_MAX
    assert measured.result.attempts_count == 1


def test_equal_sets_end_after_one_round_trip() -> None:
    ids = random_set(np.random.default_rng(1), 3000)
    initiator, responder = side(ids), side(ids)
    assert converse(initiator, responder) == 2
    assert_exact(ids, ids, initiator, responder)
    assert initiator.result.is_confirmed


def test_a_side_with_nothing_learns_so_in_one_round_trip() -> None:
    ids = random_set(np.random.default_rng(2), 3000)
    for mine, theirs in ((set(), ids), (ids, set())):
        initiator, responder = side(mine), side(theirs)
        assert converse(initiator, responder) == 2
        assert_exact(mine, theirs, initiator, responder)


def test_the_smaller_side_names_its_blocks_when_the_other_holds_far_more() -> None:
    rng = np.random.default_rng(3)
    few, many = random_set(rng, 20), random_set(rng, 40_000)
    initiator, responder = side(few), side(many)
    converse(initiator, responder)
    assert_exact(few, many, initiator, responder)
    assert initiator.result.wire_bytes < 10_000


def test_ids_that_crowd_one_cell_cost_no_more_than_to_name_them() -> None:
    """They share 40 bits: a day of hashing for each, and all it buys is five bytes a block."""
    rng = np.random.default_rng(4)
    crowd = random_set(rng, 5000, b"\xaa\xbb\xcc\xdd\xee")
    mine, theirs = random_set(rng, 5000) | crowd, set(crowd)
    theirs |= set(sorted(mine)[:2000])
    mine |= random_set(rng, 30, b"\xaa\xbb\xcc\xdd\xee")
    initiator, responder = side(mine), side(theirs)
    assert converse(initiator, responder) <= SUMMARY_TURNS_MAX
    assert_exact(mine, theirs, initiator, responder)
    assert initiator.result.wire_bytes < 3 * 5 * len(mine)


def test_a_large_cell_that_is_open_at_the_end_is_split_without_checks_for_nobody_looks_closer() -> None:
    """Where a list of what is in it would be dearer by half. The split before, which may be looked into, has checks."""
    heads_ = random_heads(np.random.default_rng(1), 1_000_000)
    seen: set[tuple[int, bool]] = set()
    for seed in (10, 0):
        rows = np.random.default_rng(seed).choice(len(heads_), 100, replace=False)
        sets = [derived_ids(np.delete(heads_, some)).data.cast("B") for some in (rows[:50], rows[50:])]
        one, other = (Reconciliation(FrozenSet(ids, KEY), snapshot_id=SNAPSHOT, nonce=NONCE) for ids in sets)

        def look(turn: int, packed: list[bytes]) -> list[bytes]:
            cells = [message for message in map(decode, packed) if isinstance(message, SummaryCells)]
            seen.update((turn, bool(message.checks)) for message in cells)
            return packed

        assert converse(one, other, look) <= SUMMARY_TURNS_MAX
    assert {(4, True), (5, False)} <= seen and (5, True) not in seen


# What a model of this exchange says that knows the differences beforehand (means over 20 seeds, of sets with 36-bit
# sums in all records): bytes, and turns at most. The real thing must not cost more, but for 15 %, or more round trips.
# (That two sets are equal the model knows from their roots alone: so do heartbeats, see tests/unit/test_standing.py.)
# Of 1e7 and 1e8 blocks the model says 25,318 and 28,847 bytes for 1,000 differences: `python -m bench.reconcile 1e7`.
EXPECTED = {
    (100_000, 1): (1_234, 2),
    (100_000, 10): (1_309, 3),
    (100_000, 100): (2_818, 5),
    (100_000, 1_000): (22_462, 6),
    (100_000, 10_000): (208_201, 6),
    (1_000_000, 10): (1_437, 3),
    (1_000_000, 1_000): (23_460, 6),
    (1_000_000, 10_000): (212_149, 6),
}


@pytest.mark.parametrize(("blocks", "differences"), EXPECTED)
def test_bytes_and_turns_stay_with_the_model(blocks: int, differences: int) -> None:
    runs = []
    for seed in range(6 if blocks <= 100_000 else 2):
        rng = np.random.default_rng(seed)
        runs.append(measure(random_heads(rng, blocks), differences, rng).result)
    expected_bytes, expected_turns = EXPECTED[blocks, differences]
    spent, turns = np.mean([run.wire_bytes for run in runs]), max(run.turns_count for run in runs)
    print(f"{blocks:,} blocks, {differences:,} differences: {spent:,.0f} bytes for {expected_bytes:,}, {turns} turns")
    assert 0.6 * expected_bytes < spent <= 1.15 * expected_bytes
    assert (turns + 1) // 2 <= (expected_turns + 1) // 2


def test_few_differences_cost_two_kilobytes_and_two_round_trips() -> None:
    for differences in (0, 1, 2, 5, 10):
        for seed in range(3):
            rng = np.random.default_rng(seed)
            result = measure(random_heads(rng, 300_000), differences, rng).result
            assert result.wire_bytes <= 2000
            assert result.turns_count <= 4


@pytest.mark.parametrize(("differences", "first", "known"), [(10, 0.5, 0.9), (1_000, 1.0, 0.1), (10_000, 1.0, 0.1)])
def test_a_block_that_is_lacking_is_known_after_one_round_trip(differences: int, first: float, known: float) -> None:
    """To the side that holds it; of many, after two, to nearly all of them."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        done = measure(random_heads(rng, 100_000), differences, rng)
        assert done.first_round_trips == first
        assert done.known_share(2) > known and done.known_share(4) > 0.8
        assert done.known_share(2 * done.round_trips) == 1.0
        for side, expected in zip(done.found_after, (differences // 2, differences - differences // 2), strict=True):
            assert list(side) == sorted(side) and side[-1] == expected


def test_a_set_that_derives_its_ids_is_the_set_that_keeps_them() -> None:
    heads_ = random_heads(np.random.default_rng(5), 30_000)
    key = TokenKey(snapshot_id=SNAPSHOT, nonce=NONCE)
    kept, derived = FrozenSet(derived_ids(heads_).data.cast("B"), key), DerivedSet(heads_, key)
    rows = np.array([3, 17, 29_999])
    assert kept.root() == derived.root()
    assert kept.ids(rows) == derived.ids(rows)
    assert kept.total(rows) == derived.total(rows)
    for lane in (0, 1):
        assert np.array_equal(kept.suffixes(rows, lane=lane), derived.suffixes(rows, lane=lane))
        for level in (7, 12, 20):
            prefixes = heads_[rows] >> np.uint64(64 - level)
            for one, other in zip(
                kept.cells(level, prefixes, lane=lane), derived.cells(level, prefixes, lane=lane), strict=True
            ):
                assert np.array_equal(one, other)


class BlindKey(TokenKey):
    """Gives blocks whose ids begin alike the same lane A: no cell can tell one from the other."""

    HEAD = b"\x77" * 8

    def tokens(self, ids: bytes) -> tuple[U64, U64]:  # type: ignore[override]
        lane_a, lane_b = super().tokens(ids)
        is_alike = heads(ids) == np.frombuffer(self.HEAD, ">u8").astype(np.uint64)
        return np.where(is_alike, np.uint64(5), lane_a), lane_b


@pytest.mark.parametrize("differences", [0, 5, 60, 1000])
def test_when_lane_a_misleads_the_second_attempt_is_exact(differences: int) -> None:
    rng = np.random.default_rng(differences)
    both = random_set(rng, 4000)
    mine = both | random_set(rng, differences) | random_set(rng, 1, BlindKey.HEAD)
    theirs = both | random_set(rng, differences) | random_set(rng, 1, BlindKey.HEAD)
    key = BlindKey(snapshot_id=SNAPSHOT, nonce=NONCE)
    initiator, responder = side(mine, key), side(theirs, key)
    turns = converse(initiator, responder)
    assert_exact(mine, theirs, initiator, responder)
    assert initiator.result.attempts_count == responder.result.attempts_count == 2
    assert initiator.result.turns_count == responder.result.turns_count == turns


def test_a_closing_root_that_is_never_right_ends_the_session() -> None:
    ids = random_set(np.random.default_rng(5), 1000)

    def lie(_: int, turn: list[bytes]) -> list[bytes]:
        messages = [decode(data) for data in turn]
        return [encode(replace(m, sum_a=m.sum_a ^ 1) if isinstance(m, SummaryClose) else m) for m in messages]

    initiator, responder = side(ids), side(ids)
    with pytest.raises(Malformed, match="neither lane"):
        converse(initiator, responder, lie)


# -- what a hostile peer may try ----------------------------------------------------------


@cache
def _sets_that_differ(differences: int) -> tuple[FrozenSet, FrozenSet]:
    rng = np.random.default_rng(differences)
    both = random_set(rng, 3000)
    packed = [b"".join(sorted(both | random_set(rng, differences))) for _ in range(2)]
    return FrozenSet(packed[0], KEY), FrozenSet(packed[1], KEY)


def _sides_that_differ(differences: int) -> tuple[Reconciliation, Reconciliation]:
    mine, theirs = (
        Reconciliation(frozen, snapshot_id=SNAPSHOT, nonce=NONCE) for frozen in _sets_that_differ(differences)
    )
    return mine, theirs


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_messages_end_in_a_protocol_error_or_an_end(data: st.DataObject) -> None:
    at_turn = data.draw(st.integers(1, SUMMARY_TURNS_MAX))
    how = data.draw(st.sampled_from(["flip", "cut", "twice", "drop", "reverse", "earlier", "field"]))
    seed = data.draw(st.integers(0, 2**32))
    rng, seen = np.random.default_rng(seed), list[bytes]()

    def damage(turn: int, messages: list[bytes]) -> list[bytes]:
        earlier, messages = list(seen), list(messages)
        seen.extend(messages)
        if turn != at_turn:
            return messages
        which = int(rng.integers(len(messages)))
        packed = bytearray(messages[which])
        match how:
            case "flip":
                for place in rng.integers(len(packed), size=int(rng.integers(1, 4))):
                    packed[place] ^= 1 << int(rng.integers(8))
                messages[which] = bytes(packed)
            case "cut":
                messages[which] = bytes(packed[: int(rng.integers(len(packed)))])
            case "twice":
                messages.insert(which, messages[which])
            case "drop":
                del messages[which]
            case "reverse":
                messages.reverse()
            case "earlier":
                messages[which] = earlier[int(rng.integers(len(earlier)))] if earlier else messages[which]
            case "field":
                messages[which] = encode(_with_a_changed_field(decode(bytes(packed)), rng))
        return messages

    initiator, responder = _sides_that_differ(data.draw(st.sampled_from([0, 1, 10, 60, 200, 2000])))
    with suppress(ProtocolError):
        converse(initiator, responder, damage)


def _with_a_changed_field(message: Message, rng: np.random.Generator) -> Message:
    """Well-formed, and wrong: what the parser lets through and the machine must not trip over."""
    name = str(rng.choice([field.name for field in fields(message)]))  # type: ignore[arg-type]
    value = getattr(message, name)
    match value:
        case bool():
            changed: object = not value
        case int():
            changed = int(rng.choice(np.array([0, 1, 3, 4, value + 1, 57, 2**20, 2**62], object)))
        case _:
            unit = {"cells": 5, "asks": 5, "records": 5, "checks": 2}.get(name, 1)
            keeps_size = name in ("snapshot_id", "nonce") or isinstance(message, SummaryOpen)
            count = len(value) if keeps_size else int(rng.integers(0, len(value) // unit + 2)) * unit
            changed = rng.bytes(count)
    return replace(message, **{name: changed})  # type: ignore[type-var]


def test_a_peer_that_guesses_suffixes_is_sent_away() -> None:
    initiator, _ = _sides_that_differ(20)
    initiator.start()
    asks = pack_records(np.arange(128, dtype=np.uint64), np.zeros(128, np.uint64))
    states = codes.encode_states(np.full(128, Answer.ASK, np.uint8))
    assert initiator.receive(SummaryAnswers(cells_count=128, states=states, asks=asks)) == []
    with pytest.raises(Malformed, match="128 of 128 suffixes"):
        initiator.receive(SummaryClose(count=0, sum_a=0, sum_b=0))


def test_a_turn_has_a_bounded_number_of_cells() -> None:
    initiator, _ = _sides_that_differ(20)
    initiator.start()
    cells = SummaryCells(group=0, level=30, width=5, cells=bytes(5 * 40_000), checks=b"", more=True)
    with pytest.raises(TooLarge):
        for _ in range(SUMMARY_TURN_CELLS_MAX // 40_000 + 1):
            initiator.receive(cells)


def test_a_turn_has_a_bounded_number_of_messages() -> None:
    initiator, _ = _sides_that_differ(20)
    initiator.start()
    cell = SummaryCells(group=0, level=30, width=5, cells=bytes(5), checks=b"", more=True)
    for _ in range(SUMMARY_TURN_MESSAGES_MAX):
        assert initiator.receive(cell) == []
    with pytest.raises(TooLarge):
        initiator.receive(cell)


def test_an_answer_to_what_was_not_asked_is_refused() -> None:
    initiator, _ = _sides_that_differ(20)
    initiator.start()
    with pytest.raises(Malformed):
        initiator.receive(SummaryAnswers(cells_count=129, states=codes.DENSE + bytes(33), asks=b""))


def test_nothing_is_accepted_after_the_end() -> None:
    ids = random_set(np.random.default_rng(6), 100)
    initiator, responder = side(ids), side(ids)
    converse(initiator, responder)
    with pytest.raises(Unexpected):
        initiator.receive(SummaryClose(count=0, sum_a=0, sum_b=0))


def test_a_summary_of_another_scope_is_refused() -> None:
    ids = random_set(np.random.default_rng(7), 10)
    other = Reconciliation(FrozenSet(b"", KEY), snapshot_id=SnapshotId(b"x" * 16), nonce=NONCE)
    with pytest.raises(Unexpected):
        side(ids).receive(other.start()[0])


def test_an_opening_in_the_middle_is_refused() -> None:
    initiator, responder = _sides_that_differ(500)
    opening = initiator.start()[0]
    responder.receive(opening)
    with pytest.raises(Unexpected):
        responder.receive(opening)


def test_the_bytes_counted_are_the_bytes_sent() -> None:
    initiator, responder = _sides_that_differ(300)
    sent = 0

    def count(_: int, turn: list[bytes]) -> list[bytes]:
        nonlocal sent
        sent += sum(len(data) + FRAME_HEADER_BYTES for data in turn)
        return turn

    converse(initiator, responder, count)
    results: tuple[Reconciled, ...] = (initiator.result, responder.result)
    assert [result.wire_bytes for result in results] == [sent, sent]
