"""The order of commits as the kernel saw it, and how many of them share a flush."""

from pathlib import Path

from tests.faults.order import NothingAhead, Order, Verdict, read_calls, run_and_judge
from tests.faults.stage import Stage


def test_every_ack_comes_after_its_bytes_their_flush_the_index_and_its_flush(stage: Stage, tmp_path: Path) -> None:
    """`scripts/torture order` does ten thousand."""
    verdict = run_and_judge(stage, tmp_path, writers=1, count=300, seed=1)
    assert verdict.violations == []
    assert verdict.acks == 300
    assert verdict.data_flushes >= 300 and verdict.index_flushes >= 300


def test_sixteen_writers_share_their_flushes_and_none_is_told_too_early(stage: Stage, tmp_path: Path) -> None:
    """On a disk that takes 5 ms for a flush. One after the other they would need more than 640 of them."""
    verdict = run_and_judge(stage, tmp_path, writers=16, count=20, seed=1, flush_us=5000, segment=2048)
    assert verdict.violations == []
    assert verdict.acks == 320
    assert verdict.data_flushes + verdict.index_flushes < 640 / 3


GOOD = """\
7 openat(AT_FDCWD, "/s/segments/1.seg", O_RDWR|O_CREAT|O_EXCL, 0600) = 5</s/segments/1.seg>
7 fsync(6</s/segments>) = 0
7 openat(AT_FDCWD, "/s/index", O_RDWR|O_CREAT, 0600) = 8</s/index>
7 fsync(6</s>) = 0
7 pwritev2(5</s/segments/1.seg>, [{iov_base="a"..., iov_len=9}], 1, 64, 0) = 9
7 fdatasync(5</s/segments/1.seg>) = 0
7 pwrite64(8</s/index>, "x", 1, 0) = 1
7 fdatasync(8</s/index>) = 0
7 writev(1</said>, [{iov_base="ack 0 0\\n", iov_len=8}], 1) = 8
"""


def verdict_of(trace: str) -> Verdict:
    order, ahead = Order(Path("/s")), NothingAhead(Path("/s"))
    for call in read_calls(trace.splitlines()):
        order.see(call)
        ahead.see(call)
    order.verdict.violations += ahead.violations
    return order.verdict


def test_the_reader_of_traces_sees_each_step_that_is_left_out() -> None:
    assert verdict_of(GOOD).violations == []
    lines = GOOD.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if "sync(" in line:
            assert verdict_of("".join(lines[:number] + lines[number + 1 :])).violations, f"without {line}"
            failed = line.replace("= 0", "= -1 EIO (Input/output error) (INJECTED)")
            assert verdict_of("".join([*lines[:number], failed, *lines[number + 1 :]])).violations, f"failed {line}"
    late = [*lines[:4], lines[5], lines[4], *lines[6:]]
    assert verdict_of("".join(late)).violations, "a flush before the write"


def test_a_flush_that_began_before_the_write_ended_proves_nothing() -> None:
    overlapping = GOOD.replace(
        '7 pwritev2(5</s/segments/1.seg>, [{iov_base="a"..., iov_len=9}], 1, 64, 0) = 9\n'
        "7 fdatasync(5</s/segments/1.seg>) = 0\n",
        '7 pwritev2(5</s/segments/1.seg>, [{iov_base="a"..., iov_len=9}], 1, 64, 0 <unfinished ...>\n'
        "9 fdatasync(5</s/segments/1.seg> <unfinished ...>\n"
        "7 <... pwritev2 resumed>)           = 9\n"
        "9 <... fdatasync resumed>)          = 0\n",
    )
    assert overlapping != GOOD
    assert verdict_of(overlapping).violations


def test_a_file_renamed_before_it_was_flushed_is_seen() -> None:
    early = GOOD + (
        '7 openat(AT_FDCWD, "/s/new", O_WRONLY|O_CREAT, 0600) = 9</s/new>\n'
        '7 write(9</s/new>, "x", 1) = 1\n'
        '7 rename("/s/new", "/s/generation") = 0\n'
    )
    assert verdict_of(early).violations
