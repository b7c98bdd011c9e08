"""`throttle`: bandwidth rules of the running node."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect
from replicator.app.cli.output import table
from replicator.core.units import format_size, format_span, parse_span


def register(app: App) -> None:
    app.command(throttle)


def throttle(
    *,
    rate_out: Annotated[
        str | None,
        Parameter(name=["--out"], help="To peers: 20MB/s, 100Mbit/s, none, or `20MB/s; mon-fri 08:00-18:00 2MB/s`."),
    ] = None,
    rate_in: Annotated[str | None, Parameter(name=["--in"], help="From peers, written the same way.")] = None,
    peer: Annotated[str, Parameter(help="Only for traffic with this peer; the node's rule binds it as well.")] = "",
    zone: Annotated[str, Parameter(help="The time zone of the hours, like Europe/Berlin.")] = "UTC",
    burst: Annotated[str, Parameter(help="How much may pass at once after a pause, as a time of the rate.")] = "",
    reset: Annotated[
        bool, Parameter(negative="", help="Forget what was set here; config.toml counts again for the node.")
    ] = False,
    common: Common = DEFAULT,
) -> int:
    """Change the bandwidth rules of the running node; links stay up. Without options, show them.

    A rule that is set here is kept over restarts and outranks config.toml until --reset. A single sync has its own
    with `sync add --rate`. Repairs have `repair_rate` in config.toml instead.
    Exit codes: 0, 64 not a rule, 66 no such peer, 69 down.
    """
    from replicator.core.throttle import BURST_S, parse_rule

    burst_s = parse_span(burst) if burst else BURST_S
    for rule in (rate_out, rate_in):
        if rule is not None:
            parse_rule(rule, zone=zone, burst_s=burst_s)
    client = connect(common)
    body = {"out": rate_out, "in": rate_in, "peer": peer, "zone": zone, "reset": reset, "burst_s": burst_s}
    is_question = rate_out is None and rate_in is None and not reset
    value = client.get("/v1/throttle") if is_question else client.post("/v1/throttle", body)
    common.output().result(value, lambda: _print(value))
    return 0


def _print(value: dict[str, Any]) -> None:
    for way in ("out", "in"):
        rate = value[f"{way}_bytes_per_s"]
        print(f"{way}: {format_size(rate) + '/s' if rate else 'no limit'}")
    rows = [
        (
            one["scope"],
            one["way"],
            one["rule"],
            one["zone"],
            format_size(one["now_bytes_per_s"]) + "/s" if one["now_bytes_per_s"] else "no limit",
            "-" if one["changes_in_s"] is None else f"in {format_span(one['changes_in_s'])}",
        )
        for one in value["rules"]
    ]
    if rows:
        print()
        table(rows, ("FOR", "WAY", "RULE", "ZONE", "NOW", "CHANGES"))
    for peer, rate in value["shares_in"].items():
        print(f"{peer} may send {format_size(rate)}/s just now" if rate else f"{peer} sends")
