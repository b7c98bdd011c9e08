"""`sync`: which snapshots go to which peers, or are fetched from them, and when."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect, in_url, run_job
from replicator.app.cli.output import age, table
from replicator.core.errors import NotFound
from replicator.core.paths import shown
from replicator.core.units import counted, format_size, format_span, parse_span

sync = App(name="sync", help="Standing site syncs: snapshots go to a peer, or are fetched from one.")
incoming = App(name="incoming", help="What this site keeps of volumes that come from other sites.")


def register(app: App) -> None:
    sync.command(incoming)
    app.command(sync)


@sync.command
def add(
    *,
    to: Annotated[str, Parameter(help="Push: the peer that gets the snapshots.")] = "",
    from_: Annotated[str, Parameter(name=["--from"], help="Pull: the peer to fetch from. We own the schedule.")] = "",
    volume: Annotated[
        str, Parameter(help="Only this volume; default: everything there is, also what comes from others.")
    ] = "",
    tenant: Annotated[list[str] | None, Parameter(help="Only volumes with this label (`protect --tenant`).")] = None,
    tag: Annotated[list[str] | None, Parameter(help="Only snapshots with this label.")] = None,
    cron: Annotated[str, Parameter(help="At these times instead of at once: `30 2 * * mon-fri`.")] = "",
    rpo: Annotated[str, Parameter(help="Continuously: the copy there is never older than this, like 30s.")] = "",
    zone: Annotated[str, Parameter(help="The time zone of --cron and --window, like Europe/Berlin.")] = "UTC",
    window: Annotated[
        list[str] | None, Parameter(help="Only at these hours: `mon-fri 22:00-06:00`, `sat,sun`.")
    ] = None,
    priority: Annotated[int, Parameter(help="0 goes first, 9 last.")] = 5,
    do_not_expire: Annotated[
        bool, Parameter(negative="", help="Prune no snapshot here that has still to be brought over.")
    ] = False,
    keep: Annotated[
        str, Parameter(help="Which copies to keep at the destination. For a push it is a wish: see `sync incoming`.")
    ] = "",
    prefix: Annotated[str, Parameter(help="Put this before the volume's name at the destination.")] = "",
    passive: Annotated[bool, Parameter(negative="", help="The copies are kept there, and not offered onward.")] = False,
    rate: Annotated[str, Parameter(help="A bandwidth rule for this sync alone: 5MB/s.")] = "none",
    common: Common = DEFAULT,
) -> int:
    """Bring every snapshot, present and future, to a peer or from one. Saying the same again changes its terms.

    Exit codes: 0 added, 64 terms that cannot be kept, 66 no such peer or volume, 69 the node is down.
    """
    body = {
        "to": to, "from": from_, "volume": volume, "tenants": list(tenant or []), "tags": list(tag or []),
        "cron": cron, "rpo_s": parse_span(rpo) if rpo else 0.0, "zone": zone, "windows": "; ".join(window or []),
        "priority": priority, "do_not_expire": do_not_expire, "keep": keep, "prefix": prefix, "passive": passive,
        "rate": rate,
    }  # fmt: skip
    value = connect(common).post("/v1/syncs", body)
    common.output().result(value, lambda: print(shown(f"Sync {value['sync_id']}: {_what(value)}.")))
    return 0


def _what(one: dict[str, Any]) -> str:
    way = "to" if one["direction"] == "push" else "from"
    return f"{one['volume']} {way} {one['peer']}, {_when(one)}"


def _when(one: dict[str, Any]) -> str:
    when = f"at `{one['cron']}` ({one['zone']})" if one["cron"] else "each snapshot at once"
    if one["rpo_s"]:
        when = f"never older than {format_span(one['rpo_s'])}"
    return when + (f", within {one['windows']} ({one['zone']})" if one["windows"] else "")


@sync.command
def change(
    sync_id: Annotated[str, Parameter(help="As `sync list` shows it.")],
    *,
    tenant: Annotated[
        list[str] | None, Parameter(negative="--any-tenant", help="Only volumes with this label.")
    ] = None,
    tag: Annotated[list[str] | None, Parameter(negative="--any-tag", help="Only snapshots with this label.")] = None,
    cron: Annotated[str | None, Parameter(help="At these times; empty for each snapshot at once.")] = None,
    rpo: Annotated[str | None, Parameter(help="Continuously; empty ends that.")] = None,
    zone: Annotated[str | None, Parameter(help="The time zone.")] = None,
    window: Annotated[list[str] | None, Parameter(negative="--any-time", help="Only at these hours.")] = None,
    priority: Annotated[int | None, Parameter(help="0 goes first, 9 last.")] = None,
    do_not_expire: Annotated[bool | None, Parameter(help="Prune nothing that has still to go.")] = None,
    keep: Annotated[str | None, Parameter(help="Which copies to keep at the destination.")] = None,
    prefix: Annotated[str | None, Parameter(help="Before the volume's name at the destination.")] = None,
    passive: Annotated[bool | None, Parameter(help="Kept there, and not offered onward.")] = None,
    rate: Annotated[str | None, Parameter(help="A bandwidth rule for this sync alone.")] = None,
    common: Common = DEFAULT,
) -> int:
    """Change the terms of a sync; what is not said stays.

    Exit codes: 0, 64 terms that cannot be kept, 66 no such sync, 69 the node is down.
    """
    body = {
        "tenants": tenant, "tags": tag, "cron": cron, "zone": zone, "priority": priority, "keep": keep,
        "rpo_s": None if rpo is None else parse_span(rpo) if rpo else 0.0,
        "windows": None if window is None else "; ".join(window), "do_not_expire": do_not_expire,
        "prefix": prefix, "passive": passive, "rate": rate,
    }  # fmt: skip
    value = connect(common).patch(f"/v1/syncs/{in_url(sync_id)}", {k: v for k, v in body.items() if v is not None})
    common.output().result(value, lambda: print(shown(f"Sync {value['sync_id']}: {_what(value)}.")))
    return 0


@sync.command
def run(
    sync_id: Annotated[str, Parameter(help="Only this one; default: all.")] = "",
    *,
    to: Annotated[str, Parameter(help="Only those to this peer.")] = "",
    common: Common = DEFAULT,
) -> int:
    """Run syncs now and wait until the peer has signed for everything.

    Exit codes: 0 the peer holds it all, 66 no such sync, 69 a peer or the node is not reachable, 77 refused.
    """
    output = common.output()
    known = connect(common).get("/v1/syncs")
    chosen = [one for one in known if sync_id in ("", one["sync_id"]) and to in ("", one["peer"])]
    if not chosen:
        raise NotFound("There is no such sync.", hint="`replicator sync list` shows them, `sync add` makes one.")
    value = [run_job(common, output, "sync", {"sync": one["sync_id"]}) for one in chosen]
    output.result(value, lambda: _print_runs(value))
    return 0


def _print_runs(runs: list[dict[str, Any]]) -> None:
    for one in runs:
        if not one["sent"]:
            print(
                "There was nothing to fetch."
                if one["direction"] == "pull"
                else shown(f"{one['peer']} has everything already.")
            )
        way = "to" if one["direction"] == "push" else "from"
        for sent in one["sent"]:
            if sent["ahead_blocks"]:
                said = f"{sent['ahead_blocks']:,} blocks, {format_size(sent['ahead_bytes'])}"
                print(f"{shown(sent['volume'])} {sent['snapshot'][:12]}: {said} went while it was taken; then")
            print(
                f"{shown(sent['volume'])} {sent['snapshot'][:12]} {way} {shown(one['peer'])}: "
                f"{counted(sent['blocks'], 'block')}, "
                f"{format_size(sent['block_bytes'])} in {format_span(sent['took_s'])} "
                f"({format_size(sent['rate_bytes'])}/s), {sent['blocks_twice']} sent twice; "
                f"the difference took {format_size(sent['summary_bytes'])} and "
                f"{counted(sent['round_trips'], 'round trip')}"
            )
            if sent["planned"] is not None:
                planned = sent["planned"]
                after = " after that" if sent["ahead_blocks"] else ""
                told = "" if planned["took_s"] is None else f" in {format_span(planned['took_s'])}"
                print(f"    planned{after}: {planned['blocks']:,} blocks, {format_size(planned['bytes'])}{told}")


@sync.command
def remove(sync_id: Annotated[str, Parameter(help="As `sync list` shows it.")], *, common: Common = DEFAULT) -> int:
    """End a sync; what the peer holds stays there. Exit codes: 0, 66 no such sync, 69 the node is down."""
    value = connect(common).delete(f"/v1/syncs/{in_url(sync_id)}")
    common.output().result(value, lambda: print(f"Sync {value['removed']} is gone."))
    return 0


@sync.command
def pause(sync_id: Annotated[str, Parameter(help="As `sync list` shows it.")], *, common: Common = DEFAULT) -> int:
    """Send nothing more until `sync resume`. Exit codes: 0, 66 no such sync, 69 the node is down."""
    value = connect(common).post(f"/v1/syncs/{in_url(sync_id)}/pause", {"paused": True})
    common.output().result(value, lambda: print(f"Sync {value['sync_id']} is paused."))
    return 0


@sync.command
def resume(sync_id: Annotated[str, Parameter(help="As `sync list` shows it.")], *, common: Common = DEFAULT) -> int:
    """Go on with a paused sync. Exit codes: 0, 66 no such sync, 69 the node is down."""
    value = connect(common).post(f"/v1/syncs/{in_url(sync_id)}/pause", {"paused": False})
    common.output().result(value, lambda: print(f"Sync {value['sync_id']} goes on."))
    return 0


@sync.command
def plan(
    sync_id: Annotated[str, Parameter(help="Only this one; default: all.")] = "", *, common: Common = DEFAULT
) -> int:
    """Ask the peers what is missing, and say what bringing it over will take. Nothing is sent.

    Exit codes: 0, 66 no such sync, 69 a peer or the node is not reachable, 77 the peer does not let us ask.
    """
    client = connect(common)
    known = [one["sync_id"] for one in client.get("/v1/syncs") if sync_id in ("", one["sync_id"])]
    if not known:
        raise NotFound("There is no such sync.", hint="`replicator sync list` shows them, `sync add` makes one.")
    value = [{"sync_id": one, "plans": client.get(f"/v1/syncs/{in_url(one)}/plan")} for one in known]

    def human() -> None:
        for one in value:
            if not one["plans"]:
                print(f"{one['sync_id']}: nothing is missing.")
            for plan in one["plans"]:
                print(f"{one['sync_id']}: {plan['volume']} {plan['snapshot'][:12]}: {plan['sentence']}")

    common.output().result(value, human)
    return 0


@sync.command
def queue(*, common: Common = DEFAULT) -> int:
    """What is still to be brought over, in the order in which it will be. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/sync-queue")
    rows = [
        (one["peer"], one["priority"], one["sync_id"], one["snapshot"][:12], one["volume"], age(one["age_s"]),
         format_size(one["size_bytes"]), one["state"], "not pruned before" if one["do_not_expire"] else "")
        for one in value
    ]  # fmt: skip
    head = ("PEER", "PRIORITY", "SYNC", "SNAPSHOT", "VOLUME", "TAKEN", "SIZE", "STATE", "")
    common.output().result(value, lambda: table(rows, head))
    return 0


