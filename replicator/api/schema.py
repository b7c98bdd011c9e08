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


class SyncRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    to: str
    volume: str = ""
    """Empty means every volume that is here, also those that come later."""


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


class ThrottleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Bytes a second, 0 for no limit; None leaves it as it is."""

    out_bytes_per_s: int | None = None
    in_bytes_per_s: int | None = None
