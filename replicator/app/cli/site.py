"""`site`: this site's own key."""

from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect
from replicator.core.units import format_span, parse_span

site = App(name="site", help="This site's own name and key.")


def register(app: App) -> None:
    app.command(site)


@site.command
def show(*, common: Common = DEFAULT) -> int:
    """Show this site's key, and the one that is to take its place. Exit codes: 0, 69 the node is down."""
    value = connect(common).get("/v1/site")
    common.output().result(value, lambda: _print(value))
    return 0


@site.command
def rotate_key(
    *,
    overlap: Annotated[str, Parameter(help="How long both keys count: 10s to 366d.")] = "7d",
    common: Common = DEFAULT,
) -> int:
    """Make a new key for this site, and tell the peers. Both keys count for the overlap, then the old one is dead.

    In the first half of the overlap the site still shows the old key, from then on the new one. A peer that could
    not be told in that time has to be paired anew. Exit codes: 0 begun, 64 not a span, or one is under way, 69 down.
    """
    value = connect(common).post("/v1/site/rotate-key", {"overlap_s": parse_span(overlap)})
    common.output().result(value, lambda: _print(value))
    return 0


def _print(value: dict[str, Any]) -> None:
    print(f"{value['name']}: {value['site_id']}")
    if value["next_site_id"] is None:
        return
    print(f"next: {value['next_site_id']}")
    print(f"shown in {_span(value['shown_in_s'])}, and the old one is dead in {_span(value['old_dead_in_s'])}")
    print(f"noted by: {', '.join(value['noted_by']) or 'nobody yet'}")
    if value["not_noted_by"]:
        print(f"not yet by: {', '.join(value['not_noted_by'])}")


def _span(seconds: float) -> str:
    return format_span(max(0.0, seconds))
