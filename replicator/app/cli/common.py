"""What commands share: where the node is, how to reach it, and how to run a job on it or without it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from replicator.app.cli.output import Output
from replicator.app.config import StateFolder, default_state
from replicator.core.errors import NodeDown, UsageError

_STATE: Final = (
    "The node's folder; default: $REPLICATOR_STATE, else /var/lib/replicator for root and ~/.local/state/replicator "
    "for others."
)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    state: Annotated[Path | None, Parameter(help=_STATE)] = None
    json: Annotated[bool, Parameter(negative="", help="Print one JSON value instead of text.")] = False

    @property
    def folder(self) -> StateFolder:
        return StateFolder((self.state or default_state()).expanduser().absolute())

    def output(self) -> Output:
        return Output(as_json=self.json)


DEFAULT = Common()


def connect(common: Common, *, patience_s: float = 0.0) -> Any:
    """A client of the running node. It is imported here because importing HTTP takes longer than most commands.

    Raises `NodeDown` where starting one would not help: there is none, or it is somebody else's.
    """
    from replicator.api.client import NodeClient

    folder = common.folder
    if os.path.exists(folder.root) and not os.access(folder.root, os.R_OK | os.W_OK | os.X_OK):
        raise NodeDown(
            f"This user may not speak to the node in {folder.root}.",
            hint="Be the user that runs it, or root; or give --state.",
        )
    if not os.path.exists(folder.config) and not os.path.exists(folder.socket):
        raise NodeDown(f"There is no node in {folder.root}.", hint="Make one with `replicator init`, or give --state.")
    return NodeClient(folder.socket, patience_s=patience_s)


def in_url(name: str) -> str:
    """What someone typed, as one segment of an URL. Raises `NotFound`."""
    from replicator.api.client import segment

    return segment(name)


def absolute(path: str) -> str:
    """What someone typed, from the root, for a node that runs elsewhere. Raises `UsageError` for nothing at all."""
    if not path:
        # An unset variable in a script: "here" is not what was meant.
        raise UsageError("A path is empty.", hint="Say `.` for the current folder.")
    return os.path.abspath(path)


def new_job_id() -> str:
    return os.urandom(8).hex()


def run_job(common: Common, output: Output, kind: str, args: dict[str, Any]) -> dict[str, Any]:
    """Run a job on the node and show its progress. A node that is restarted meanwhile is waited for."""
    client = connect(common)
    client.get("/health")
    patient = connect(common, patience_s=30.0)
    result: dict[str, Any] = patient.run_job(kind, args, job_id=new_job_id(), on_progress=output.job)
    return result


def run_job_anywhere(common: Common, output: Output, kind: str, args: dict[str, Any]) -> dict[str, Any]:
    """The same, but if the node is down, on its store directly: without peers, so nothing can be mended."""
    try:
        return run_job(common, output, kind, args)
    except NodeDown:
        return run_offline(common, output, kind, args)


def run_offline(common: Common, output: Output, kind: str, args: dict[str, Any]) -> dict[str, Any]:
    """A job on the store of a node that is down."""
    # Here and not above: a command that asks a running node needs none of what a node is made of.
    from replicator.app.cli.offline import run_on_store

    return run_on_store(common.folder.root, output, kind, args, job_id=new_job_id())
