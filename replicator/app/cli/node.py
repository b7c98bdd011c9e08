"""`init`, `up`, `status`: a node's own life."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from replicator.app.cli.common import DEFAULT, Common, connect
from replicator.app.cli.output import age, describe_progress, link_word, table
from replicator.app.config import CONFIG_TEMPLATE, StateFolder, check_name, load_config, parse_config
from replicator.core.errors import ConfigError, NodeDown, StoreLocked
from replicator.core.files import sync_directory, write_durably
from replicator.core.paths import shown
from replicator.core.units import format_size, format_span

_READY_S = 20.0


def register(app: App) -> None:
    app.command(init)
    app.command(up)
    app.command(status)


def init(
    *,
    name: Annotated[str, Parameter(help="What this site is called; default: the host's name.")] = "",
    listen: Annotated[str, Parameter(help="Where other sites reach this one, host:port.")] = "0.0.0.0:7421",
    advertise: Annotated[list[str] | None, Parameter(help="Addresses that peers are told.")] = None,
    http: Annotated[str, Parameter(help='Status and metrics on this machine; "" for none.')] = "127.0.0.1:7422",
    rate_out: Annotated[str, Parameter(help="Bandwidth to peers, e.g. 20MB/s.")] = "none",
    rate_in: Annotated[str, Parameter(help="Bandwidth from peers.")] = "none",
    segment_size: Annotated[str, Parameter(help="Size of a segment file.")] = "64MiB",
    common: Common = DEFAULT,
) -> int:
    """Make a new node: its folder, its key and its configuration.

    Exit codes: 0 made, 78 it could not be made (a node that is there already is left alone).
    """
    folder, output = common.folder, common.output()
    if folder.config.exists():
        raise ConfigError(f"There is a node in {folder.root} already.", hint="Start it with `replicator up`.")
    name = name or socket.gethostname().partition(".")[0] or "site"
    check_name(name)
    told = list(advertise or ([] if not _is_any(listen) else _own_addresses(listen)))
    text = CONFIG_TEMPLATE.format(
        name=name,
        listen=_toml(listen),
        advertise=f"[{', '.join(map(_toml, told))}]",
        http=_toml(http),
        rate_out=_toml(rate_out),
        rate_in=_toml(rate_in),
        segment_size=_toml(segment_size),
    )
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"These options do not make a configuration: {error}.", hint="Look for odd characters."
        ) from None
    parse_config(raw, where="the new configuration")
    site_id = _write_node(folder, text)
    value = {"name": name, "site_id": site_id.hex(), "state": str(folder.root), "listen": listen, "advertise": told}

    def human() -> None:
        print(f"Made site {name} ({site_id.hex()[:12]}) in {folder.root}.")
        print("  Next: `replicator up --detach` starts it; `replicator pair invite` lets another site join.")

    output.result(value, human)
    return 0


def _toml(text: str) -> str:
    """As a TOML string; JSON's escapes are the same."""
    return json.dumps(text, ensure_ascii=False)


def _write_node(folder: StateFolder, config: str) -> bytes:
    from replicator.net.identity import Identity

    try:
        folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.root.chmod(0o700)
        identity = Identity.load(folder.identity) if folder.identity.exists() else Identity.generate()
        identity.save(folder.identity)
        # Last: a folder with a configuration is a whole node.
        write_durably(folder.config, config.encode())
        sync_directory(folder.root.parent)
    except OSError as error:
        raise ConfigError(f"{folder.root} cannot be made: {error.strerror}.", hint="Choose another --state.") from error
    return identity.site_id


def _is_any(listen: str) -> bool:
    return listen.startswith(("0.0.0.0:", "[::]:"))


def _own_addresses(listen: str) -> list[str]:
    """What to tell peers when we listen everywhere: the address that outgoing traffic would have. Sends nothing."""
    port = listen.rpartition(":")[2]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return [f"{probe.getsockname()[0]}:{port}"]
        except OSError:
            return [f"127.0.0.1:{port}"]


