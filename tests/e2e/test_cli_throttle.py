"""Bandwidth rules on real nodes, measured by what arrives at the other side."""

import time
from pathlib import Path

import pytest

from tests.support.nodes import Node, become_peers, eventually, started, write_tree

pytestmark = pytest.mark.slow
MB = 1_000_000


class Meter:
    """Bytes that have arrived at some sites from one, over time."""

    def __init__(self, source: str, *sites: Node) -> None:
        self._source = source
        self._sites = sites
        self.marks: list[tuple[float, int]] = []

    def look(self) -> None:
        total = 0
        for site in self._sites:
            [peer] = [p for p in site.client.get("/v1/peers") if p["name"] == self._source]
            total += peer["bytes_in"]
        self.marks.append((time.monotonic(), total))

    def watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.1)

    def rates(self, what: str, *, window_s: float = 10.0) -> list[float]:
        """Bytes a second over each window of that length."""
        found = []
        for first, (at, count) in enumerate(self.marks):
            later = [(t, n) for t, n in self.marks[first:] if t - at >= window_s]
            if later:
                found.append((later[0][1] - count) / (later[0][0] - at))
        print(
            f"{what}: {min(found) / MB:.3f} to {max(found) / MB:.3f} MB/s over {len(found)} windows of {window_s:.0f} s"
        )
        return found


def keeps(rates: list[float], cap: float) -> bool:
    """Never over the cap. That it is also used is proven in virtual time; here the machine may be busy with others."""
    return bool(rates) and max(rates) <= 1.05 * cap and max(rates) >= 0.7 * cap


def data_for(folder: Path, seed: int, megabytes: int) -> Path:
    return write_tree(folder, files=megabytes, size=MB, seed=seed)


def test_one_budget_binds_several_syncs_together_and_a_change_takes_effect_on_the_live_links(tmp_path: Path) -> None:
    home, cabin, tower = (Node(tmp_path / name, name) for name in ("home", "cabin", "tower"))
    for number in (1, 2):
        data_for(tmp_path / f"data-{number}", number, 100)
    with started(home, cabin, tower):
        become_peers(home, cabin)
        become_peers(home, tower)
        assert home.cli("throttle", "--out", "5MB/s", "--json").json["out_bytes_per_s"] == 5 * MB
        for number, peer in ((1, "cabin"), (2, "tower")):
            home.protect(tmp_path / f"data-{number}")
            home.client.run_job(
                "snapshot", {"names": [f"data-{number}"]}, job_id=f"s{number}", on_progress=lambda _: None
            )
            assert home.cli("sync", "add", "--to", peer, "--volume", f"data-{number}").code == 0
        meter = Meter("home", cabin, tower)
        eventually(lambda: meter.look() or meter.marks[-1][1] > 2 * MB)
        states = {one["state"] for one in home.client.get("/v1/syncs")}
        assert states == {"throttled"}
        closed = home.log().count("link.closed")
        meter.marks.clear()
        meter.watch(11.5)
        rates = meter.rates("two syncs, 5 MB/s")
        assert keeps(rates, 5 * MB), (min(rates), max(rates))
        # Both get their part.
        for site in (cabin, tower):
            alone = Meter("home", site)
            alone.watch(1.2)
            assert alone.marks[-1][1] > 10 * MB
        home.cli("throttle", "--out", "9MB/s")
        time.sleep(0.5)
        meter.marks.clear()
        meter.watch(10.5)
        rates = meter.rates("two syncs, 9 MB/s")
        assert keeps(rates, 9 * MB), (min(rates), max(rates))
        assert home.log().count("link.closed") == closed


def test_what_comes_in_keeps_the_receivers_budget_though_the_sender_has_none(tmp_path: Path) -> None:
    home, cabin = Node(tmp_path / "home", "home"), Node(tmp_path / "cabin", "cabin")
    data_for(tmp_path / "data", 1, 75)
    with started(home, cabin):
        become_peers(home, cabin)
        cabin.cli("throttle", "--in", "4MB/s; mon-sun 00:00-24:00 5MB/s", "--zone", "Europe/Berlin")
        home.protect(tmp_path / "data")
        home.job("snapshot", names=["data"])
        assert home.cli("sync", "add", "--to", "cabin").code == 0
        meter = Meter("home", cabin)
        eventually(lambda: meter.look() or meter.marks[-1][1] > 1 * MB)
        meter.marks.clear()
        meter.watch(13)
        rates = meter.rates("incoming, 5 MB/s")
        assert keeps(rates, 5 * MB), (min(rates), max(rates))
        assert cabin.client.get("/v1/throttle")["shares_in"] == {"home": 5 * MB}
        # A rule that was set is kept over a restart.
        cabin.stop()
        cabin.start()
        assert cabin.client.get("/v1/throttle")["in_bytes_per_s"] == 5 * MB
        assert cabin.cli("throttle", "--reset", "--json").json["in_bytes_per_s"] == 0
