"""`gc`: letting go of what nothing needs, and the switch that stops it."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect, run_job
from replicator.core.errors import EXIT_FINDINGS, EXIT_OK, NodeDown, UsageError
from replicator.core.units import counted, format_size, parse_span


def register(app: App) -> None:
    app.command(gc)


def gc(
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say what would go.")] = False,
    grace: Annotated[str, Parameter(help="Free what was unneeded for so long; default: gc_grace.")] = "",
    undo: Annotated[bool, Parameter(negative="", help="Bring back what has not been freed yet.")] = False,
    yes: Annotated[bool, Parameter(negative="", help="Also if it is more than a fifth of the store.")] = False,
    give_up: Annotated[bool, Parameter(negative="", help="Let go of snapshots whose record is lost.")] = False,
    off: Annotated[str | None, Parameter(help="Delete nothing from now on, and why; a run that goes on stops.")] = None,
    on: Annotated[bool, Parameter(negative="", help="Let deletion go on again.")] = False,
    common: Common = DEFAULT,
) -> int:
    """Free the blocks that no snapshot needs: first they are condemned, after the grace they go.

    Exit codes: 0 done, 1 held, because it is more than a fifth of the store (say --yes if it is meant),
    64 options that do not go together, 65 a block or a snapshot's record could not be read, so nothing was judged,
    69 the node is down, 77 deletion is switched off.
    """
    if sum((dry_run, undo, off is not None, on)) > 1:
        raise UsageError("--dry-run, --undo, --off and --on are four different things.", hint="Say one of them.")
    output = common.output()
    if off is not None or on:
        value = _switch(common, off)
        said = f"Deletion is off: {value['deletion_off']}." if value["deletion_off"] else "Deletion is on."
        output.result(value, lambda: print(said))
        return EXIT_OK
    grace_s = None if not grace else 0.0 if grace == "0" else parse_span(grace)
    args = {"dry_run": dry_run, "undo": undo, "grace_s": grace_s, "confirmed": yes, "give_up": give_up}
    value = run_job(common, output, "gc", args)
    output.result(value, lambda: _print_done(value))
    return EXIT_FINDINGS if value.get("held") and not dry_run else EXIT_OK


def _print_done(value: dict[str, Any]) -> None:
    if "undone" in value:
        print(f"{counted(value['undone'], 'block')} will stay.")
        return
    would = "would be " if value["dry_run"] else ""
    print(
        f"{counted(value['blocks_condemned'], 'block')} {would}condemned ({format_size(value['bytes_condemned'])}, "
        f"{value['share_condemned']:.1%} of the store)."
    )
    print(f"{counted(value['blocks_swept'], 'block')} {would}freed ({format_size(value['bytes_swept'])}).")
    files = counted(value["segments_removed"], "segment file")
    print(f"{files} {would}removed ({format_size(value['bytes_freed'])} of disk).")
    if value["writers_waited_for"]:
        print(f"{value['writers_waited_for']} writers and readers are at work: what they may need stays.")
    if value["stopped"]:
        print(f"Stopped before the end: {value['stopped']}. The next run goes on.")
    if value["held"]:
        print(f"HELD: {value['held']}.")
        print("  Next: look at `replicator gc --dry-run`; if it is meant, `replicator gc --yes`.")


def _switch(common: Common, off: str | None) -> dict[str, Any]:
    body = {"is_off": off is not None, "reason": off or ""}
    try:
        value: dict[str, Any] = connect(common).post("/v1/deletion", body)
        return value
    except NodeDown:
        from replicator.app.node import open_node
        from replicator.jobs.collection import switch_deletion

        with open_node(common.folder.root) as parts:
            return switch_deletion(parts, is_off=off is not None, reason=off or "")