@sync.command
def history(
    sync_id: Annotated[str, Parameter(help="Only this one; default: all.")] = "",
    *,
    limit: Annotated[int, Parameter(help="How many runs.")] = 20,
    common: Common = DEFAULT,
) -> int:
    """Runs, newest first: what was planned and what it took. Exit codes: 0, 66 no such sync, 69 the node is down."""
    value = connect(common).get("/v1/sync-history", sync=sync_id, limit=limit)

    def human() -> None:
        rows = []
        for job in value:
            result, error = job["result"] or {}, job["error"] or {}
            for sent in result.get("sent", []) or [None]:
                rows.append(_history_row(job, result, sent, error))
        table(rows, ("STATE", "PEER", "SNAPSHOT", "VOLUME", "PLANNED", "SENT", "PLANNED TIME", "TOOK", ""))

    common.output().result(value, human)
    return 0


def _history_row(
    job: dict[str, Any], result: dict[str, Any], sent: dict[str, Any] | None, error: dict[str, Any]
) -> tuple[object, ...]:
    if sent is None:
        return (
            job["state"],
            job["peer"] or result.get("peer", "-"),
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            error.get("message", ""),
        )
    planned = sent.get("planned") or {}
    # What went ahead is in both columns: it was sent before there could be a plan.
    ahead = sent["ahead_bytes"]
    return (
        job["state"], result["peer"], sent["snapshot"][:12], sent["volume"],
        format_size(planned["bytes"] + ahead) if planned else "-", format_size(sent["block_bytes"] + ahead),
        "-" if planned.get("took_s") is None else format_span(planned["took_s"]), format_span(sent["took_s"]), "",
    )  # fmt: skip


