"""`pair`: becoming, listing and leaving peers."""

from typing import Annotated

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect, in_url
from replicator.app.cli.output import age, link_word, table
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
            link_word(one),
            age(one["last_seen_s"]),
            ", ".join(one["addresses"]),
            ", ".join(one["may"]) or "nothing",
        )
        for one in value
    ]
    common.output().result(value, lambda: table(rows, ("SITE", "ID", "LINK", "SEEN", "ADDRESSES", "MAY")))
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


@pair.command
def policy(
    peer: Annotated[str, Parameter(help="Its name, or the beginning of its id.")],
    *,
    allow: Annotated[list[str] | None, Parameter(help="Rights to give: see `pair rights`.")] = None,
    deny: Annotated[list[str] | None, Parameter(help="Rights to take away.")] = None,
    read: Annotated[list[str] | None, Parameter(help="Volumes that it may read although no sync names them.")] = None,
    introduced: Annotated[
        list[str] | None, Parameter(help="What sites may do that it vouches for; `none` for nothing.")
    ] = None,
    common: Common = DEFAULT,
) -> int:
    """Say what a peer may ask of this site. Without options, show it.

    Exit codes: 0, 64 no such right, 66 no such peer or volume, 69 the node is down.
    """
    client, url = connect(common), f"/v1/peers/{in_url(peer)}/rights"
    passed_on = None if introduced is None else [one for one in introduced if one != "none"]
    body = {"allow": allow or [], "deny": deny or [], "volumes": read or [], "introduced": passed_on}
    value = client.post(url, body) if any((allow, deny, read)) or introduced is not None else client.get(url)

    def human() -> None:
        print(f"{value['peer']} may: {', '.join(value['may']) or 'nothing'}")
        if value["volumes"]:
            print(f"  and read {', '.join(one[:12] for one in value['volumes'])}")
        print(f"  sites that it vouches for may: {', '.join(value['introduced']) or 'nothing'}")
        if value["introduced_by"]:
            print(f"  it was introduced by {value['introduced_by']}")

    common.output().result(value, human)
    return 0


@pair.command
def rights(*, common: Common = DEFAULT) -> int:
    """Show which questions each peer may ask here, and what each right means. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/rights")

    def human() -> None:
        for word, meaning in value["rights"].items():
            print(f"{word:10} {meaning}")
        peers = value["peers"]
        questions = sorted({question for one in peers.values() for question in one})
        print()
        rows = [(q, *("yes" if peers[name][q] else "no" for name in peers)) for q in questions]
        table(rows, ("QUESTION", *peers))

    common.output().result(value, human)
    return 0


@pair.command
def introduce(
    one: Annotated[str, Parameter(help="A peer.")],
    other: Annotated[str, Parameter(help="Another peer.")],
    *,
    common: Common = DEFAULT,
) -> int:
    """Let two peers know each other. Each must have given this site the right to `introduce`.

    Exit codes: 0 both have noted it, 66 no such peer, 69 one of them is not reachable, 77 one of them refused.
    """
    value = connect(common).post("/v1/pair/introduce", {"one": one, "other": other})
    common.output().result(value, lambda: print(f"{' and '.join(value['introduced'])} know each other."))
    return 0
