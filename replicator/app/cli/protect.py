"""`protect` and `snapshot`: what is kept, and when."""

import os
from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, absolute, connect, in_url, run_job
from replicator.app.cli.output import age, table
from replicator.core.errors import EXIT_FINDINGS, EXIT_OK
from replicator.core.paths import shown, spell_path
from replicator.core.units import format_size, format_span, parse_span

snapshot = App(name="snapshot", help="Take, list, look into and delete snapshots.")


def register(app: App) -> None:
    app.command(protect)
    app.command(unprotect)
    app.command(snapshot)


def protect(
    path: Annotated[str, Parameter(help="A folder, a disk image or a block device on the node's machine.")],
    *,
    every: Annotated[str, Parameter(help="A snapshot this often: 30s, 15m, 1h, 1d.")] = "",
    keep: Annotated[str, Parameter(help="Which to keep: 24h,7d,4w,12m or a number; nothing keeps all.")] = "",
    to: Annotated[list[str] | None, Parameter(help="Peers that get each snapshot.")] = None,
    name: Annotated[str, Parameter(help="What to call it; default: the last part of the path.")] = "",
    kind: Annotated[str, Parameter(help="tree or image; default: what the path is.")] = "",
    exclude: Annotated[list[str] | None, Parameter(help="Patterns of paths to leave out.")] = None,
    tenant: Annotated[
        str | None, Parameter(help="Whose data it is: a label that syncs can go by; empty takes it away.")
    ] = None,
    common: Common = DEFAULT,
) -> int:
    """Protect a path: snapshots on a schedule, kept by a rule, sent to peers.

    Saying it again for the same path changes the promise. Exit codes: 0 done, 64 not a span or rule,
    66 no such path or peer, 69 the node is down.
    """
    body = {
        "path": spell_path(absolute(path)),
        "name": name,
        "kind": kind,
        "every_s": parse_span(every) if every else 0.0,
        "keep": keep,
        "to": list(to or []),
        "exclude": list(exclude or []),
        "tenant": tenant,
    }
    value = connect(common).post("/v1/protect", body)

    def human() -> None:
        often = f"every {format_span(value['every_s'])}, keeping {value['keep'] or 'all'}"
        promise = often if value["every_s"] else "when you say `replicator snapshot create`"
        print(shown(f"{value['volume']} ({value['kind']}) is protected: {promise}."))

    common.output().result(value, human)
    return 0


def unprotect(
    volume: Annotated[str, Parameter(help="Its name, path, or the beginning of its id.")], *, common: Common = DEFAULT
) -> int:
    """End a volume's schedule and syncs. Its snapshots stay, here and on the peers, until they are deleted.

    Exit codes: 0 done, 66 no such volume, 69 the node is down.
    """
    found = connect(common).get("/v1/volumes")
    by_path = [one["volume_id"] for one in found if one["path"] == os.path.abspath(volume)]
    value = connect(common).delete(f"/v1/protect/{in_url(by_path[0] if by_path else volume)}")
    common.output().result(
        value, lambda: print(shown(f"{value['volume']} has no schedule any more; its snapshots stay."))
    )
    return 0


@snapshot.command
def create(
    volumes: Annotated[
        list[str] | None, Parameter(help="Names or paths; default: everything that is protected here.")
    ] = None,
    *,
    tag: Annotated[list[str] | None, Parameter(help="Labels for the snapshot.")] = None,
    common: Common = DEFAULT,
) -> int:
    """Take a snapshot now; several volumes become one system snapshot.

    Exit codes: 0 taken, 1 taken but some paths could not be read, 66 no such volume or source, 73 the store is
    full, 69 the node is down.
    """
    output = common.output()
    value = run_job(common, output, "snapshot", {"names": list(volumes or []), "tags": list(tag or [])})

    def human() -> None:
        for one in value["snapshots"]:
            print(
                f"{one['snapshot'][:12]}  {shown(one['volume'])}: {format_size(one['size_bytes'])} in "
                f"{one['entries']:,} "
                f"{'paths' if one['kind'] == 'tree' else 'blocks'}, {one['blocks_new']:,} new blocks "
                f"({format_size(one['bytes_new'])})"
            )
            for skipped in one["skipped"]:
                print(shown(f"    skipped {skipped['path']}: {skipped['reason']}"))
            for path in one["changed_while_read"]:
                print(shown(f"    changed while it was read: {path}"))

    output.result(value, human)
    return EXIT_FINDINGS if any(one["skipped_count"] for one in value["snapshots"]) else EXIT_OK


