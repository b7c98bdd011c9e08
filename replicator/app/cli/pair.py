"""`pair`: becoming, listing and leaving peers."""

from typing import Annotated

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect, in_url
from replicator.app.cli.output import age, table
from replicator.core.paths import shown

pair = App(name="pair", help="Become peers with another site by a one-time code.")


def register(app: App) -> None:
    app.command(pair)


@pair.command
def invite(
    *,
    minutes: Annotated[float, Parameter(help="How long the code works, up to 10.")] = 10.0,
    common: Common = DEFAULT,
) -> int:
    """Print a code that lets one other site join. It works once, and dies after five wrong tries.

    Exit codes: 0 printed, 69 the node is down.
    """
    value = connect(common).post("/v1/pair/invite", {"minutes": minutes})

    def human() -> None:
        print(value["code"])

    common.output().result(value, human)
    return 0


@pair.command
def join(
    code: Annotated[str, Parameter(help="What `pair invite` printed on the other site.")], *, common: Common = DEFAULT
) -> int:
    """Join the site that printed the code. Both sites pin each other's key.

    Exit codes: 0 joined, 64 the code is mistyped, 69 the site is not reachable, 77 the code was refused.
    """
    value = connect(common).post("/v1/pair/join", {"code": code})
    common.output().result(value, lambda: print(shown(f"{value['peer']} ({value['site_id'][:12]}) is a peer now.")))
    return 0


@pair.command(name="list")
def list_peers(*, common: Common = DEFAULT) -> int:
    """List the peers and their links. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/peers")
    rows = [
        (
            one["name"],
            one["site_id"][:12],
            "linked" if one["linked"] else "no link",
            age(one["last_seen_s"]),
            ", ".join(one["addresses"]),
        )
        for one in value
    ]
    common.output().result(value, lambda: table(rows, ("SITE", "ID", "LINK", "SEEN", "ADDRESSES")))
    return 0


@pair.command
def revoke(
    peer: Annotated[str, Parameter(help="Its name, or the beginning of its id.")], *, common: Common = DEFAULT
) -> int:
    """Trust a peer no more and cut its links at once. What it holds stays with it.

    Exit codes: 0 revoked, 66 no such peer, 69 the node is down.
    """
    value = connect(common).delete(f"/v1/peers/{in_url(peer)}")
    common.output().result(value, lambda: print(shown(f"{value['revoked']} is no longer a peer.")))
    return 0
