"""`restore`: getting data back."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, absolute, run_job_anywhere
from replicator.core.errors import EXIT_FINDINGS, EXIT_OK
from replicator.core.paths import shown, spell_path
from replicator.core.units import format_size, format_span


def register(app: App) -> None:
    app.command(restore)


def restore(
    snapshot: Annotated[str, Parameter(help="The beginning of its id, or a volume's name for its newest.")],
    target: Annotated[str, Parameter(help="Where to: a folder for a tree, a file or device for an image.")],
    *,
    only: Annotated[str, Parameter(help="Just this file or folder inside the snapshot.")] = "",
    overwrite: Annotated[bool, Parameter(negative="", help="Replace what is there and differs.")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say what would be created or changed.")] = False,
    common: Common = DEFAULT,
) -> int:
    """Restore a snapshot, or one file or folder of it. Broken blocks are mended from peers on the way.

    Works on a node that is down, without mending. Running it again after it was cut carries on.
    Exit codes: 0 restored, 1 restored but for some paths, 65 a block is nowhere to be had, 66 no such snapshot,
    path or target, 73 no room at the target.
    """
    output = common.output()
    args = {
        "snapshot": snapshot,
        "target": spell_path(absolute(target)),
        "only": spell_path(only),
        "overwrite": overwrite,
        "dry_run": dry_run,
    }
    value: dict[str, Any] = run_job_anywhere(common, output, "restore", args)

    def human() -> None:
        if dry_run:
            for path in value["create"]:
                print(f"create  {shown(path)}")
            for path in value["change"]:
                print(f"change  {shown(path)}")
            print(
                f"{value['create_count']} to create, {value['change_count']} to change, {value['same_count']} the same."
            )
            return
        print(
            f"Restored {value['entries']:,} entries, {format_size(value['bytes_written'])}, to {shown(target)} in "
            f"{format_span(value['took_s'])}."
        )
        for problem in value["problems"]:
            print(shown(f"  {problem['path'] or '.'}: {problem['reason']}"))

    output.result(value, human)
    return EXIT_FINDINGS if value.get("problems_count") else EXIT_OK