def up(
    *,
    detach: Annotated[bool, Parameter(negative="", help="Start it in the background and return.")] = False,
    name: Annotated[str, Parameter(help="For the first start: what this site is called.")] = "",
    common: Common = DEFAULT,
) -> int:
    """Run the node until Ctrl-C, SIGTERM, or for ever.

    The first time, where no --state was named and there is no node yet, it makes one as `init` does.
    Exit codes: 0 stopped when asked (or, with --detach, is up), 75 it is running already, 78 configuration or port.
    """
    folder, output = common.folder, common.output()
    # Only in the default place: a mistyped --state must not silently become a new, empty node.
    if common.state is None and not folder.config.exists():
        if folder.catalog.exists():
            # A node that has lost its settings is not a new one: it must not come up under another name and port.
            raise ConfigError(
                f"{folder.config} is gone, and {folder.root} is no new folder.",
                hint="Put a copy back, or write it anew with `replicator init`, which keeps the key and the data.",
            )
        with contextlib.redirect_stdout(sys.stderr):
            init(name=name, common=replace(common, json=False))
    if detach:
        return _start_in_background(folder, common)
    import trio

    from replicator.app.node import run_node
    from replicator.core.logging import configure

    config = load_config(folder.config)
    configure(level=config.log_level, as_json=True if common.json else None)

    def ready(address: str, http: str) -> None:
        value = {"site": config.name, "address": address, "http": http, "pid": os.getpid()}
        said = f"{config.name} is up: peers at {address}" + (f", status at http://{http}/v1/status" if http else "")
        output.result(value, lambda: print(said))
        sys.stdout.flush()

    trio.run(partial(run_node, folder.root, on_ready=ready), strict_exception_groups=True)
    return 0


def _start_in_background(folder: StateFolder, common: Common) -> int:
    from replicator.api.client import RemoteError

    load_config(folder.config)
    output = common.output()
    try:
        page = connect(common).get("/v1/status")
        raise StoreLocked(f"{page['site']} is running already.", hint="`replicator status` shows it.")
    except NodeDown:
        pass
    command = [sys.executable, "-m", "replicator.app.main", "up", "--state", str(folder.root)]
    with folder.log.open("ab") as log:
        start = log.tell()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        try:
            page = connect(common).get("/v1/status")
            value = {"site": page["site"], "pid": child.pid, "address": page["address"], "log": str(folder.log)}
            said = f"{page['site']} is up (process {child.pid}), peers at {page['address']}."
            output.result(value, partial(print, said))
            return 0
        except NodeDown:
            if child.poll() is not None:
                body = {"code": "node_stopped", "exit_code": child.returncode if child.returncode >= 64 else 70}
                words = f"The node stopped at once: {_last_words(folder.log, start)}"
                raise RemoteError({**body, "message": words, "hint": f"See {folder.log}."}) from None
            time.sleep(0.1)
    raise NodeDown(f"The node did not answer within {_READY_S:.0f} s.", hint=f"See {folder.log}.")


def _last_words(log: Path, start: int) -> str:
    text = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("Error: ") for line in text if line.startswith("Error: ")]
    return errors[-1] if errors else (text[-1] if text else "it said nothing.")


def status(
    *,
    live: Annotated[bool, Parameter(negative="", help="Show it again every second until Ctrl-C.")] = False,
    common: Common = DEFAULT,
) -> int:
    """Show sites, volumes, syncs, jobs, the store and alerts.

    Exit codes: 0 all is well, 1 there are alerts, 69 the node is down.
    """
    output = common.output()
    client = connect(common)
    while True:
        page = client.get("/v1/status")
        if live and not common.json:
            print("\x1b[2J\x1b[H", end="")
        output.result(page, partial(_print_status, page))
        if not live:
            return 1 if page["alerts"] else 0
        time.sleep(1)


