"""`config.toml`: strict, commented, and optional in every line."""

import difflib
import os
import re
import tomllib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from protocol.messages.versions import CURRENT, OLDEST
from replicator.core.errors import ConfigError, UsageError
from replicator.core.units import parse_rate, parse_size, parse_span
from replicator.ingest.config import IngestConfig
from replicator.net.address import split_address
from replicator.net.config import MeshConfig
from replicator.repair.pace import ScrubPromise
from replicator.store.config import StoreConfig

_SCRUB_S_MIN: Final = 3600.0
_SCRUB_RATE_MIN: Final = 1_000_000
_WORKERS_MAX: Final = 4
"""Beyond it, what takes their blocks in is the limit."""
_WORKERS_ASKED_MAX: Final = 64


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What a node's file may say. Sizes, rates and spans are written as people write them."""

    name: str
    """What this site is called in other sites' lists."""
    listen: str = "0.0.0.0:7421"
    advertise: list[str] = []
    """Addresses that peers are told; empty means `listen`."""
    http: str = "127.0.0.1:7422"
    """Status, health and metrics; "" for none."""
    rate_out: str = "none"
    rate_in: str = "none"
    workers: str = "auto"
    """How many processes read many small files for a snapshot; "auto" goes by the cores."""
    ahead_from: str = "4MiB"
    """From what size on blocks go ahead of the snapshot that they belong to."""
    gc_grace: str = "24h"
    scrub_every: str = "30d"
    """Everything is read again within this span."""
    scrub_rate: str = "50MB/s"
    """At most so fast, and not at all while others work, as long as there is time."""
    repair_rate: str = "none"
    """What is mended at leisure comes no faster; a block that somebody waits for always does."""
    gc: str = "on"
    """"off" is the kill switch: nothing is deleted from the store."""
    segment_size: str = "64MiB"
    past_cache: bool = True
    """Whether long runs of the store are read and written past the page cache."""
    reserve: str = "256MiB"
    ballast: str = "16MiB"
    """Room in a file that is given up when the disk is full to the last byte, so that deleting can begin; "0" for
    none."""
    protocol: str = "newest"
    """The newest version of the protocol that peers are offered: the one before, while an upgrade is tried out."""
    log_level: str = "info"


LOG_LEVELS: Final = ("debug", "info", "warning", "error")

CONFIG_TEMPLATE: Final = """\
# A node of replicator. Every line but `name` may be left out; the values are the defaults
# unless `init` was told otherwise. An unknown key is an error.
name = "{name}"

# Where other sites reach this one, and what they are told (empty: the same).
listen = {listen}
advertise = {advertise}

# Status, health and metrics for programs on this machine; "" for none.
http = {http}

# Bulk traffic to and from all peers together: "none", "20MB/s", "100Mbit/s".
# Repairs (see `repair_rate`) and the control of links are never held back by these.
rate_out = {rate_out}
rate_in = {rate_in}

# Processes that read and pack small files while a snapshot is taken, where there are thousands of them: "auto" is
# one a core, at most four; "0" is none. Each takes some 35 MB while it is at work.
workers = "auto"

# A snapshot's new blocks are on their way while it is still being taken, once it has added so much.
ahead_from = "4MiB"

# How long a block that nothing needs any more can still be brought back (`gc --undo`).
gc_grace = "24h"

# Everything stored is read again, and proven, within this span.
scrub_every = "30d"

# At most so fast, and not at all while jobs, syncs or restores are at work, as long as there is time.
scrub_rate = "50MB/s"

# What repairs that nobody waits for may take from peers, as when a whole store is lost: like "20MB/s".
# The bandwidth rules do not bind repairs.
repair_rate = "none"

# "off" stops all deletion from the store, at once after a restart; `replicator gc --off` does without one.
gc = "on"

segment_size = {segment_size}

# Long runs of the store are read and written past the page cache, where its file system can do that.
past_cache = true

reserve = "256MiB"
ballast = "16MiB"

# The newest version of the protocol that peers are offered: "newest", or the number of the one before, while
# an upgrade is being tried out.
protocol = "newest"
log_level = "info"
"""


