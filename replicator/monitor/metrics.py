"""The same facts for Prometheus. Names and labels are part of the interface: `docs/operations.md` lists them.

A name alone does not make a series: a peer may send a volume that is called like one of ours, and the same
labels twice make Prometheus refuse the page. So there is always an id beside what is not unique here.
"""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "replicator_"


class StatusCollector(Collector):
    """Turns the status page into samples when it is asked."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        page = self._status()
        yield from _store(page["store"])
        yield from _scrub(page["scrub"])
        yield from _peers(page["peers"])
        yield from _standing(page["standing"])
        yield from _volumes(page["volumes"])
        yield from _syncs(page["syncs"])
        yield _one("up_seconds", "Seconds since the node started.", page["up_s"])
        yield _one("jobs_running", "Jobs that are queued or running.", len(page["jobs"]))
        repairs = CounterMetricFamily(f"{_PREFIX}repairs", "Audit lines by role and outcome.", labels=["what"])
        for what, count in page["repairs"].items():
            repairs.add_metric([what], count)
        yield repairs
        alerts = _family("alert", "1 for each alert that is on.", ["kind", "subject"])
        # Two volumes of one name may have the same one.
        for kind, subject in sorted({(alert["kind"], alert["subject"]) for alert in page["alerts"]}):
            alerts.add_metric([kind, subject], 1)
        yield alerts


def render_metrics(status: Callable[[], dict[str, Any]]) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    text: bytes = generate_latest(registry)
    return text


def _family(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels)


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, value=value)


def _store(store: dict[str, Any]) -> Iterable[Metric]:
    yield _one("store_blocks", "Blocks present.", store["blocks"])
    yield _one("store_sealed_bytes", "Bytes that present blocks take.", store["sealed_bytes"])
    yield _one("store_disk_bytes", "Bytes of all segment files.", store["disk_bytes"])
    yield _one("store_dedup_ratio", "Bytes of all snapshots over bytes that their blocks take.", store["dedup_ratio"])
    yield _one("store_broken_blocks", "Blocks in quarantine.", store["broken_blocks"])
    yield _one("store_condemned_blocks", "Blocks that wait out the grace of a collection.", store["condemned_blocks"])
    yield _one("store_read_only", "1 if a flush failed and the store takes no writes.", int(bool(store["read_only"])))
    yield _one(
        "store_ballast_bytes", "Room set aside for a disk that is full to the last byte.", store["ballast_bytes"]
    )
    if store["oldest_verified_s"] is not None:
        yield _one("store_oldest_verified_seconds", "Age of the oldest proof of a segment.", store["oldest_verified_s"])


def _scrub(scrub: dict[str, Any]) -> Iterable[Metric]:
    gauges = {
        "share_verified": "Share of the bytes that were read again within the promised span.",
        "segments_never_read": "Segments that no pass has come to yet.",
        "is_late": "1 if this pass will not be complete in time.",
        "findings_unmended": "Findings of the last pass that are not mended.",
        "complete_in_s": "Seconds until this pass will be complete, by forecast.",
        "oldest_verified_s": "Age of the oldest proof of a segment that was read again.",
    }
    names = {"is_late": "late", "complete_in_s": "complete_in_seconds", "oldest_verified_s": "oldest_seconds"}
    for key, text in gauges.items():
        if scrub[key] is not None:
            yield _one(f"scrub_{names.get(key, key)}", text, float(scrub[key]))
    soft = CounterMetricFamily(f"{_PREFIX}store_soft_errors", "Reads that were wrong, and right when repeated.")
    soft.add_metric([], scrub["soft_errors"])
    yield soft


def _peers(peers: list[dict[str, Any]]) -> Iterable[Metric]:
    linked = _family("peer_linked", "1 if there is a live link.", ["peer"])
    seen = _family("peer_last_seen_seconds", "Since the peer was last heard.", ["peer"])
    trip = _family("peer_round_trip_seconds", "Of the last heartbeat.", ["peer"])
    for peer in peers:
        linked.add_metric([peer["name"]], int(peer["linked"]))
        if peer["last_seen_s"] is not None:
            seen.add_metric([peer["name"]], peer["last_seen_s"])
        if peer["round_trip_s"] is not None:
            trip.add_metric([peer["name"]], peer["round_trip_s"])
    return [linked, seen, trip]


def _standing(standing: dict[str, Any]) -> Iterable[Metric]:
    yield _one("standing_scopes", "Volumes whose roots travel with heartbeats, and one for holes.", standing["scopes"])
    same = _family("peer_holds_the_same", "1 if the peer's roots were ours when it was last heard.", ["peer"])
    heard = _family("peer_roots_heard_seconds", "Since the peer last told its roots.", ["peer"])
    for peer in standing["peers"]:
        same.add_metric([peer["peer"]], int(peer["is_same"]))
        heard.add_metric([peer["peer"]], peer["heard_s"])
    yield from (same, heard)


def _volumes(volumes: list[dict[str, Any]]) -> Iterable[Metric]:
    count = _family("volume_snapshots", "Snapshots here.", ["volume", "origin", "volume_id"])
    age = _family("volume_newest_age_seconds", "Age of the newest snapshot here.", ["volume", "origin", "volume_id"])
    classes = _family(
        "volume_classes", "Groups of sites that hold the same of it; 1 is agreement.", ["volume", "origin", "volume_id"]
    )
    skipped = _family(
        "volume_skipped_paths", "Paths that the newest snapshot could not read.", ["volume", "origin", "volume_id"]
    )
    success = _family("protection_last_success_seconds", "Since the last good scheduled snapshot.", ["volume"])
    due = _family("protection_next_run_seconds", "Until the next scheduled snapshot.", ["volume"])
    for volume in volumes:
        labels = [volume["name"], volume["origin"], volume["volume_id"][:8]]
        count.add_metric(labels, volume["snapshots"])
        classes.add_metric(labels, len(volume["classes"]))
        skipped.add_metric(labels, volume["skipped"])
        if volume["newest_age_s"] is not None:
            age.add_metric(labels, volume["newest_age_s"])
        promise = volume["protection"]
        if promise is not None:
            due.add_metric([volume["name"]], promise["next_run_s"])
            if promise["last_success_s"] is not None:
                success.add_metric([volume["name"]], promise["last_success_s"])
    return [count, age, classes, skipped, success, due]


def _syncs(syncs: list[dict[str, Any]]) -> Iterable[Metric]:
    names = ["volume", "peer", "sync"]
    lag = _family("sync_lag_seconds", "Age of the oldest snapshot that the peer has not signed for.", names)
    pending = _family("sync_pending_snapshots", "Snapshots that the peer has not signed for.", names)
    success = _family("sync_last_success_seconds", "Since the peer last had everything.", names)
    for sync in syncs:
        labels = [sync["volume"], sync["peer"], sync["sync_id"]]
        lag.add_metric(labels, sync["lag_s"])
        pending.add_metric(labels, sync["pending_snapshots"])
        if sync["last_success_s"] is not None:
            success.add_metric(labels, sync["last_success_s"])
    return [lag, pending, success]
