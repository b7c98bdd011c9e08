"""The stage: what the audience is told, and what the sites are asked and waited for.

A site may be started again at any moment, by whoever is watching. So a job that this has cut is run again, and what a
copy has cost is read from what the site remembers, not from what it answered.
"""

import time
from collections.abc import Callable
from typing import Any

from replicator.api.client import RemoteError
from replicator.app.cli.common import new_job_id
from replicator.app.cli.output import Output
from replicator.app.demo.sites import Site
from replicator.core.errors import BlockMissing, PeerError, Stalled, Unreachable

_SYNC_WAIT_S = 120.0
_PASSING = frozenset({Unreachable.code, Stalled.code, PeerError.code, BlockMissing.code})
"""What is over when the other sites are back."""


class Stage:
    """One run, as seen from outside."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._began = time.monotonic()

    def took_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        self._output.clear()
        if not self._output.as_json:
            print(f"[{self.took_s():5.1f} s] {text}", flush=True)

    def job(self, site: Site, kind: str, args: dict[str, Any]) -> dict[str, Any]:
        """Run a job; one that another site's restart has cut is run again, as its own hint says."""
        deadline = time.monotonic() + _SYNC_WAIT_S
        while True:
            try:
                return site.client.run_job(kind, args, job_id=new_job_id(), on_progress=self._output.job)
            except RemoteError as error:
                if error.code not in _PASSING or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def wait(self, what: str, is_so: Callable[[], bool], *, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                raise Stalled(f"Waited {seconds:.0f} s for {what} in vain.")
            time.sleep(0.1)

    def sent(self, source: Site, target: Site, snapshots: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Wait until `target` has signed for all of `snapshots`, and say what the syncs reported."""
        wanted = {one["snapshot"] for one in snapshots}

        def is_held() -> bool:
            listed = {one["snapshot"]: one for one in source.get("/v1/snapshots")}
            running = source.get("/v1/jobs", limit=3)
            for job in running:
                if job["kind"] == "sync" and job["state"] == "running":
                    self._output.job(job)
            return all(one in listed and target.name in listed[one]["held_by"] for one in wanted)

        self.wait(f"{target.name} to hold the snapshot", is_held, seconds=_SYNC_WAIT_S)

        def is_reported() -> bool:
            return {one["snapshot"] for one in self._reports(source, target)} >= wanted

        try:
            self.wait("the sync's report", is_reported, seconds=5)
        except Stalled:
            self.say("  (a node was restarted between the receipt and the report: the report is incomplete)")
        return [one for one in self._reports(source, target) if one["snapshot"] in wanted]

    def span_s(self, source: Site, target: Site, *, is_ahead: bool) -> float:
        """From the first sync's start to the last one's end: tree and image travel at the same time.

        If blocks went ahead, they did from the moment in which the snapshot was begun.
        """
        jobs = source.get("/v1/jobs", limit=200)
        done = [
            job
            for job in jobs
            if job["kind"] == "sync"
            and job["result"]
            and job["result"]["peer"] == target.name
            and job["result"]["sent"]
        ]
        if not done:
            return 0.0
        begun = done + [job for job in jobs if is_ahead and job["kind"] == "snapshot"]
        span_ns: int = max(job["finished_ns"] for job in done) - min(job["started_ns"] for job in begun)
        return span_ns / 1e9

    def _reports(self, source: Site, target: Site) -> list[dict[str, Any]]:
        done = [job for job in source.get("/v1/jobs", limit=200) if job["kind"] == "sync" and job["result"]]
        return [sent for job in done if job["result"]["peer"] == target.name for sent in job["result"]["sent"]]
