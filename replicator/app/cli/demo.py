"""`demo`: the whole job in two minutes."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common


def register(app: App) -> None:
    app.command(demo)


def demo(
    path: Annotated[
        Path | None, Parameter(help="A folder to protect a copy of; default: files of this system.")
    ] = None,
    *,
    keep: Annotated[bool, Parameter(negative="", help="Leave the sites running and everything in place.")] = False,
    rate: Annotated[str, Parameter(help="Bandwidth cap of each site.")] = "25MB/s",
    seed: Annotated[int, Parameter(help="Which files are changed and what is ruined.")] = 1,
    work: Annotated[Path | None, Parameter(help="Where to work; default: a new folder under /tmp.")] = None,
    common: Common = DEFAULT,
) -> int:
    """Three sites on this machine: pair, protect, sync, change, ruin, heal, burn, restore, compare.

    Ends with a table of what was promised and what was measured. Exit codes: 0 every promise held, 1 one did not,
    66 no data to protect.
    """
    from replicator.app.demo.run import run_demo

    return run_demo(given=path, keep=keep, rate=rate, seed=seed, work=work, output=common.output())