def _print_status(page: dict[str, Any]) -> None:
    store = page["store"]
    print(f"{page['site']} ({page['site_id'][:12]}), up {format_span(page['up_s'])}, peers at {page['address']}")
    print(
        f"store: {store['blocks']:,} blocks, {format_size(store['sealed_bytes'])} for "
        f"{format_size(store['logical_bytes'])} of snapshots (ratio {store['dedup_ratio']:.2f}), "
        f"{store['broken_blocks']} broken, {store['condemned_blocks']} condemned"
    )
    scrub = page["scrub"]
    late = ", LATE" if scrub["is_late"] else ""
    print(
        f"scrub: {scrub['share_verified']:.0%} read again within {format_span(scrub['every_s'])}, {scrub['stage']}"
        f"{late}, {scrub['soft_errors']} soft errors"
    )
    if store["deletion_off"]:
        print(f"deletion is off: {store['deletion_off']}")
    rates = page["throttle"]
    told = [f"{way} {format_size(rate)}/s" for way in ("out", "in") if (rate := rates[f"{way}_bytes_per_s"])]
    if told:
        print(f"throttle: {', '.join(told)}")
    if page["peers"]:
        print()
        rows = [
            (
                peer["name"],
                link_word(peer),
                "-" if peer["round_trip_s"] is None else format_span(peer["round_trip_s"]),
                age(peer["last_seen_s"]) if not peer["linked"] else "now",
                peer["problem"],
            )
            for peer in page["peers"]
        ]
        table(rows, ("SITE", "LINK", "RTT", "SEEN", ""))
    if page["volumes"]:
        print()
        head = ("VOLUME", "KIND", "FROM", "SNAPSHOTS", "SIZE", "NEWEST", "LAST SUCCESS", "NEXT", "HELD ALSO BY", "")
        table([_volume_row(volume) for volume in page["volumes"]], head)
    if page["standing"]["peers"] and page["volumes"]:
        print()
        agreed = [(one["name"], one["origin"], _classes(one), one["sessions_needed"]) for one in page["volumes"]]
        table(agreed, ("VOLUME", "FROM", "WHO HOLDS THE SAME", "SESSIONS NEEDED"))
    if page["syncs"]:
        print()
        lines = [
            (s["sync_id"], s["volume"], s["peer"], s["state"], s["pending_snapshots"], format_span(s["lag_s"]),
             age(s["last_success_s"]), s["last_error"])
            for s in page["syncs"]
        ]  # fmt: skip
        table(lines, ("SYNC", "VOLUME", "TO", "STATE", "PENDING", "LAG", "LAST SUCCESS", ""))
    for job in page["jobs"]:
        progress = describe_progress(job["progress"]) if job["progress"] else job["state"]
        print("\n" + shown(f"job {job['job_id']} {job['kind']}: {progress}"))
    for alert in page["alerts"]:
        print()
        print(shown(f"ALERT {alert['kind']} {alert['subject']}: {alert['text']}"))
        print(shown(f"  Next: {alert['hint']}"))


def _classes(volume: dict[str, Any]) -> str:
    """`home = cabin | tower (2 snapshots)`: a bar where they differ, and what a lesser class holds."""
    said = []
    for one in volume["classes"]:
        differs = "" if one["snapshots"] == volume["snapshots"] else f" ({one['snapshots']} snapshots)"
        said.append(" = ".join(one["sites"]) + differs + (" (with holes)" if one["has_holes"] else ""))
    return " | ".join(said) or "-"


def _volume_row(volume: dict[str, Any]) -> tuple[object, ...]:
    promise = volume["protection"]
    # A node that was not started again since the program was upgraded does not say it.
    left_out = volume.get("skipped", 0)
    return (
        volume["name"],
        volume["kind"],
        volume["origin"],
        volume["snapshots"],
        format_size(volume["size_bytes"]),
        age(volume["newest_age_s"]),
        "-" if promise is None else age(promise["last_success_s"]),
        "-" if promise is None else f"in {format_span(max(0.0, promise['next_run_s']))}",
        ", ".join(volume["held_by"]) or "-",
        f"left out: {left_out:,}" if left_out else "",
    )
