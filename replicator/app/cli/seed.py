"""`seed export`, `seed import`: the first copy by a disk that travels."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, run_job_anywhere
from replicator.core.errors import EXIT_OK
from replicator.core.units import counted, format_size

seed = App(name="seed", help="The first copy by a disk that travels; the wire then brings only what changed since.")


def register(app: App) -> None:
    app.command(seed)


@seed.command(name="export")
def export(
    path: Annotated[Path, Parameter(help="A folder on the disk that travels.")],
    *,
    names: Annotated[tuple[str, ...], Parameter(name="--volume", help="Only these volumes; default: all.")] = (),
    common: Common = DEFAULT,
) -> int:
    """Write the newest snapshot of each volume to a folder. Works on a node that is down.

    The blocks on the disk are compressed and not encrypted: send an encrypted disk.
    Exit codes: 0 written and flushed, 64 there is a seed already, 66 no snapshot, 74 the disk refused.
    """
    output = common.output()
    value = run_job_anywhere(common, output, "seed-export", {"path": str(path.absolute()), "names": list(names)})
    size = format_size(value["sealed_bytes"])
    output.result(value, lambda: print(f"{_what(value)}, {size}."))
    return EXIT_OK


@seed.command(name="import")
def take_in(
    path: Annotated[Path, Parameter(help="The folder that `seed export` has written.")], *, common: Common = DEFAULT
) -> int:
    """Take in a seed: every block is proven, and a snapshot is entered only if it is whole. May be repeated.

    Exit codes: 0 all its snapshots are here, 1 or 66 the seed is damaged or none.
    """
    output = common.output()
    value = run_job_anywhere(common, output, "seed-import", {"path": str(path.absolute())})
    size, new = format_size(value["sealed_bytes"]), value["blocks_new"]
    output.result(value, lambda: print(f"{_what(value)} ({size}), {new:,} new."))
    return EXIT_OK


def _what(value: dict[str, Any]) -> str:
    return f"{counted(len(value['snapshots']), 'snapshot')}, {counted(value['blocks'], 'block')}"
