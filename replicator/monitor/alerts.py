"""Silence is an alarm: a promise that is not kept is said aloud, here and on the peer.

Alerts are derived from what is known each time they are asked for; none can be lost, and one
that is no longer true is gone. Each names the thing and the next step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from replicator.catalog.lost import RECOVERED
from replicator.catalog.model import Protection
from replicator.catalog.retention import hour_of
from replicator.core.facts import read_fact
from replicator.core.units import format_span
from replicator.jobs.arrivals import crowded_hours, quota_of
from replicator.jobs.bulk import HELD_FACT, Held
from replicator.jobs.parts import Parts
from replicator.monitor.scrub import scrub_forecast
from replicator.net.mesh import Mesh

_LATE: Final = 2.0
"""A promise is broken after twice its period: once may be a slow disk."""
_QUIET_S: Final = 60.0
"""A peer without a link for this long is quiet: three times what finding a dead link takes."""
_METADATA: Final = ("index", "catalogue", "record", "manifest")
_LISTED_MAX: Final = 20
_CROWD_TOLD_H: Final = 24
"""A flood is told for a day after it was noticed: longer than anybody sleeps."""
_SETTLE_S: Final = 15.0
"""After a start, links and overdue jobs get a moment before their absence is news."""


@dataclass(frozen=True, slots=True)
class Alert:
    """`kind` is for programs; `subject` names the thing; `text` is the sentence, `hint` the next step."""

    kind: str
    subject: str
    text: str
    hint: str


def find_alerts(parts: Parts, mesh: Mesh, *, started_ns: int, jobs_trouble: str = "") -> list[Alert]:
    """Everything that needs a person now."""
    settled = parts.clock.now_ns() - started_ns > _SETTLE_S * 1e9
    found = [*_of_store(parts), *_of_scrub(parts)]
    if jobs_trouble:
        found.append(Alert("jobs_read_only", "jobs", jobs_trouble, "Check the disk, then restart the node."))
    if settled:
        found += _of_schedule(parts)
        found += _of_peers(parts, mesh)
        found += _of_expectations(parts)
    found += _of_syncs(parts)
    found += _of_copies(parts)
    return found


def _of_store(parts: Parts) -> Iterator[Alert]:
    counted = parts.store.statistics()
    if counted.read_only:
        yield Alert("store_read_only", "store", counted.read_only, "Check the disk, then restart the node.")
    if parts.catalog.db.poisoned:
        yield Alert(
            "catalog_read_only", "catalogue", parts.catalog.db.poisoned, "Check the disk, then restart the node."
        )
    if parts.ballast.is_short:
        yield Alert(
            "ballast_gone", "store", parts.ballast.describe(),
            "Delete snapshots and run `replicator gc`, or give the disk more room; it is laid again by itself.",
        )  # fmt: skip
    if why := parts.brake.why():
        left = format_span(parts.brake.left_s())
        yield Alert(
            "clock_untrusted", "clock", f"Nothing is deleted, by rule or by collection: {why}.",
            "If `date -u` is right now, say so: `replicator gc --on`. If it is not, set it. By itself the pause ends "
            f"when the clock is back, or has gone steadily for {left} more.",
        )  # fmt: skip
    if counted.broken_blocks:
        few = "1 block is" if counted.broken_blocks == 1 else f"{counted.broken_blocks:,} blocks are"
        text = f"{few} broken and no peer has given a sound copy yet."
        yield Alert("blocks_broken", "store", text, "Run `replicator repair`; it lists what they touch.")
    if unread := parts.catalog.lost.unread():
        text = f"The records of {len(unread)} snapshots cannot be read, so nothing is collected."
        hint = (
            "Run `replicator repair` when a peer that has them is linked, or give them up: `replicator gc --give-up`."
        )
        yield Alert("records_unread", "store", text, hint)
    if parts.catalog.fact(RECOVERED) and not parts.catalog.peers.all() and not parts.catalog.protections():
        text = (
            "The catalogue was lost. Its snapshots were found again; peers, schedules, syncs and limits of `throttle` "
            "were not: nothing but config.toml holds back traffic now."
        )
        hint = "Pair again, protect again what this site promised, and set the limits again."
        yield Alert("catalogue_rebuilt", "catalogue", text, hint)
    unmended = [one for one in parts.scrubber.findings if not one["is_mended"] and one["what"] in _METADATA]
    for one in unmended[:_LISTED_MAX]:
        if one["what"] == "manifest" and one["cause"] in ("corrupt", "missing", "unreadable"):
            continue  # A node that is broken is a broken block, and counted above.
        text = f"The {one['what']} ({str(one['subject'])[:16]}) is damaged: {one['cause']} {one['done']}."
        yield Alert("metadata_damaged", str(one["subject"])[:16], text, "`replicator scrub --status` tells all of it.")
    if held := parts.catalog.fact(HELD_FACT):
        why = read_fact(held, Held, name="the collection that is held").why
        yield Alert(
            "gc_held", "store", f"A collection is held: {why}.",
            "See `replicator gc --dry-run`. If it is meant, `replicator gc --yes`; if not, `replicator gc --off WHY`.",
        )  # fmt: skip


def _of_copies(parts: Parts) -> Iterator[Alert]:
    """A source that sends far more often than anybody would: taken over, or a schedule that was mistyped."""
    now_hour = hour_of(parts.clock.now_ns())
    for volume in parts.catalog.volumes():
        hours = [one for one in crowded_hours(parts.catalog, volume.volume_id) if 0 <= now_hour - one < _CROWD_TOLD_H]
        if not hours:
            continue
        when = datetime.fromtimestamp(max(hours) * 3600, UTC).strftime("%Y-%m-%d %H:%M UTC")
        quota = quota_of(parts.catalog, volume.volume_id)
        yield Alert(
            "copies_crowded", f"{parts.catalog.peers.name_of(volume.origin)}/{volume.name}",
            f"More than {quota} copies came in the hour of {when}: its first and its last count, no others.",
            f"Find out why. If it is meant, `replicator sync incoming set {volume.name} --quota N`.",
        )  # fmt: skip


def _of_scrub(parts: Parts) -> Iterator[Alert]:
    ahead, promise = scrub_forecast(parts), parts.scrub_promise
    if ahead is not None and ahead.is_late:
        ends = datetime.fromtimestamp(ahead.ends_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
        late_s = (ahead.ends_ns - ahead.due_ns) / 1e9
        text = f"Everything is to be read again every {format_span(promise.every_s)}; this pass will be complete at "
        yield Alert(
            "scrub_late", "store", f"{text}{ends}, {format_span(late_s)} late.",
            "If it stays so, raise `scrub_rate` or `scrub_every` in config.toml.",
        )  # fmt: skip


def _of_schedule(parts: Parts) -> Iterator[Alert]:
    now = parts.clock.now_ns()
    for promise in parts.catalog.protections():
        name = parts.catalog.volume(promise.volume_id).name
        since = promise.last_success_ns
        if since is not None and since > now:
            since = None  # By a clock that has been set back meanwhile: it proves nothing.
        if promise.last_error:
            yield Alert("snapshot_failed", name, f"The last snapshot failed: {promise.last_error}", "See the error.")
        elif _is_late(since, promise, now):
            told = (
                f"The last good snapshot was {format_span((now - since) / 1e9)} ago" if since else "None was taken yet"
            )
            text = f"{told}; one every {format_span(promise.every_s)} is promised."
            yield Alert("schedule_missed", name, text, "See `replicator status` for the job that hangs or fails.")


def _is_late(since: int | None, promise: Protection, now: int) -> bool:
    if since is None:
        return now - promise.next_run_ns > _LATE * promise.every_s * 1e9
    return now - since > _LATE * promise.every_s * 1e9


def _of_peers(parts: Parts, mesh: Mesh) -> Iterator[Alert]:
    now = parts.clock.now_ns()
    for peer in parts.catalog.peers.all():
        if mesh.link_to(peer.site_id) is not None:
            continue
        if (other := mesh.replaced_by.get(peer.site_id)) is not None:
            yield _of_replaced(peer.name, parts.catalog.peers.name_of(other))
            continue
        quiet_s = (now - (peer.last_seen_ns or peer.added_ns)) / 1e9
        if quiet_s > _QUIET_S:
            text = f"Nothing was heard of {peer.name} for {format_span(quiet_s)}."
            why = mesh.dial_errors.get(peer.site_id, "")
            yield Alert("peer_quiet", peer.name, f"{text} {why}".strip(), "Is its node up and reachable?")


def _of_replaced(old: str, new: str) -> Alert:
    text = f"{new} answers where {old} was. If that site was made anew, {old} is dialled in vain and never comes back."
    hint = (
        f"If so, forget it and its syncs: `replicator pair revoke {old}`; then `replicator sync add --to {new}`. "
        "If both exist, pair the one again whose address has changed."
    )
    return Alert("peer_replaced", old, text, hint)


def _of_expectations(parts: Parts) -> Iterator[Alert]:
    """What a peer promised to send us: if its node is dead, only we can say so."""
    now = parts.clock.now_ns()
    for one in parts.catalog.expectations():
        late_s = (now - one.last_ns) / 1e9
        if late_s > _LATE * one.every_s:
            name = parts.catalog.peers.name_of(one.peer)
            volume = parts.catalog.volume(one.volume_id).name
            text = f"The last snapshot of {volume} came {format_span(late_s)} ago; one every "
            yield Alert(
                "peer_missed_schedule", f"{name}/{volume}", f"{text}{format_span(one.every_s)} is promised.",
                f"Look at the node of {name}.",
            )  # fmt: skip


def _of_syncs(parts: Parts) -> Iterator[Alert]:
    for sync in parts.catalog.syncs():
        if sync.failures and sync.needs_person and not sync.paused:
            name = parts.catalog.peers.name_of(sync.peer)
            text = f"The sync with {name} cannot go on: {sync.last_error}"
            yield Alert("sync_blocked", name, text, "See the error; it is tried again by itself all the same.")
        elif sync.failures >= 3:
            name = parts.catalog.peers.name_of(sync.peer)
            text = f"Syncing to {name} failed {sync.failures} times: {sync.last_error}"
            yield Alert("sync_failing", name, text, "It is tried again by itself; see the error.")
