"""`sync`: which volumes go to which peers."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect, in_url, run_job
from replicator.app.cli.output import age, table
from replicator.core.errors import NotFound
from replicator.core.paths import shown
from replicator.core.units import format_size, format_span

sync = App(name="sync", help="Standing site syncs: each new snapshot goes to a peer.")


def register(app: App) -> None:
    app.command(sync)


@sync.command
def add(
    *,
    to: Annotated[str, Parameter(help="The peer.")],
    volume: Annotated[
        str, Parameter(help="Only this volume; default: everything here, also what comes from others.")
    ] = "",
    common: Common = DEFAULT,
) -> int:
    """Send every snapshot, present and future, to a peer. Adding the same twice changes nothing.

    Exit codes: 0 added, 66 no such peer or volume, 69 the node is down.
    """
    value = connect(common).post("/v1/syncs", {"to": to, "volume": volume})
    common.output().result(
        value, lambda: print(shown(f"Sync {value['sync_id']}: {value['volume']} to {value['peer']}."))
    )
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
            print(shown(f"{one['peer']} has everything already."))
        for sent in one["sent"]:
            print(
                f"{shown(sent['volume'])} {sent['snapshot'][:12]} to {shown(one['peer'])}: {sent['blocks']:,} blocks, "
                f"{format_size(sent['block_bytes'])} in {format_span(sent['took_s'])} "
                f"({format_size(sent['rate_bytes'])}/s), {sent['blocks_twice']} sent twice; "
                f"the difference took {format_size(sent['summary_bytes'])} and {sent['round_trips']} round trips"
            )


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


@sync.command(name="list")
def list_syncs(*, common: Common = DEFAULT) -> int:
    """List the syncs and how they stand. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/syncs")
    rows = [
        (one["sync_id"], one["volume"], one["peer"], one["state"], one["pending_snapshots"], format_span(one["lag_s"]),
         age(one["last_success_s"]), one["last_error"])
        for one in value
    ]  # fmt: skip
    head = ("SYNC", "VOLUME", "TO", "STATE", "PENDING", "LAG", "LAST SUCCESS", "")
    common.output().result(value, lambda: table(rows, head))
    return 0
