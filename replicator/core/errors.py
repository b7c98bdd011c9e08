"""What can go wrong, as types: fields instead of strings, one exit code each.

`code` is for programs (`--json`, metrics), `exit_code` for shells, `retryable` for our own
loops. The message says what happened to which thing; `hint` says what to do next. The exit
codes follow sysexits.h where it has a word for the case; `docs/operations.md` lists them.
"""

from typing import ClassVar

EXIT_OK = 0
EXIT_FINDINGS = 1
"""The command worked and found something that needs a person: damage, skipped files, a failed promise."""


class ReplicatorError(Exception):
    """The root of everything that this package raises on purpose."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = _as_text(message)
        self.hint = _as_text(hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def _as_text(words: str) -> str:
    """A path in a message may hold bytes that are no text. JSON and terminals take only text."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class ConfigError(ReplicatorError):
    """A setting, an argument or a state directory is not usable."""

    code, exit_code = "config", 78


class UsageError(ReplicatorError):
    """The request makes no sense as it was put."""

    code, exit_code = "usage", 64


class NodeDown(ReplicatorError):
    """The command needs the running node, and it does not answer."""

    code, exit_code, retryable = "node_down", 69, True


class SourceError(ReplicatorError):
    """What should be protected, or the place to restore to, cannot be used."""

    code, exit_code = "source", 66


class TargetFull(ReplicatorError):
    """There is no room where it should be restored to."""

    code, exit_code, retryable = "target_full", 73, True

    def __init__(self, target: object) -> None:
        super().__init__(
            f"There is no room left at {target}.", hint="Make room, or choose another target, and run it again."
        )


class StoreError(ReplicatorError):
    """The block store cannot do what was asked."""

    code, exit_code = "store", 74


class BlockMissing(StoreError):
    """The store has no sound copy of a block."""

    code, exit_code = "block_missing", 65

    def __init__(self, block_id: bytes, *, hint: str = "") -> None:
        super().__init__(f"Block {block_id.hex()} is not in the store.", hint=hint)
        self.block_id = block_id


class BlockCorrupt(StoreError):
    """The bytes at rest are not the bytes we stored."""

    code, exit_code = "block_corrupt", 65

    def __init__(self, block_id: bytes, *, place: str) -> None:
        super().__init__(f"Block {block_id.hex()} at {place} is damaged.", hint="Run `replicator repair`.")
        self.block_id = block_id


class StoreFull(StoreError):
    """Writing on would eat the reserve that deletion and recovery need."""

    code, exit_code, retryable = "store_full", 73, True


class StoreLocked(StoreError):
    """Another process has the store open."""

    code, exit_code = "store_locked", 75


class StoreReadOnly(StoreError):
    """A flush to disk failed once, so nothing written since can be trusted: the store takes no more writes."""

    code, exit_code = "store_read_only", 74


class DatabaseDamaged(StoreError):
    """One of the node's own tables makes no sense any more."""

    code, exit_code = "database_damaged", 65


class SegmentLost(StoreError):
    """A segment file was deleted by somebody while the store was writing to it."""

    code, exit_code, retryable = "segment_lost", 74, True

    def __init__(self, numbers: frozenset[int]) -> None:
        super().__init__(
            f"Segment {', '.join(map(str, sorted(numbers)))} was deleted while it was written to; "
            "nothing of that was acknowledged.",
            hint="Run it again, and find out who deletes files of the store.",
        )
        self.numbers = numbers


class DeletionOff(StoreError):
    """Somebody has switched off deletion from the store."""

    code, exit_code = "deletion_off", 77

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="`replicator gc --on`, or `gc` in config.toml, switches it on again.")


class LeaseLost(StoreError):
    """The writer was silent for longer than its lease; what it relied on may have been collected."""

    code, exit_code, retryable = "lease_lost", 75, True


class CatalogError(ReplicatorError):
    """The catalogue cannot do what was asked."""

    code, exit_code = "catalog", 65


class NotFound(CatalogError):
    """No such thing, by that name or id."""

    code, exit_code = "not_found", 66


class Held(CatalogError):
    """The snapshot is held and may not be removed."""

    code, exit_code = "held", 77


class ManifestDamaged(CatalogError):
    """A manifest node does not say what a manifest node can say."""

    code, exit_code = "manifest_damaged", 65


class PeerError(ReplicatorError):
    """Something about the other site."""

    code, exit_code, retryable = "peer", 69, True


class Unreachable(PeerError):
    """No link to the peer."""

    code, exit_code, retryable = "peer_unreachable", 69, True


class Refused(PeerError):
    """The peer said no."""

    code, exit_code, retryable = "peer_refused", 77, False


class Untrusted(PeerError):
    """The other side is not who it should be."""

    code, exit_code, retryable = "peer_untrusted", 77, False


class Stalled(PeerError):
    """The peer stopped answering in the middle."""

    code, exit_code, retryable = "peer_stalled", 69, True


class JobError(ReplicatorError):
    """A job could not finish."""

    code, exit_code = "job", 70


class Cut(JobError):
    """The job was stopped before its end; running it again carries on."""

    code, exit_code, retryable = "job_cut", 75, True