@sync.command
def send(
    snapshot: Annotated[str, Parameter(help="The beginning of its id, or a volume's name for its newest.")],
    *,
    to: Annotated[str, Parameter(help="The peer.")],
    common: Common = DEFAULT,
) -> int:
    """Bring one snapshot to a peer, once. It is also the way home for a site that has lost everything.

    Exit codes: 0 the peer has signed for it, 66 no such snapshot or peer, 69 not reachable, 77 refused.
    """
    output = common.output()
    value = run_job(common, output, "sync", {"send": snapshot, "peer": to})
    output.result(value, lambda: _print_runs([value]))
    return 0


@sync.command
def fetch(
    volume: Annotated[str, Parameter(help="What it is called there, or the beginning of its id; default: any.")] = "",
    *,
    from_: Annotated[str, Parameter(name=["--from"], help="The peer.")],
    snapshot: Annotated[str, Parameter(help="The beginning of a snapshot's id; default: the newest.")] = "",
    common: Common = DEFAULT,
) -> int:
    """Fetch one snapshot from a peer, once: for a sync back, the other site needs to do nothing.

    Exit codes: 0 it is here, 66 the peer lets us read no such snapshot, 69 not reachable, 77 refused.
    """
    output = common.output()
    value = run_job(common, output, "sync", {"fetch": volume, "peer": from_, "snapshot": snapshot})
    output.result(value, lambda: _print_runs([value]))
    return 0


