"""Cells, their form on the wire, and the packing of answers."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed, ProtocolError
from protocol.ids import SnapshotId
from protocol.limits import CONTROL_FRAME_MAX, SUMMARY_CELLS_GOAL, SUMMARY_MARKS_MAX
from protocol.machines.reconcile_lane import LaneReader
from protocol.machines.reconcile_turn import ROOT_PLACE, Answer, Batch, say_answers, say_cells, say_lacks
from protocol.merkle import codes, diff
from protocol.merkle.cells import Cells, Sums, mix, pack_records, unpack_records
from protocol.merkle.fold import fold, fold_some
from protocol.messages.registry import encode
from replicator.index.tokens import TokenKey, heads
from replicator.index.view import FrozenSet, leaf_level

KEY = TokenKey(snapshot_id=SnapshotId(bytes(16)), nonce=bytes(range(16)))
FROZEN_LANE_A, FROZEN_LANE_B = [12609069057123638310], [12105175342559169752]


def ids_of(seed: int, count: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return sorted(rng.bytes(32) for _ in range(count))


def cells_of(ids: list[bytes], level: int) -> Cells:
    packed = b"".join(sorted(ids))
    return Cells.from_sorted(level, heads(packed), *KEY.tokens(packed))


def test_folding_gives_the_cells_that_a_build_at_that_level_gives() -> None:
    ids = ids_of(2, 500)
    deep = cells_of(ids, 12)
    assert all(fold(deep, level).is_same(cells_of(ids, level)) for level in range(1, 13))
    some = fold_some(deep, 5, np.array([3, 17, 31], np.uint64), lane=1)
    assert some.sums.tolist() == cells_of(ids, 5).sum_b[[3, 17, 31]].tolist()


def test_a_view_sums_levels_below_its_leaves_from_the_ids() -> None:
    ids = ids_of(3, 3000)
    view = FrozenSet(b"".join(ids), KEY)
    for level in (leaf_level(3000), leaf_level(3000) + 5):
        expected = cells_of(ids, level)
        for lane in (0, 1):
            assert np.array_equal(view.whole(level, lane=lane).sums, expected.lane(lane))
            assert np.array_equal(view.whole(level, lane=lane).counts, expected.counts)


@pytest.mark.parametrize("level", [0, 2, 9, 40])
def test_every_block_is_found_by_its_suffix_and_no_other(level: int) -> None:
    ids = ids_of(4, 2500)
    packed = b"".join(ids)
    view = FrozenSet(packed, KEY)
    rows = np.arange(len(ids), dtype=np.int64)
    prefixes = heads(packed) >> np.uint64(64 - level) if level else np.zeros(len(ids), np.uint64)
    suffixes = view.suffixes(rows, lane=0)
    assert np.array_equal(view.find(level, prefixes, suffixes, width=5, lane=0), rows)
    assert (view.find(level, prefixes, suffixes ^ np.uint64(1), width=5, lane=0) == -1).all()


def test_two_blocks_with_one_suffix_in_a_cell_are_not_found() -> None:
    class Twins(TokenKey):
        def tokens(self, ids):  # type: ignore[no-untyped-def]
            lane_a, lane_b = super().tokens(ids)
            return np.full_like(lane_a, 5), lane_b

    packed = b"".join(ids_of(5, 2))
    view = FrozenSet(packed, Twins(snapshot_id=SnapshotId(bytes(16)), nonce=bytes(16)))
    assert view.find(0, np.zeros(1, np.uint64), np.array([5], np.uint64), width=5, lane=0).tolist() == [-1]


def test_the_key_depends_on_the_nonce_and_on_the_scope() -> None:
    ids = b"".join(ids_of(6, 1))
    keys = [(b"a" * 16, b"n" * 16), (b"b" * 16, b"n" * 16), (b"a" * 16, b"m" * 16)]
    tokens = {TokenKey(snapshot_id=SnapshotId(scope), nonce=nonce).tokens(ids)[0].item() for scope, nonce in keys}
    assert len(tokens) == 3


def test_tokens_are_what_two_passes_of_aes_make() -> None:
    """Frozen: another client has to make the same ones."""
    lane_a, lane_b = KEY.tokens(bytes(range(32)))
    assert (lane_a.tolist(), lane_b.tolist()) == (FROZEN_LANE_A, FROZEN_LANE_B)


def test_a_long_run_of_ids_has_the_tokens_of_its_parts() -> None:
    packed = np.random.default_rng(0).bytes(32 * 70_000)
    whole, part = KEY.tokens(packed), KEY.tokens(packed[32 * 65_000 :])
    assert all(np.array_equal(lane[65_000:], other) for lane, other in zip(whole, part, strict=True))


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=50))
def test_a_record_keeps_its_low_bits_of_value_and_4_of_count(pairs: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in pairs], np.uint64)
    counts = np.array([count for _, count in pairs], np.uint64)
    for width in (3, 4, 5):
        packed = pack_records(values, counts, width=width)
        back_values, back_counts = unpack_records(packed, width=width)
        assert len(packed) == width * len(pairs)
        assert back_values.tolist() == [value % 2 ** (8 * width - 4) for value, _ in pairs]
        assert back_counts.tolist() == [count % 16 for _, count in pairs]


def test_the_check_of_a_sum_is_not_the_sum_of_the_checks() -> None:
    one, two, other = np.random.default_rng(1).integers(0, 2**36, (3, 200_000), dtype=np.uint64)
    looks_like = (one + two - other) & np.uint64(2**36 - 1)
    passes = ((mix(one) + mix(two) - mix(other)) & np.uint64(0xFFFF)) == mix(looks_like)
    assert np.count_nonzero(passes) < 20  # Three are expected by chance.


@given(st.integers(0, 400), st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.5, 1.0]))
def test_answers_come_out_as_they_went_in(count: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    flags = rng.random(count) < share
    states = (rng.integers(1, 4, count) * flags).astype(np.uint8)
    assert np.array_equal(codes.decode_flags(codes.encode_flags(flags), count), flags)
    assert np.array_equal(codes.decode_states(codes.encode_states(states), count), states)


def test_a_few_answers_among_many_take_a_few_bytes() -> None:
    states = np.zeros(100_000, np.uint8)
    states[[5, 99_999]] = Answer.ASK
    code = codes.encode_states(states)
    assert len(code) <= 7
    assert np.array_equal(codes.decode_states(code, len(states)), states)


@given(st.binary(max_size=40), st.integers(0, 100))
def test_a_code_of_strange_bytes_is_malformed_or_means_something(code: bytes, count: int) -> None:
    for decode in (codes.decode_flags, codes.decode_states):
        with suppress(Malformed):
            assert len(decode(code, count)) == count


def test_the_largest_messages_fit_a_frame() -> None:
    count = SUMMARY_CELLS_GOAL + 1
    most = np.full(count, 2**64 - 1, np.uint64)
    messages = [
        *say_cells(0, 22, Sums(most, most), most, width=5),
        *say_answers(np.full(count, Answer.ASK, np.uint8), most, width=5),
        *say_lacks(np.arange(SUMMARY_MARKS_MAX + 1) % 2 == 0),
    ]
    assert [type(message).__name__ for message in messages] == (
        ["SummaryCells"] * 2 + ["SummaryAnswers"] * 2 + ["SummaryLacks"] * 2
    )
    assert max(len(encode(message)) for message in messages) <= CONTROL_FRAME_MAX


@pytest.mark.parametrize("differences", [3, 30, 1_000, 20_000])
def test_the_estimate_is_without_bias(differences: int) -> None:
    guesses = []
    for seed in range(40):
        heads_of_differences = np.random.default_rng(seed).integers(0, 2**64, differences, dtype=np.uint64)
        samples = []
        for level in (7, *diff.sample_levels(10**6)):
            touched = np.unique(heads_of_differences >> np.uint64(64 - level))
            prefixes = range(128) if level == 7 else diff.sample_prefixes(bytes([seed] * 16), level).tolist()
            blind = diff.SAMPLE_BLIND if level > 7 else 0.0
            looks = sum(1 for one in set(touched.tolist()) & set(prefixes) if not blind or (one * 7919 + seed) % 256)
            samples.append(diff.Sample(level, len(prefixes), looks, blind))
        guesses.append(diff.estimate(samples))
    assert 0.9 < np.mean(guesses) / differences < 1.15
    assert np.std(guesses) / differences < (0.75 if differences < 30 else 0.25)


def test_if_every_cell_differs_the_estimate_is_where_the_deepest_level_would_be_full() -> None:
    full = [diff.Sample(level, 64, 64, diff.SAMPLE_BLIND) for level in (7, 9, 11)]
    assert 2**11 * 4 < diff.estimate(full) < 2**11 * 6
    assert diff.estimate([diff.Sample(level, 64, 0, 0.0) for level in (7, 9, 11)]) == 1


def test_a_cell_that_looks_the_same_by_chance_does_not_mislead_the_estimate() -> None:
    """Once it did: one cell of level 9 that happened to look equal made 100,000 differences look like 5,000."""
    seen = [(7, 128, 128, 0.0), (9, 64, 63, diff.SAMPLE_BLIND), (11, 64, 64, diff.SAMPLE_BLIND)]
    seen += [(13, 64, 64, diff.SAMPLE_BLIND), (15, 64, 61, diff.SAMPLE_BLIND), (17, 64, 34, diff.SAMPLE_BLIND)]
    assert 80_000 < diff.estimate([diff.Sample(*one) for one in seen]) < 120_000


def test_a_record_is_wide_enough_for_what_it_is_looked_up_among_and_no_wider() -> None:
    def width(blocks: int, cells: int, *, checks: bool = False, first: bool = False) -> int:
        return diff.plan_width(blocks, cells, held=10**7, with_checks=checks, is_first=first)

    assert width(10**7, 2**11, first=True) == 4
    assert width(10**6, 1500) == 3
    assert width(10**7, 2**10) == 4
    assert width(20_000, 480, checks=True) == 4
    assert width(1000, 30_000, checks=True) == 4, "more than a split before it may have had"
    assert diff.plan_width(10**9, 2**11, held=10**9, with_checks=False, is_first=True) == 5
    assert diff.plan_width(0, 0, held=0, with_checks=False, is_first=True) == 3


def test_a_sample_lies_within_its_level_wherever_the_nonce_points() -> None:
    for nonce in (bytes(16), b"\xff" * 16, bytes(range(100, 116))):
        for level in diff.sample_levels(10**12):
            prefixes = diff.sample_prefixes(nonce, level)
            assert len(prefixes) == 64
            assert int(prefixes[-1]) < 2**level


def test_a_split_that_would_cost_more_than_the_list_is_not_made() -> None:
    assert diff.plan_next(10, level=20, blocks=12, held=10**7, is_first=False) == 20
    assert diff.plan_next(10, level=11, blocks=50_000, held=10**7, is_first=False) > 13
    assert diff.plan_next(10, level=11, blocks=50_000, held=10**7, is_first=True) == 14


def test_random_bytes_are_never_taken_for_a_message_of_unbounded_size() -> None:
    with pytest.raises(ProtocolError):
        codes.decode_states(codes.SPARSE + b"\xff\xff\xff\xff\x7f", 10)


def test_a_cell_whose_checks_disagree_is_open_whatever_its_sum_says() -> None:
    """One of mine and one of yours with one suffix add up to nothing; their mixes do not."""
    ids = ids_of(9, 400)
    reader = LaneReader(FrozenSet(b"".join(ids), KEY), 0)
    places = ROOT_PLACE.under(4)
    sums, checks = reader.cells(places), reader.checks(places, width=3)
    theirs = Sums(sums.sums & np.uint64(2**20 - 1), sums.counts & np.uint64(15))
    same = reader.read(Batch(places, 3, theirs, checks))
    assert set(same.states.tolist()) == {Answer.SETTLED}
    checks[5] ^= np.uint64(1)
    one_open = reader.read(Batch(places, 3, theirs, checks))
    assert np.flatnonzero(one_open.states == Answer.OPEN).tolist() == [5]

    more = Sums(theirs.sums.copy(), theirs.counts.copy())
    lost, row = np.zeros(16, np.uint64), int(np.searchsorted(heads(b"".join(ids)), np.uint64(5 << 60)))
    lost[5] = reader.suffixes(np.array([row]))[0] & np.uint64(2**20 - 1)
    more.sums[5] = (more.sums[5] - lost[5]) & np.uint64(2**20 - 1)
    more.counts[5] = (more.counts[5] - np.uint64(1)) & np.uint64(15)
    checks[5] ^= np.uint64(1)
    wrong = reader.read(Batch(places, 3, more, checks))
    assert wrong.states[5] == Answer.OPEN, "the sum says one of mine, the check says none"
    checks[5] = (checks[5] - mix(lost[5:6])[0]) & np.uint64(0xFFFF)
    right = reader.read(Batch(places, 3, more, checks))
    assert right.states[5] == Answer.SETTLED and right.rows.tolist() == [row]