@snapshot.command(name="list")
def list_snapshots(
    volume: Annotated[str, Parameter(help="Only of this volume.")] = "", *, common: Common = DEFAULT
) -> int:
    """List the snapshots that are here, oldest first. Exit codes: 0, 66 no such volume, 69 the node is down."""
    value = connect(common).get("/v1/snapshots", volume=volume)
    rows = [
        (
            one["snapshot"][:12], one["volume"], one["sequence"], age(one["age_s"]), format_size(one["size_bytes"]),
            f"{one['entries']:,}", ", ".join(one["held_by"]) or "-", ", ".join(one["tags"]), one["kept_because"],
        )
        for one in value
    ]  # fmt: skip
    head = ("SNAPSHOT", "VOLUME", "SEQ", "TAKEN", "SIZE", "ENTRIES", "HELD ALSO BY", "TAGS", "KEPT BECAUSE")
    common.output().result(value, lambda: table(rows, head))
    return 0


@snapshot.command
def show(
    snapshot: Annotated[str, Parameter(help="The beginning of its id, or a volume's name for its newest.")],
    path: Annotated[str, Parameter(help="List this folder inside the snapshot.")] = "",
    *,
    cost: Annotated[bool, Parameter(negative="", help="Also what deleting it would free (slow).")] = False,
    common: Common = DEFAULT,
) -> int:
    """Show one snapshot, and for a tree what is in one of its folders.

    Exit codes: 0, 66 no such snapshot or path, 69 the node is down.
    """
    client = connect(common)
    value: dict[str, Any] = client.get(f"/v1/snapshots/{in_url(snapshot)}")
    if value["kind"] == "tree":
        value["listing"] = client.get(f"/v1/snapshots/{in_url(snapshot)}/entries", path=spell_path(path))
    if cost:
        value["foretold"] = run_job(common, common.output(), "foretell", {"names": [value["snapshot"]]})

    def human() -> None:
        for key in ("snapshot", "volume", "kind", "origin", "sequence", "root", "consistency", "system_id", "held"):
            print(f"{key:12} {shown(str(value[key]))}")
        print(f"{'taken':12} {age(value['age_s'])}")
        print(
            f"{'size':12} {format_size(value['size_bytes'])} in {value['entries']:,} entries, "
            f"{value['skipped']} skipped"
        )
        print(f"{'held by':12} {shown(', '.join(value['held_by']) or 'this site only')}")
        if cost:
            freed = value["foretold"]
            size = format_size(freed["bytes_freed"])
            print(f"{'cost':12} {size} in {freed['blocks_freed']:,} blocks that nothing else needs")
        for entry in value.get("listing", []):
            print(f"  {entry['mode']}  {entry['size']:>12,}  {shown(entry['name'])}")

    common.output().result(value, human)
    return 0


@snapshot.command
def delete(
    snapshots: Annotated[list[str], Parameter(help="The beginnings of their ids.")],
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say how much that would free.")] = False,
    common: Common = DEFAULT,
) -> int:
    """Forget snapshots on this site only. `replicator gc` frees what nothing else needs.

    With --dry-run, say exactly what only they need: what a collection frees once all of them are gone.
    Exit codes: 0 deleted, 66 no such snapshot, 77 it is held, 69 the node is down.
    """
    output = common.output()
    if dry_run:
        value = run_job(common, output, "foretell", {"names": snapshots})
        output.result(value, lambda: _print_foretold(value))
        return 0
    client = connect(common)
    found = [client.get(f"/v1/snapshots/{in_url(one)}") for one in snapshots]  # All of them, before any goes.
    gone = [client.delete(f"/v1/snapshots/{one['snapshot']}") for one in found]

    def human() -> None:
        for one in gone:
            print(shown(f"Deleted {one['deleted'][:12]} of {one['volume']}, here."))

    output.result(gone[0] if len(gone) == 1 else {"deleted": gone}, human)
    return 0


def _print_foretold(value: dict[str, Any]) -> None:
    for one in value["each"]:
        size = format_size(one["bytes_freed"])
        print(f"{one['snapshot'][:12]}: only it needs {one['blocks_freed']:,} blocks ({size}).")
    size = format_size(value["bytes_freed"])
    print(f"Deleting all of these would free {value['blocks_freed']:,} blocks ({size}).")


@snapshot.command
def hold(
    snapshot: Annotated[str, Parameter(help="The beginning of its id.")],
    reason: Annotated[str, Parameter(help="Why; shown to whoever wants to delete it.")],
    *,
    common: Common = DEFAULT,
) -> int:
    """Keep a snapshot, whatever the keep rule says. Exit codes: 0, 66 no such snapshot, 69 the node is down."""
    value = connect(common).post(f"/v1/snapshots/{in_url(snapshot)}/hold", {"reason": reason})
    common.output().result(value, lambda: print(shown(f"{value['snapshot'][:12]} is held: {reason}.")))
    return 0


@snapshot.command
def release(snapshot: Annotated[str, Parameter(help="The beginning of its id.")], *, common: Common = DEFAULT) -> int:
    """Let go of a held snapshot. Exit codes: 0, 66 no such snapshot, 69 the node is down."""
    value = connect(common).post(f"/v1/snapshots/{in_url(snapshot)}/hold", {"reason": ""})
    common.output().result(value, lambda: print(f"{value['snapshot'][:12]} is no longer held."))
    return 0
