"""What the API is asked with. Unknown fields are refused, so a typing error is not silently ignored."""

from typing import Any

import msgspec


class InviteRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    minutes: float = 10.0


class JoinRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    code: str


class ProtectRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`every_s` 0 makes no schedule: snapshots are then taken by hand."""

    path: str
    name: str = ""
    kind: str = ""
    """`tree` or `image`; empty means: a folder is a tree, anything else an image."""
    every_s: float = 0.0
    keep: str = ""
    to: list[str] = []
    exclude: list[str] = []
    tenant: str | None = None
    """Whose data it is: a label that its snapshots carry. None leaves it as it is."""


class SyncRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename={"source": "from"}):
    """A push (`to`) or a pull (`from`)."""

    to: str = ""
    source: str = ""
    volume: str = ""
    """Empty means every volume, also those that come later. For a pull: the name that it has there."""
    tenants: list[str] = []
    tags: list[str] = []
    cron: str = ""
    rpo_s: float = 0.0
    zone: str = "UTC"
    windows: str = ""
    priority: int = 5
    do_not_expire: bool = False
    keep: str = ""
    prefix: str = ""
    passive: bool = False
    rate: str = "none"


class SyncChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What is None stays as it is."""

    tenants: list[str] | None = None
    tags: list[str] | None = None
    cron: str | None = None
    rpo_s: float | None = None
    zone: str | None = None
    windows: str | None = None
    priority: int | None = None
    do_not_expire: bool | None = None
    keep: str | None = None
    prefix: str | None = None
    passive: bool | None = None
    rate: str | None = None


class IncomingRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What this site keeps of a volume that comes from elsewhere. What is None stays as it is."""

    volume: str
    keep: str | None = None
    prefix: str | None = None
    passive: bool | None = None
    quota: int | None = None
    """Copies within an hour before it counts as a flood; 0 for no limit."""


class PolicyRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    allow: list[str] = []
    deny: list[str] = []
    volumes: list[str] = []
    """Volumes that the peer may read although no sync names them for it."""
    introduced: list[str] | None = None
    """What sites may do that the peer vouches for; None leaves it as it is."""


class IntroduceRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    one: str
    other: str


class RotateRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    overlap_s: float


class PauseRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    paused: bool


class HoldRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    reason: str


class JobRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    kind: str
    args: dict[str, Any] = {}
    job_id: str = ""
    """Chosen by the asker, so that asking again after a lost answer is not a second job."""


class DeletionRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Switch deletion from the store off, with a reason, or on again."""

    is_off: bool
    reason: str = ""


class ThrottleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename={"into": "in"}):
    """Rules as people write them (`20MB/s; mon-fri 08:00-18:00 2MB/s`), or plain bytes a second (0 is no limit).

    None leaves a way as it is. Without a peer it is the node's rule.
    """

    peer: str = ""
    out: str | None = None
    into: str | None = None
    out_bytes_per_s: int | None = None
    in_bytes_per_s: int | None = None
    zone: str = "UTC"
    burst_s: float | None = None
    reset: bool = False
    """First forget what was set here before; for the node, what its configuration file says counts again."""
