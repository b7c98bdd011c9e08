"""Sizes, rates and spans as people write and read them, and how far a piece of work is."""

from typing import Any

import pytest

from replicator.core.errors import UsageError
from replicator.core.progress import Progress
from replicator.core.units import counted, format_size, format_span, parse_rate, parse_size, parse_span
from tests.support.clocks import FakeMonotonic


@pytest.mark.parametrize(
    ("text", "size"),
    [("10", 10), ("4k", 4000), ("4 KiB", 4096), ("1.5GiB", 3 * 2**29), ("20MB", 20_000_000), (" 1t ", 10**12)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20_000_000), ("20MBps", 20_000_000), ("64k", 64_000), ("1GiB/s", 2**30),
        ("100Mbit/s", 12_500_000), ("100 Mbit", 12_500_000), ("100Mbps", 12_500_000), ("100MBIT/S", 12_500_000),
        ("none", 0), ("unlimited", 0), ("0", 0), ("0bit", 0), ("1bit/s", 1),
    ],
)  # fmt: skip
def test_a_rate_is_read_and_a_limit_never_becomes_no_limit(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(("text", "span"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("2w", 1209600), ("1.5h", 5400)])
def test_a_span_is_read(text: str, span: float) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "10 apples", "1..5k", "MB", "bit"])
def test_what_is_neither_is_refused(text: str) -> None:
    for parse in (parse_size, parse_rate, parse_span):
        with pytest.raises(UsageError):
            parse(text)


@pytest.mark.parametrize(
    ("parse", "shows"),
    [(parse_size, "500MB, 4GiB"), (parse_rate, "20MB/s, 100Mbit/s"), (parse_span, "30s, 15m")],
)
def test_what_is_not_understood_is_answered_with_examples_of_the_same_kind(parse: Any, shows: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse("fast")
    assert "'fast'" in caught.value.message and shows in caught.value.hint


def test_numbers_are_shown_in_the_unit_that_fits() -> None:
    assert [format_size(n) for n in (0, 999, 999.7, 1000, 999_960, 5e9, 2e13)] == [
        "0 B", "999 B", "1.0 kB", "1.0 kB", "1.0 MB", "5.0 GB", "20.00 TB",
    ]  # fmt: skip
    assert [format_span(s) for s in (0, 0.5, 1, 59.9, 59.97, 61, 3599.7, 90_000)] == [
        "0 ms", "500 ms", "1.0 s", "59.9 s", "1m", "1m 01s", "1h", "1d 1h",
    ]  # fmt: skip


def test_progress_tells_rate_and_end_over_the_last_seconds() -> None:
    clock = FakeMonotonic()
    progress = Progress(clock=clock)
    assert progress.view().eta_s is None
    progress.begin("copying", total=10_000)
    for _ in range(20):
        clock.now += 0.5
        progress.advance(100)
    view = progress.view()
    assert (view.done, view.phase) == (2000, "copying")
    assert view.rate == pytest.approx(200)
    assert view.eta_s == pytest.approx(40)


def test_progress_of_unknown_length_has_no_end_and_bounded_memory() -> None:
    clock = FakeMonotonic()
    progress = Progress(clock=clock)
    progress.begin("reading")
    for _ in range(10_000):
        clock.now += 0.01
        progress.advance(1)
    assert progress.view().eta_s is None
    assert len(progress._marks) < 100


def test_one_thing_is_not_told_as_many() -> None:
    assert [counted(n, "block") for n in (0, 1, 2, 12_345)] == ["0 blocks", "1 block", "2 blocks", "12,345 blocks"]
