"""The seven steps, in order, each leaving its lines in the table."""

import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from replicator.app.cli.output import Output
from replicator.app.demo.judge import differences, facts_of_tree, rsync_says, sha256_of, sums_of_tree
from replicator.app.demo.material import FILES_MIN, Material, change_one_percent, make_material
from replicator.app.demo.report import Report
from replicator.app.demo.ruin import Ruin, ruin_store
from replicator.app.demo.sites import Site
from replicator.app.demo.stage import Stage
from replicator.core.errors import ReplicatorError
from replicator.core.throttle import BURST_S
from replicator.core.units import format_size, format_span, parse_rate


class Demo:
    """One run."""

    def __init__(self, *, work: Path, given: Path | None, rate: str, seed: int, output: Output) -> None:
        self.work = work
        self._given = given
        self._rate = rate
        self._seed = seed
        self._stage = Stage(output)
        self.report = Report()
        self.sites: list[Site] = []

    # -- the steps ------------------------------------------------------------------------

    def run(self) -> Report:
        material = self._prepare()
        home, cabin, vault = self._start_sites()
        first_sums = self._sums(material)
        first = self._protect_and_snapshot(home, material)
        self._sync_both_ways(home, cabin, vault, first)
        changed = self._change(material)
        second_sums = self._sums(material)
        facts = facts_of_tree(material.tree)
        second = self._snapshot(home, "after the change")
        self._sync_the_difference(home, cabin, vault, second, changed)
        self._audit(home, cabin, second)
        self._ruin_and_heal(home, cabin, material, second)
        self._burn_and_restore(home, vault, material, (first, first_sums), (second, second_sums), facts)
        took = self._stage.took_s()
        self.report.add("all of it in under two minutes", format_span(took), holds=took < 120)
        return self.report

    def _prepare(self) -> Material:
        self._stage.say("gathering real data: a tree with everything odd in it, and an ext4 image")
        material = make_material(self.work, self._given)
        image = material.image.stat()
        self._stage.say(
            f"{material.tree_files:,} files from {material.came_from}; an image of {format_size(image.st_size)}, "
            f"{format_size(image.st_blocks * 512)} of it in use"
        )
        needed = 0 if self._given else FILES_MIN
        self.report.add(
            f"a real tree of {needed:,} files and a real disk image",
            f"{material.tree_files:,} files, {format_size(image.st_size)} ext4",
            holds=material.tree_files >= needed,
        )
        return material

    def _start_sites(self) -> tuple[Site, Site, Site]:
        self._stage.say("starting three sites and pairing them by one-time codes")
        began = time.monotonic()
        self.sites = [Site(name, self.work / name, rate_out=self._rate) for name in ("home", "cabin", "vault")]
        for site in self.sites:
            site.make()
            site.start()
        home, cabin, vault = self.sites
        for inviter, joiner in ((home, cabin), (home, vault), (cabin, vault)):
            code = inviter.post("/v1/pair/invite", {"minutes": 5})["code"]
            joiner.post("/v1/pair/join", {"code": code})
        self._stage.wait("links", lambda: all(self._links(site) == 2 for site in self.sites))
        took = time.monotonic() - began
        self.report.add("three sites paired over mutual TLS 1.3 by one-time codes", format_span(took), holds=took < 30)
        return home, cabin, vault

    def _links(self, site: Site) -> int:
        return sum(peer["linked"] for peer in site.get("/v1/peers"))

    def _sums(self, material: Material) -> tuple[bytes, str]:
        return sums_of_tree(material.tree), sha256_of(material.image)

    def _protect_and_snapshot(self, home: Site, material: Material) -> list[dict[str, Any]]:
        cabin, vault = self.sites[1], self.sites[2]
        for path in (material.tree, material.image):
            home.post("/v1/protect", {"path": str(path), "to": ["cabin"]})
        cabin.post("/v1/syncs", {"to": vault.name})
        return self._snapshot(home, "the first")

    def _snapshot(self, home: Site, which: str) -> list[dict[str, Any]]:
        self._stage.say(f"taking a system snapshot of both ({which})")
        began = time.monotonic()
        taken: list[dict[str, Any]] = self._stage.job(home, "snapshot", {})["snapshots"]
        took = time.monotonic() - began
        size = sum(one["size_bytes"] for one in taken)
        new = sum(one["bytes_new"] for one in taken)
        skipped = sum(one["skipped_count"] for one in taken)
        self._stage.say(f"  {format_size(size)} in {format_span(took)}, {format_size(new)} new in the store")
        self.report.add(
            f"a system snapshot of tree and image ({which})",
            f"{format_size(size)} in {format_span(took)}, {skipped} paths skipped",
            holds=skipped == 0 and len({one["volume"] for one in self._listed(home, taken)}) == 2,
        )
        return self._listed(home, taken)

    def _listed(self, home: Site, taken: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The newest system snapshot's members, as the node lists them: a restart may have cut the job's answer."""
        del taken
        snapshots = home.get("/v1/snapshots")
        newest = max(snapshots, key=lambda one: one["taken_ns"])
        return [one for one in snapshots if one["system_id"] == newest["system_id"]]

    # -- syncs ----------------------------------------------------------------------------

    def _sync_both_ways(self, home: Site, cabin: Site, vault: Site, snapshots: list[dict[str, Any]]) -> None:
        self._stage.say(f"syncing home to cabin, and onward from cabin to vault, capped at {self._rate} a site")
        cap = parse_rate(self._rate)
        for source, target in ((home, cabin), (cabin, vault)):
            sent = self._stage.sent(source, target, snapshots)
            ahead = sum(one["ahead_bytes"] for one in sent)
            moved = ahead + sum(one["block_bytes"] for one in sent)
            # What the cap binds is what left *this* site: others that hold a block serve it too, each under its own.
            left = ahead + sum(one["link_bytes_out"] for one in sent)
            took = self._stage.span_s(source, target, is_ahead=ahead > 0)
            rate = left / took if took else 0.0
            self._stage.say(
                f"  {source.name} to {target.name}: {format_size(moved)} in {format_span(took)}, {format_size(rate)}/s"
                f"; {format_size(ahead)} of it while the snapshot was taken"
            )
            self.report.add(
                f"first sync {source.name} to {target.name}, at most {self._rate}",
                f"{format_size(moved)} at {format_size(rate)}/s",
                holds=left <= cap * (1.05 * took + BURST_S),  # A burst is what an idle line has saved up.
            )

    def _change(self, material: Material) -> int:
        self._stage.say("changing one percent")
        files, written = change_one_percent(material, seed=self._seed)
        self._stage.say(
            f"  {files} files changed, renamed or deleted; {format_size(written)} written into the image's file system"
        )
        return written

    def _sync_the_difference(
        self, home: Site, cabin: Site, vault: Site, snapshots: list[dict[str, Any]], changed: int
    ) -> None:
        for source, target in ((home, cabin), (cabin, vault)):
            sent = self._stage.sent(source, target, snapshots)
            moved = sum(one["block_bytes"] + one["ahead_bytes"] for one in sent)
            summary = sum(one["summary_bytes"] for one in sent)
            trips = max((one["round_trips"] for one in sent), default=0)
            twice = sum(one["blocks_twice"] for one in sent)
            measured = (
                f"{format_size(moved)} of blocks, {format_size(summary)} of summaries, {trips} round trips, "
                f"{twice} blocks sent twice"
            )
            self._stage.say(f"  {source.name} to {target.name}: {measured}")
            # Each changed file and block moves once; an image block is 64 KiB, so a small change moves that much.
            self.report.add(
                f"1 % changed, {source.name} to {target.name}: only the difference, nothing twice",
                measured,
                holds=twice == 0 and moved <= 6 * changed + 20_000_000 and trips <= 4,
            )

    def _audit(self, source: Site, target: Site, snapshots: list[dict[str, Any]]) -> None:
        done = [
            self._stage.job(source, "audit", {"snapshot": one["snapshot"], "peer": target.name}) for one in snapshots
        ]
        lacking = sum(one["peer_lacks"] + one["we_lack"] for one in done)
        shared = sum(one["shared"] for one in done)
        size = sum(one["summary_bytes"] for one in done)
        trips = max(one["round_trips"] for one in done)
        measured = f"{shared:,} shared, {lacking} lacking, {format_size(size)}, {trips} round trips"
        self.report.add(f"Merkle summaries prove {source.name} and {target.name} equal", measured, holds=lacking == 0)

    # -- damage ---------------------------------------------------------------------------

    def _ruin_and_heal(self, home: Site, cabin: Site, material: Material, snapshots: list[dict[str, Any]]) -> None:
        self._stage.say("ruining cabin's store while a restore reads from it")
        ruin = ruin_store(cabin.state.store / "segments", seed=self._seed)
        for said in ruin.said:
            self._stage.say(f"  {said}")
        began = time.monotonic()
        tree = next(one for one in snapshots if one["kind"] == "tree")
        target = self.work / "restored-during-damage"
        restored: list[Exception | dict[str, Any]] = []
        thread = threading.Thread(target=self._restore_aside, args=(cabin, tree["snapshot"], target, restored))
        thread.start()
        scrubbed = self._stage.job(cabin, "scrub", {"from_start": True})
        thread.join()
        self._report_healing(cabin, ruin, scrubbed, took=time.monotonic() - began)
        if isinstance(restored[0], Exception):
            raise restored[0]
        wrong = sums_of_tree(target) != sums_of_tree(material.tree)
        self.report.add(
            "a restore started during the damage returns right bytes",
            "sha256sum differs" if wrong else "sha256sum agrees on every file",
            holds=not wrong,
        )

    def _restore_aside(self, site: Site, snapshot: str, target: Path, answer: list[Exception | dict[str, Any]]) -> None:
        args = {"snapshot": snapshot, "target": str(target), "only": "", "overwrite": True, "dry_run": False}
        try:
            answer.append(self._stage.job(site, "restore", args))
        except ReplicatorError as error:
            answer.append(error)

    def _broken(self, site: Site) -> int:
        broken: int = site.get("/v1/status")["store"]["broken_blocks"]
        return broken

    def _report_healing(self, cabin: Site, ruin: Ruin, scrubbed: dict[str, Any], *, took: float) -> None:
        self._stage.wait("every block to be mended", lambda: self._broken(cabin) == 0, seconds=60)
        audit = cabin.get("/v1/repairs", limit=100_000)
        healed = {line["block"] for line in audit if line["role"] == "asked" and line["outcome"].startswith("healed")}
        missed = {block.hex() for block in ruin.blocks} - healed
        servers = sorted({line["peer"] for line in audit if line["role"] == "asked" and line["peer"]})
        broken = self._broken(cabin)
        self._stage.say(
            f"  {len(healed)} blocks healed by {', '.join(servers)} in {format_span(took)}, {broken} still broken"
        )
        for line in [line for line in audit if line["role"] == "asked"][:3]:
            self._stage.say(
                f"  audit: block {line['block'][:12]} {line['cause']}: cabin asked, {line['peer']} served, "
                f"{line['outcome']} in {format_span(line['took_s'])}"
            )
        again = self._stage.job(cabin, "scrub", {"from_start": True})
        self.report.add(
            "scrub and reads find every damaged block, peers heal all of them",
            f"{len(ruin.blocks)} ruined, {len(missed)} missed, {broken} unhealed, a 2nd scrub finds {again['damaged']}",
            holds=not missed and broken == 0 and again["damaged"] == 0 and scrubbed["blocks"] > 0,
        )
        served = [line for site in self.sites if site is not cabin for line in site.get("/v1/repairs", limit=100_000)]
        self.report.add(
            "audit lines say who asked, who served, how long it took",
            f"{len(healed)} asked at cabin, {sum(line['role'] == 'served' for line in served)} served elsewhere",
            holds=bool(servers) and len(served) >= len(ruin.blocks) - len(missed),
        )

    # -- fire -----------------------------------------------------------------------------

    def _burn_and_restore(
        self,
        home: Site,
        vault: Site,
        material: Material,
        first: tuple[list[dict[str, Any]], tuple[bytes, str]],
        second: tuple[list[dict[str, Any]], tuple[bytes, str]],
        facts: dict[bytes, tuple[object, ...]],
    ) -> None:
        self._stage.say("burning home: its process and its whole folder are gone")
        home.burn()
        for which, (snapshots, (tree_sums, image_sum)) in (("first", first), ("second", second)):
            self._stage.say(f"restoring the {which} snapshot from vault")
            began = time.monotonic()
            folder = self.work / f"restored-{which}"
            folder.mkdir(exist_ok=True)
            for one in snapshots:
                name = "tree" if one["kind"] == "tree" else "disk.img"
                self._restore(vault, one["snapshot"], folder / name)
            took = time.monotonic() - began
            same = sums_of_tree(folder / "tree") == tree_sums and sha256_of(folder / "disk.img") == image_sum
            self.report.add(
                f"vault gives back the {which} snapshot, byte for byte",
                f"{'sha256sum agrees' if same else 'sha256sum DIFFERS'}, {format_span(took)}",
                holds=same,
            )
        self._judge_metadata(material, facts)
        self._restore_one_file(vault, second[0], material)

    def _restore(self, site: Site, snapshot: str, target: Path, *, only: str = "") -> dict[str, Any]:
        args = {"snapshot": snapshot, "target": str(target), "only": only, "overwrite": True, "dry_run": False}
        return self._stage.job(site, "restore", args)

    def _judge_metadata(self, material: Material, facts: dict[bytes, tuple[object, ...]]) -> None:
        restored = self.work / "restored-second" / "tree"
        wrong = differences(facts, facts_of_tree(restored))
        for line in wrong[:5]:
            self._stage.say(f"  {line}")
        self.report.add(
            "modes, owners, times to the ns, links, hard links, xattrs",
            f"{len(facts):,} paths compared, {len(wrong)} differ",
            holds=not wrong,
        )
        said = rsync_says(material.tree, restored)
        if said is not None:
            self.report.add("rsync -aHAX --checksum finds nothing to do", f"{len(said)} lines", holds=not said)
        image, original = self.work / "restored-second" / "disk.img", material.image
        sparse = image.stat().st_blocks <= original.stat().st_blocks * 1.1 + 2048
        self.report.add(
            "holes stay holes",
            f"{format_size(image.stat().st_blocks * 512)} used, {format_size(original.stat().st_blocks * 512)} before",
            holds=sparse,
        )

    def _restore_one_file(self, vault: Site, snapshots: list[dict[str, Any]], material: Material) -> None:
        tree = next(one for one in snapshots if one["kind"] == "tree")
        wanted = "odd things/plain"
        folder = self.work / "restored-one"
        self._restore(vault, tree["snapshot"], folder, only=wanted)
        found = [path for path in folder.rglob("plain") if path.is_file()]
        same = len(found) == 1 and sha256_of(found[0]) == sha256_of(material.tree / wanted)
        self.report.add("a single file out of it", wanted if same else "not as it was", holds=same)

    def stop(self) -> None:
        for site in self.sites:
            site.stop()


def run_demo(*, given: Path | None, keep: bool, rate: str, seed: int, work: Path | None, output: Output) -> int:
    """Run it, show the table, and clean up unless `keep`. Returns the exit code: 0 if every promise held."""
    folder = work or Path(tempfile.mkdtemp(prefix="replicator-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(work=folder.resolve(), given=given, rate=rate, seed=seed, output=output)
    finished = False
    problem: ReplicatorError | None = None
    # Who ends us ends our nodes: a supervisor's SIGTERM is a Ctrl-C by other means.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demo.run()
        finished = True
    except ReplicatorError as error:
        problem = error
    finally:
        output.result(demo.report.as_json(problem), lambda: demo.report.show(problem))
        if keep:
            running = [f"  replicator status --state {site.state.root}" for site in demo.sites[1:]]
            print("The sites cabin and vault are still running:", *running, sep="\n", file=sys.stderr)
            print(f"Everything is in {folder}.", file=sys.stderr)
        else:
            demo.stop()
            if finished:
                print(f"Clearing up: {folder} goes.", file=sys.stderr)
                shutil.rmtree(folder, ignore_errors=True)
            else:
                print(f"What there was is left in {folder}, with each node's node.log.", file=sys.stderr)
    if problem is not None:
        return problem.exit_code
    return 0 if demo.report.holds else 1
