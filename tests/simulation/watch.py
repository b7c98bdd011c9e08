"""Markers that no log line tells of: seen by looking at running nodes now and then, and at their history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.versions import CURRENT
from replicator.jobs.due import pending_snapshots
from replicator.net.pacing import OUT
from replicator.testing.site import MemorySite

if TYPE_CHECKING:
    from tests.simulation.world import World


def watch(world: World) -> None:
    """What is going on at this moment."""
    for site in world.sites:
        if not site.is_up:
            continue
        mesh = site.node.mesh
        if mesh.pacing.node[OUT].statistics().waited_s:
            world.sometimes("throttle waited")
        if any(one.told.rate_bytes for one in mesh.pacing._peers.values()):
            world.sometimes("sender told its share")
        if any("nobody listens" in error for error in mesh.dial_errors.values()):
            world.sometimes("dial refused")
        if any(link.connection.version < CURRENT for link in mesh.connected()):
            world.sometimes("spoke the version before")
        if world.waits_for_hours and not world.markers.reached["waited for its window"]:
            _look_at_windows(world, site)
        for view in site.node.jobs.running():
            if view.progress is not None and "the link broke" in view.progress.phase:
                world.sometimes("sync waited for a link")


def _look_at_windows(world: World, site: MemorySite) -> None:
    now, receipts = site.machine.clock.now_ns(), site.catalog.receipts()
    for sync in site.catalog.syncs():
        if not sync.terms.open_hours.at(now) and pending_snapshots(site.catalog, sync, receipts):
            world.sometimes("waited for its window")


def read_history(world: World) -> None:
    """What the jobs of a round have said of themselves."""
    for site in world.sites:
        failed: set[str] = set()
        for view in reversed(site.node.jobs.views(limit=1000)):
            row = view.row
            if row.kind != "sync" or "sync" not in row.args:
                continue
            name = row.args["sync"]
            if row.state == "failed":
                failed.add(name)
            elif row.state == "done" and row.result is not None:
                if row.result["sent"] and name in failed:
                    world.sometimes("sync after a failure")
                if row.result["direction"] == "pull":
                    if row.result["sent"]:
                        world.sometimes("pulled")
                    continue
                for sent in row.result["sent"]:
                    if not sent["round_trips"]:
                        world.sometimes("offered again")
                    else:
                        world.sometimes("received from a base" if sent["from_base"] else "received from nothing")
        receipts = site.catalog.receipts()
        for snapshot in site.catalog.snapshots():
            origin = site.catalog.current_key(snapshot.record.origin)
            foreign = origin != site.catalog.current_key(site.machine.identity.site_id)
            if foreign and any(name == snapshot.snapshot_id for name, _ in receipts):
                world.sometimes("passed on")
