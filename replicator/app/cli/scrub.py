"""`scrub`: reading everything again, and how the promise to do so stands."""

from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.care import print_damage
from replicator.app.cli.common import DEFAULT, Common, connect, run_job_anywhere
from replicator.app.cli.output import age, table
from replicator.core.errors import EXIT_FINDINGS, EXIT_OK, NodeDown
from replicator.core.units import counted, format_size, format_span


def register(app: App) -> None:
    app.command(scrub)


def scrub(
    *,
    resume: Annotated[bool, Parameter(negative="", help="Go on where the last scrub stopped.")] = False,
    deep: Annotated[bool, Parameter(negative="", help="Open every block, whatever its sum says.")] = False,
    status: Annotated[bool, Parameter(negative="", help="Read nothing; say how the promise stands.")] = False,
    common: Common = DEFAULT,
) -> int:
    """Read everything again and prove it: blocks, manifests, catalogue, index. Mend what can be mended.

    Every byte is hashed. Stretches that still have the sum that was taken when they were written or last proven are not
    opened block by block, except with --deep and in every fourth pass.

    Works on a node that is down, without help from peers. Exit codes: 0 all is sound or was mended, 1 something is
    broken that nobody could mend (with --status: or the promise cannot be kept), 75 the store is in use.
    """
    output = common.output()
    if status:
        page = _page(common)
        output.result(page, lambda: _print_page(page))
        return EXIT_FINDINGS if page["is_late"] or page["findings_unmended"] else EXIT_OK
    value = run_job_anywhere(common, output, "scrub", {"from_start": not resume, "is_deep": deep})

    def human() -> None:
        soft = f", {value['soft_errors']} soft errors" if value["soft_errors"] else ""
        size = format_size(value["sealed_bytes"])
        print(f"{counted(value['blocks'], 'block')} read ({size}), {value['damaged']} damaged{soft}.")
        print_damage(value)
        _print_findings([one for one in value["verdicts"] if one["what"] in ("index", "catalogue", "record")])

    output.result(value, human)
    return EXIT_FINDINGS if value["unhealed"] or value["metadata_unmended"] else EXIT_OK


def _print_findings(findings: list[dict[str, Any]]) -> None:
    for one in findings[-20:]:
        print(f"  {one['what']} {one['subject'][:16]}: {one['cause']} ({one['place']}) -> {one['done']}")
        for touched in one["touches"][:5]:
            print(f"    touches {touched['volume']} {touched['snapshot']}: {touched['where']}")


def _page(common: Common) -> dict[str, Any]:
    try:
        page: dict[str, Any] = connect(common).get("/v1/scrub")
        return page
    except NodeDown:
        from replicator.app.node import open_node
        from replicator.monitor.scrub import scrub_page

        with open_node(common.folder.root) as parts:
            return scrub_page(parts, with_segments=True)


def _print_page(page: dict[str, Any]) -> None:
    print(
        f"Everything is read again every {format_span(page['every_s'])}, at {format_size(page['rate_bytes_max'])}/s at "
        f"most. {page['share_verified']:.1%} of the bytes were read within that span."
    )
    oldest = "nothing was read again yet" if page["oldest_verified_s"] is None else age(page["oldest_verified_s"])
    print(f"Oldest proof: {oldest}. Segments never read again: {page['segments_never_read']}.")
    if page["complete_at_ns"] is not None:
        at = datetime.fromtimestamp(page["complete_at_ns"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
        late, left = ", LATE" if page["is_late"] else "", format_size(page["pass_left_bytes"])
        print(f"This pass ({page['stage']}, {left} left) will be complete at {at}{late}.")
    elif page["pass_ended_s"] is not None:
        print(f"The last pass was complete {age(page['pass_ended_s'])}.")
    print(f"Soft errors (wrong once, right when read again): {page['soft_errors']}.")
    _print_findings(page["findings"])
    rows = [(one["segment"], format_size(one["known_bytes"]), age(one["verified_s"])) for one in page["segments"]]
    table(rows, ("SEGMENT", "SIZE", "LAST PROVEN"))