def load_config(path: Path) -> NodeConfig:
    """Raises `ConfigError` that names the key, and its nearest neighbour if it is unknown."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"There is no node in {path.parent}.", hint="Make one with `replicator init`, or give --state."
        ) from None
    except PermissionError:
        raise ConfigError(
            f"{path} may not be read by this user.", hint="Be the user that runs the node, or root; or give --state."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    return parse_config(raw, where=str(path))


def parse_config(raw: dict[str, Any], *, where: str) -> NodeConfig:
    known = NodeConfig.__struct_fields__
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(known)}."
            raise ConfigError(f"{where}: unknown key `{key}`.", hint=hint)
    try:
        config = msgspec.convert(raw, NodeConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}.") from error
    check_name(config.name)
    _check_values(config, where)
    return config


def _protocol(text: str) -> int:
    """Raises `UsageError`."""
    spoken = {"newest": CURRENT} | {str(version): version for version in range(OLDEST, CURRENT + 1)}
    if text not in spoken:
        raise UsageError(f"this release does not speak version {text!r}.", hint=f"Say one of {', '.join(spoken)}.")
    return spoken[text]


def _check_values(config: NodeConfig, where: str) -> None:
    checks: list[tuple[str, Callable[[str], object], str]] = [
        ("listen", split_address, config.listen),
        *(("advertise", split_address, one) for one in config.advertise),
        ("http", split_address, config.http or "localhost:0"),
        ("rate_out", parse_rate, config.rate_out),
        ("rate_in", parse_rate, config.rate_in),
        ("workers", _workers, config.workers),
        ("ahead_from", parse_size, config.ahead_from),
        ("gc_grace", parse_span, config.gc_grace),
        ("scrub_every", _scrub_span, config.scrub_every),
        ("scrub_rate", _scrub_rate, config.scrub_rate),
        ("repair_rate", parse_rate, config.repair_rate),
        ("segment_size", parse_size, config.segment_size),
        ("reserve", parse_size, config.reserve),
        ("ballast", parse_size, config.ballast),
        ("protocol", _protocol, config.protocol),
    ]
    for key, parse, text in checks:
        try:
            parse(text)
        except UsageError as error:
            raise ConfigError(f"{where}: `{key}`: {error.message}", hint=error.hint) from None
    if config.gc not in ("on", "off"):
        raise ConfigError(f"{where}: `gc`: there is no {config.gc!r}.", hint='Say "on" or "off".')
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"{where}: `log_level`: there is no {config.log_level!r}.", hint=f"One of {LOG_LEVELS}.")


def _workers(text: str) -> int:
    if text == "auto":
        return min(os.cpu_count() or 1, _WORKERS_MAX)
    if not text.isdecimal() or int(text) > _WORKERS_ASKED_MAX:
        raise UsageError(f"{text!r} is no number of processes.", hint=f'Say "auto", or 0 to {_WORKERS_ASKED_MAX}.')
    return int(text)


def _scrub_span(text: str) -> float:
    seconds = parse_span(text)
    if seconds < _SCRUB_S_MIN:
        raise UsageError(f"{text!r} would read the disk all the time.", hint="Say 1h or more.")
    return seconds


def _scrub_rate(text: str) -> int:
    rate = parse_rate(text)
    if rate < _SCRUB_RATE_MIN:
        raise UsageError(f"A scrub at {text!r} would never end.", hint="Say 1MB/s or more.")
    return rate


def scrub_promise(config: NodeConfig) -> ScrubPromise:
    return ScrubPromise(every_s=_scrub_span(config.scrub_every), rate_bytes_max=_scrub_rate(config.scrub_rate))


def check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise ConfigError(
            f"{name!r} cannot be a site's name.", hint="Use letters, digits, dots, dashes; up to 63 of them."
        )


def mesh_config(config: NodeConfig) -> MeshConfig:
    split_address(config.listen)
    for address in config.advertise:
        split_address(address)
    return MeshConfig(
        listen=config.listen,
        advertise=tuple(config.advertise),
        rate_out_bytes=parse_rate(config.rate_out),
        rate_in_bytes=parse_rate(config.rate_in),
        ahead_from_bytes=parse_size(config.ahead_from),
        protocol_newest=_protocol(config.protocol),
    )


def store_config(config: NodeConfig) -> StoreConfig:
    return StoreConfig(
        segment_bytes_max=max(1 << 20, parse_size(config.segment_size)),
        past_cache=config.past_cache,
        reserve_bytes_max=parse_size(config.reserve),
        grace_s=parse_span(config.gc_grace),
    )


def ingest_config(config: NodeConfig) -> IngestConfig:
    return IngestConfig(workers_max=_workers(config.workers))


class StateFolder:
    """The files of one node."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.identity = root / "identity.key"
        self.next_identity = root / "identity.next"
        self.key_history = root / "identity.history"
        self.incarnation = root / "incarnation"
        self.catalog = root / "catalog.sqlite"
        self.jobs = root / "jobs.sqlite"
        self.store = root / "store"
        self.memo = root / "memo"
        self.sets = root / "sets"
        self.ballast = root / "ballast"
        self.log = root / "node.log"

    @property
    def socket(self) -> Path:
        """The API's socket: in the folder, unless that path is longer than a socket's may be (108 bytes)."""
        inside = self.root / "api.sock"
        if len(os.fsencode(inside)) < 100:
            return inside
        short = sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        return Path(f"/tmp/replicator-{os.getuid()}-{short}") / "api.sock"


def default_state() -> Path:
    """$REPLICATOR_STATE, or a folder where this user's programs keep their state."""
    if given := os.environ.get("REPLICATOR_STATE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/replicator")
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "replicator"