@sync.command(name="list")
def list_syncs(*, common: Common = DEFAULT) -> int:
    """List the syncs and how they stand. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/syncs")
    rows = [
        (one["sync_id"], one["volume"], "to" if one["direction"] == "push" else "from", one["peer"], one["state"],
         one["pending_snapshots"], format_span(one["lag_s"]), age(one["last_success_s"]), _when(one),
         one["last_error"])
        for one in value
    ]  # fmt: skip
    head = ("SYNC", "VOLUME", "", "PEER", "STATE", "PENDING", "LAG", "LAST SUCCESS", "WHEN", "")
    common.output().result(value, lambda: table(rows, head))
    return 0


@incoming.command(name="list")
def list_incoming(*, common: Common = DEFAULT) -> int:
    """Volumes that come from other sites, and what is kept of them. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/incoming")
    rows = [
        (one["volume"], one["from"], one["snapshots"], age(one["last_received_s"]), one["keep"] or "all",
         f"{one['quota']}/h" if one["quota"] else "none", one["decided_by"] or "-", one["asked_keep"] or "-",
         "passive" if one["passive"] else "")
        for one in value
    ]  # fmt: skip
    head = ("VOLUME", "FROM", "SNAPSHOTS", "LAST RECEIVED", "KEEP", "QUOTA", "DECIDED BY", "ASKED FOR", "")
    common.output().result(value, lambda: table(rows, head))
    return 0


@incoming.command(name="set")
def set_incoming(
    volume: Annotated[str, Parameter(help="Its name here, or the beginning of its id.")],
    *,
    keep: Annotated[str | None, Parameter(help="Which copies to keep: 30d,12m; empty for all.")] = None,
    prefix: Annotated[str | None, Parameter(help="Put this before its name here.")] = None,
    passive: Annotated[bool | None, Parameter(help="Do not offer the copies onward.")] = None,
    quota: Annotated[
        int | None, Parameter(help="Copies within an hour before it is a flood, of which two count; 0: no limit.")
    ] = None,
    common: Common = DEFAULT,
) -> int:
    """Decide what this site keeps of a volume from elsewhere, whatever its sender asks for.

    Buckets go by when this site received a copy. The newest and the first are always kept, and the last of each of
    three days. Of an hour in which more came than the quota, only the first and the last count.
    Exit codes: 0, 64 not a keep rule or quota, 66 no such volume, 69 the node is down.
    """
    body = {"volume": volume, "keep": keep, "prefix": prefix, "passive": passive, "quota": quota}
    value = connect(common).post("/v1/incoming", body)
    common.output().result(value, lambda: print(f"{value['volume']}: keeping {value['keep'] or 'all'}."))
    return 0
