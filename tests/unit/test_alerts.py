"""Silence is an alarm: on the site that promised, and on the peer that was promised to. Hours pass on a fake clock."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.ids import VolumeId
from replicator.monitor.alerts import Alert, find_alerts
from replicator.monitor.metrics import render_metrics
from replicator.monitor.status import StatusSources, node_status
from tests.support.clocks import FakeWallClock
from tests.support.nodes import Site, open_site

PEER = b"p" * 32


class Watched:
    """A site whose clock a test moves."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.clock = FakeWallClock()
        site.catalog._clock = self.clock
        site.catalog.peers._clock = self.clock
        self.parts = dataclasses.replace(site.parts, clock=self.clock)
        self.started_ns = self.clock.now_ns()
        folder.mkdir()
        self.volume = site.protect(folder)

    def alerts(self) -> list[Alert]:
        return find_alerts(self.parts, self.site.mesh, started_ns=self.started_ns)

    def kinds(self) -> list[str]:
        return sorted(alert.kind for alert in self.alerts())

    def sources(self) -> StatusSources:
        living = self.site.living
        return StatusSources(
            self.parts, self.site.mesh, living.jobs, living.workers, self.started_ns, "test", living._standing
        )


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with open_site(tmp_path / "home", "home") as site:
        yield Watched(site, tmp_path / "data")


def test_a_promise_that_is_kept_is_quiet_and_one_that_is_not_is_an_alarm_after_two_periods(watched: Watched) -> None:
    catalog, volume = watched.site.catalog, watched.volume.volume_id
    catalog.set_protection(volume, every_s=3600, keep="")
    catalog.note_protection_result(volume, error="")
    watched.clock.advance(2 * 3600 - 1)
    assert watched.kinds() == []
    watched.clock.advance(2)
    [alert] = watched.alerts()
    assert (alert.kind, alert.subject) == ("schedule_missed", "data")
    assert "2h ago" in alert.text and alert.hint
    catalog.note_protection_result(volume, error="")
    assert watched.kinds() == []


def test_a_promise_that_was_never_kept_is_an_alarm_too(watched: Watched) -> None:
    watched.site.catalog.set_protection(watched.volume.volume_id, every_s=3600, keep="")
    watched.clock.advance(3 * 3600)
    [alert] = watched.alerts()
    assert alert.kind == "schedule_missed" and "None was taken yet" in alert.text


def test_a_snapshot_that_fails_is_an_alarm_at_once_and_names_the_error(watched: Watched) -> None:
    catalog, volume = watched.site.catalog, watched.volume.volume_id
    catalog.set_protection(volume, every_s=3600, keep="")
    watched.clock.advance(20)
    catalog.note_protection_result(volume, error="the disk is gone")
    [alert] = watched.alerts()
    assert alert.kind == "snapshot_failed" and "the disk is gone" in alert.text


def test_a_success_in_the_future_proves_nothing_once_the_clock_is_set_back(watched: Watched) -> None:
    catalog, volume = watched.site.catalog, watched.volume.volume_id
    catalog.set_protection(volume, every_s=3600, keep="")
    watched.clock.advance(10 * 365 * 86400)
    catalog.note_protection_result(volume, error="")
    watched.clock.advance(-10 * 365 * 86400 + 3 * 3600)
    assert watched.kinds() == ["schedule_missed"]


def test_the_peer_raises_the_alarm_for_a_source_that_is_dead(watched: Watched) -> None:
    catalog = watched.site.catalog
    catalog.peers.add(PEER, name="farm", addresses=[])
    catalog.peers.note_seen(PEER)  # type: ignore[arg-type]
    catalog.expect(watched.volume.volume_id, PEER, every_s=600)
    watched.clock.advance(59)
    assert watched.kinds() == []
    watched.clock.advance(2)
    assert watched.kinds() == ["peer_quiet"]
    watched.clock.advance(1140)
    alerts = {alert.kind: alert for alert in watched.alerts()}
    assert set(alerts) == {"peer_quiet", "peer_missed_schedule"}
    assert alerts["peer_missed_schedule"].subject == "farm/data"
    catalog.peers.revoke(PEER)
    assert watched.kinds() == [], "a site that is no peer any more has promised nothing"


def test_a_sync_that_fails_three_times_is_an_alarm_until_it_works(watched: Watched) -> None:
    catalog = watched.site.catalog
    catalog.peers.add(PEER, name="farm", addresses=[])
    catalog.add_sync("s", volume_id=b"", peer=PEER, keep="")
    for _ in range(2):
        catalog.note_sync_result("s", error="refused", next_try_ns=1)
    assert watched.kinds() == []
    catalog.note_sync_result("s", error="refused", next_try_ns=1)
    assert watched.kinds() == ["sync_failing"]
    catalog.note_sync_result("s", error="")
    assert watched.kinds() == []


def test_a_node_that_has_just_started_gives_links_and_schedules_a_moment(watched: Watched) -> None:
    watched.site.catalog.set_protection(watched.volume.volume_id, every_s=1, keep="")
    watched.clock.advance(14)
    assert watched.kinds() == []
    watched.clock.advance(2)
    assert watched.kinds() == ["schedule_missed"]


def test_the_metrics_are_what_prometheus_reads_with_whatever_names_people_choose(watched: Watched) -> None:
    catalog = watched.site.catalog
    odd = dataclasses.replace(watched.volume, volume_id=b"o" * 16, name='quote " and \\ and \n line', path=b"/odd")  # type: ignore[arg-type]
    catalog.add_volume(odd)
    catalog.set_protection(odd.volume_id, every_s=60, keep="")
    catalog.peers.add(PEER, name="farm", addresses=[])
    catalog.add_sync("s", volume_id=odd.volume_id, peer=PEER, keep="")
    watched.clock.advance(300)
    text = render_metrics(lambda: node_status(watched.sources())).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {
        "replicator_store_blocks",
        "replicator_alert",
        "replicator_peer_linked",
        "replicator_sync_lag_seconds",
    } <= set(families)
    assert {sample.labels["subject"] for sample in families["replicator_alert"].samples} == {odd.name, "farm"}
    assert all(sample.value == sample.value for family in families.values() for sample in family.samples)


def test_volumes_of_one_name_make_no_series_twice(watched: Watched) -> None:
    """A peer's volume is called like ours, twice, because it was rebuilt; each goes to the same other peer."""
    catalog = watched.site.catalog
    farm = catalog.peers.add(PEER, name="farm", addresses=[])
    for number in (1, 2):
        twin = dataclasses.replace(
            watched.volume, volume_id=VolumeId(bytes([number]) * 16), origin=farm.site_id, path=None
        )
        catalog.add_volume(twin)
        catalog.add_sync(f"s{number}", volume_id=twin.volume_id, peer=PEER, keep="")
        catalog.expect(twin.volume_id, PEER, every_s=1)
    watched.clock.advance(300)
    text = render_metrics(lambda: node_status(watched.sources())).decode()
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert sum(line.startswith("replicator_volume_snapshots{") for line in series) == 3


def test_the_status_shows_the_age_of_the_last_success_and_the_next_run(watched: Watched) -> None:
    catalog, volume = watched.site.catalog, watched.volume.volume_id
    catalog.set_protection(volume, every_s=60, keep="3")
    catalog.note_protection_result(volume, error="")
    catalog.note_protection_run(volume, next_run_ns=watched.clock.now_ns() + 60 * 10**9)
    watched.clock.advance(20)
    [shown] = node_status(watched.sources())["volumes"]
    assert shown["protection"] == {"every_s": 60, "keep": "3", "last_success_s": 20, "next_run_s": 40, "last_error": ""}
