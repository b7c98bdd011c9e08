"""`repair`, `verify`, `audit`, `jobs`: looking after what is kept."""

from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect, in_url, run_job, run_job_anywhere
from replicator.app.cli.output import Output, describe_progress, table
from replicator.core.errors import EXIT_FINDINGS, EXIT_OK, UsageError
from replicator.core.paths import shown
from replicator.core.units import counted, format_span

jobs = App(name="jobs", help="Work that is going on, and work that is done.")


def register(app: App) -> None:
    app.command(repair)
    app.command(verify)
    app.command(audit)
    app.command(jobs)


def print_damage(value: dict[str, Any]) -> None:
    if value["damaged"]:
        print(f"{value.get('healed', 0)} mended from peers, {value.get('unhealed', value['damaged'])} not.")
    for fault in value["faults"][:20] if value.get("unhealed", 1) else []:
        print(f"  {fault['cause']:10} {fault['block'][:16]} {fault['where']}")
    for one in value["touched"]:
        print(shown(f"  touches {one['volume']} {one['snapshot']}: {one['where']}"))


def repair(*, common: Common = DEFAULT) -> int:
    """Ask the peers again for every block that is broken here.

    Exit codes: 0 nothing is broken any more, 1 something still is, 69 the node is down.
    """
    output = common.output()
    value = run_job(common, output, "repair", {})

    def human() -> None:
        print(f"{counted(value['damaged'], 'block')} {'was' if value['damaged'] == 1 else 'were'} broken.")
        print_damage(value)

    output.result(value, human)
    return EXIT_FINDINGS if value["unhealed"] else EXIT_OK


def verify(
    snapshot: Annotated[str, Parameter(help="The beginning of its id, or a volume's name; default: all.")] = "",
    *,
    peer: Annotated[str, Parameter(name=["--with"], help="Compare with what this peer holds.")] = "",
    common: Common = DEFAULT,
) -> int:
    """Prove that a snapshot is whole: every block that it needs is read and hashed. Works on a node that is down.

    With --with, compare instead, by Merkle summaries, what a peer holds of it with what is here; what either lacks it
    fetches. Exit codes: 0 whole, 1 something was missing, 66 no such snapshot or peer, 69 the peer is not reachable,
    75 the store is in use, 77 the peer does not hold it, or may not be asked.
    """
    output = common.output()
    if peer:
        return _verify_with(snapshot, peer, common, output)
    value = run_job_anywhere(common, output, "verify", {"snapshot": snapshot} if snapshot else {})

    def human() -> None:
        proven = f"{counted(value['snapshots'], 'snapshot')}, {counted(value['blocks'], 'block')} proven"
        print(f"{proven}, {value['damaged']:,} damaged.")
        print_damage(value)

    output.result(value, human)
    return EXIT_FINDINGS if value["damaged"] else EXIT_OK


def _verify_with(snapshot: str, peer: str, common: Common, output: Output) -> int:
    if not snapshot:
        raise UsageError("--with compares one snapshot.", hint="Name it, or a volume for its newest.")
    value = run_job(common, output, "audit", {"snapshot": snapshot, "peer": peer})

    def human() -> None:
        fetched = f", of which {value['mended']} came meanwhile" if value["we_lack"] else ""
        print(
            f"{value['volume']} {value['snapshot'][:12]}: {counted(value['blocks'], 'block')} here, "
            f"{value['shared']:,} of them at {value['peer']}; "
            f"it lacks {value['peer_lacks']}, we lack {value['we_lack']}{fetched} "
            f"({value['summary_bytes']:,} bytes of summaries, {counted(value['round_trips'], 'round trip')})"
        )

    output.result(value, human)
    return EXIT_FINDINGS if value["peer_lacks"] or value["we_lack"] else EXIT_OK


def audit(*, limit: Annotated[int, Parameter(help="How many lines.")] = 50, common: Common = DEFAULT) -> int:
    """Show the repairs: which block, who asked, who served, how long it took. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/repairs", limit=limit)
    rows = [
        (
            datetime.fromtimestamp(one["at_ns"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            one["block"][:16], one["cause"], one["role"], one["peer"] or "-", one["outcome"],
            format_span(one["took_s"]),
        )
        for one in value
    ]  # fmt: skip
    common.output().result(value, lambda: table(rows, ("AT (UTC)", "BLOCK", "CAUSE", "WE", "PEER", "OUTCOME", "TOOK")))
    return 0


@jobs.command(name="list")
def list_jobs(*, limit: Annotated[int, Parameter(help="How many.")] = 20, common: Common = DEFAULT) -> int:
    """List jobs, newest first. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/jobs", limit=limit)
    rows = [
        (one["job_id"], one["kind"], one["state"],
         describe_progress(one["progress"]) if one["progress"] else (one["error"] or {}).get("message", ""))
        for one in value
    ]  # fmt: skip
    common.output().result(value, lambda: table(rows, ("JOB", "KIND", "STATE", "")))
    return 0


@jobs.command
def show(job: Annotated[str, Parameter(help="The job's id.")], *, common: Common = DEFAULT) -> int:
    """Show one job with its result. Exit codes: 0, 66 no such job, 69 the node is down."""
    import json

    value = connect(common).get(f"/v1/jobs/{in_url(job)}")
    common.output().result(value, lambda: print(json.dumps(value, indent=2)))
    return 0


@jobs.command
def cancel(job: Annotated[str, Parameter(help="The job's id.")], *, common: Common = DEFAULT) -> int:
    """Stop a running job; what it has done stays. Exit codes: 0, 66 it is not running, 69 the node is down."""
    value = connect(common).delete(f"/v1/jobs/{in_url(job)}")
    common.output().result(value, lambda: print(f"Stopping {value['cancelling']}."))
    return 0
