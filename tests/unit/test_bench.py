"""The bench: its data come from a seed, its way is as long as it says, its verdicts can fail."""

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from bench import baseline, proxy, report
from bench.charts import bars
from bench.harness import FLOOR, OURS, Result, Row, collect, ratios
from bench.image import BLOCK, changed_blocks, make_image
from bench.meter import Meter, gauged
from bench.page import aims_table
from bench.peers import PEERS
from bench.peers.base import Subject
from bench.tree import changed_files, make_tree

OWN = Path(proxy.__file__).parents[1] / "protocol"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_makes_the_same_image_and_another_another(tmp_path: Path) -> None:
    sizes = [make_image(tmp_path / name, gib=0.01, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert sizes == [int(0.01 * 2**30) // BLOCK * BLOCK] * 3
    assert a == b != c


def test_a_changed_image_and_a_changed_tree_are_as_they_were_afterwards(tmp_path: Path) -> None:
    image, folder = tmp_path / "image", tmp_path / "tree"
    make_image(image, gib=0.01, seed=1)
    make_tree(folder, files=200, seed=1, source=OWN)
    before, files = image.read_bytes(), content(folder)
    with changed_blocks(image, share=0.01, seed=3) as blocks, changed_files(folder, share=0.01, seed=3) as names:
        now = image.read_bytes()
        differing = [at for at in range(0, len(now), BLOCK) if now[at : at + BLOCK] != before[at : at + BLOCK]]
        assert len(differing) == blocks == 1
        assert sum(one != files[name] for name, one in content(folder).items()) == names == 2
    assert image.read_bytes() == before and content(folder) == files


def test_too_few_real_files_are_taken_again_each_with_a_line_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"f{number}").write_bytes(b"x" * (number + 1))
    make_tree(tmp_path / "tree", files=12, seed=1, source=source)
    found = content(tmp_path / "tree")
    assert len(found) == len(set(found.values())) == 12


@asynccontextmanager
async def far_echo(*, delay_s: float) -> AsyncIterator[trio.SocketStream]:
    """A connection to an echo behind a proxy."""

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        echoes = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        port = echoes[0].socket.getsockname()[1]
        carry = partial(proxy.carry, host="127.0.0.1", port=port, delay_s=delay_s)
        proxies = await nursery.start(partial(trio.serve_tcp, carry, 0, host="127.0.0.1"))
        async with await trio.open_tcp_stream("127.0.0.1", proxies[0].socket.getsockname()[1]) as stream:
            yield stream
        nursery.cancel_scope.cancel()


async def test_the_proxy_holds_every_byte_for_a_round_trip_and_changes_none() -> None:
    sent = os.urandom(3_000_000)
    got = bytearray()
    with trio.fail_after(20):
        async with far_echo(delay_s=0.05) as stream, trio.open_nursery() as nursery:
            began = trio.current_time()
            nursery.start_soon(stream.send_all, sent)
            while len(got) < len(sent):
                got += await stream.receive_some()
                if len(got) <= 262_144:
                    first_s = trio.current_time() - began
            took_s = trio.current_time() - began
    assert bytes(got) == sent
    assert first_s >= 0.1
    # The delay is not paid for each piece: that would be two seconds.
    assert took_s < 1.5


def rows(**cpu_s: float) -> list[Result]:
    return collect([Row("work", subject, {"wall_s": 1.0, "cpu_s": value}) for subject, value in cpu_s.items()])


def test_a_run_that_costs_a_quarter_more_against_the_floor_than_the_baseline_is_worse() -> None:
    before = baseline.floor_ratios(rows(**{OURS: 1.2, FLOOR: 1.0}))
    assert before == {"work": {"wall_s": 1.0, "cpu_s": 1.2}}
    same_machine_but_slower = rows(**{OURS: 12.5, FLOOR: 10.0})
    dearer = rows(**{OURS: 1.6, FLOOR: 1.0})
    assert not baseline.worse(baseline.compare(same_machine_but_slower, before))
    assert baseline.worse(baseline.compare(dearer, before))


def test_ratios_and_medians_are_taken_within_one_piece_of_work() -> None:
    found = collect(
        [Row("w", OURS, {"wall_s": value}) for value in (1.0, 9.0, 2.0)]
        + [Row("w", "rsync", {"wall_s": 6.0}), Row("other", "rsync", {"wall_s": 5.0})]
    )
    assert found[0].median == {"wall_s": 2.0} and len(found) == 3
    assert ratios(found) == {("w", "rsync"): 3.0}


def test_the_report_names_everybody_and_its_charts_are_well_formed(tmp_path: Path) -> None:
    results = rows(**{OURS: 1.2, FLOOR: 1.0, "<rsync>": 3.0})
    made = report.Report("today", "abc", {"cores": 2}, {}, results, has_own_network=False, failures=["x: broke"])
    report.write_report(tmp_path, made)
    page = (tmp_path / "report.html").read_text()
    kept = json.loads((tmp_path / "report.json").read_text())
    assert "&lt;rsync&gt;" in page and "<rsync>" not in page and "x: broke" in page
    assert kept["floor_ratios"]["work"]["cpu_s"] == 1.2
    assert "| **replicator** |" in (tmp_path / "report.md").read_text()
    drawn = ElementTree.fromstring(bars("t", [("a", 1.0), ("b", 2.0)], unit="s", ours="a"))
    wide = [float(one.get("width", "0")) for one in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert wide[1] == pytest.approx(2 * wide[0])


class Burner(Subject):
    """A server and a client that each use a tenth of a second of processor."""

    name, needs = "burner", ()
    BURN = "import time\nwhile time.process_time() < 0.3: pass\n"

    def start(self) -> None:
        return

    def copy(self) -> None:
        self.run("python3", "-c", self.BURN)


def test_processor_time_of_children_is_counted_dead_or_alive(tmp_path: Path) -> None:
    figures: dict[str, float] = {}
    with Burner(tmp_path / "burner", tmp_path) as burner, gauged(figures):
        burner.copy()
    assert 0.25 < figures["cpu_s"] < 1.5 and figures["peak_bytes"] > 1_000_000
    meter = Meter(os.getpid())
    with Burner(tmp_path / "burner", tmp_path) as burner:
        burner.copy()
    assert meter.stop().cpu_s > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rsync-clear", "rsync-ssh", "restic", "borg", "casync-local"])
def test_a_peer_copies_a_tree_and_then_little(tmp_path: Path, name: str) -> None:
    peer = PEERS[name]
    if peer.missing():
        pytest.skip(f"{peer.missing()} is not installed")
    make_tree(tmp_path / "tree", files=50, seed=1, source=OWN)
    kept: list[int] = []
    with peer(tmp_path / name, tmp_path / "tree") as subject:
        for _ in range(3):
            figures: dict[str, float] = {}
            with gauged(figures, servers=subject.servers):
                subject.copy()
            assert figures["wall_s"] > 0
            kept.append(sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file()))
    assert 10_000 < kept[0] <= kept[2] < 1.5 * kept[0]


def test_the_page_says_which_aims_were_missed_and_leaves_out_what_was_not_measured() -> None:
    def run(wall: float, **more: float) -> list[dict[str, float]]:
        return [{"wall_s": wall, **more}]

    table = "\n".join(
        aims_table(
            [
                Result("A, first copy", "replicator", run(8.0, peak_bytes=500e6)),
                Result("A, first copy", "rsync-ssh", run(16.0)),
                Result("A, first copy", "restic", run(24.0)),
                Result("B, unchanged", "replicator", run(0.4)),
            ]
        )
    )

    assert "| A, first copy | wall ≤ 9.00 s | 8.00 s |  |" in table
    assert "| A, first copy | ≥ 2.2 times as fast as rsync-ssh | 2.00 times | **missed** |" in table
    assert "| A, first copy | ≥ 2.5 times as fast as restic | 3.00 times |  |" in table
    assert "peak ≤ 419.43 MB | 500.00 MB | **missed** |" in table
    assert "store to store" not in table and "floor" not in table and "borg" not in table


def test_a_baseline_that_was_saved_is_what_the_next_run_is_compared_with(tmp_path: Path) -> None:
    results = [Result("w", "replicator", [{"cpu_s": 3.0}]), Result("w", "floor", [{"cpu_s": 2.0}])]
    report = {"at": "", "commit": "", "machine": {}, "setting": {}, "floor_ratios": baseline.floor_ratios(results)}

    baseline.save_baseline(tmp_path / "x.json", report)

    assert not baseline.worse(baseline.compare(results, baseline.read_baseline(tmp_path / "x.json")))
    dearer = [Result("w", "replicator", [{"cpu_s": 4.0}]), results[1]]
    assert baseline.worse(baseline.compare(dearer, baseline.read_baseline(tmp_path / "x.json")))
