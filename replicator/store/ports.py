"""What the rest of the house may ask of a block store.

The store's own verbs are blocking and safe to call from several threads: callers put whole
batches through `core.ports.Offload`. What has to wait for other sites is asynchronous, and
has a port of its own, `BlockReader`, which `repair` provides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from protocol.ids import BlockId
from protocol.wire.envelope import Buffer, Header


class Cause(Enum):
    """Why a block cannot be had."""

    CORRUPT = "corrupt"
    """There are bytes, and they are not the bytes that were stored."""
    MISSING = "missing"
    """The file, or that part of it, is gone, or the store never had the block."""
    UNREADABLE = "unreadable"
    """The disk answers with an error."""


class Place(NamedTuple):
    """Where a sealed block lies."""

    segment: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One block that should be here and is not sound."""

    block_id: BlockId
    kind: int
    cause: Cause
    place: Place | None


class SealedBlock(NamedTuple):
    """A block ready to be stored: its header, and the whole of its sealed bytes."""

    header: Header
    sealed: Buffer


@dataclass(slots=True)
class Bodies:
    """The answer to a read: what is sound, and what is not."""

    sound: dict[BlockId, Buffer] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


@dataclass(slots=True)
class SealedRuns:
    """The answer to a read for sending: runs of whole, proven sealed blocks, each to go out as it is."""

    runs: list[Buffer] = field(default_factory=list)
    blocks_count: int = 0
    faults: list[Fault] = field(default_factory=list)


@dataclass(slots=True)
class Lease:
    """A writer's right to rely on what the store told it.

    While it is alive nothing that the store called present can be swept. The store renews it
    at each use; if a use comes too late it is lost for good, and so is the writer's work.
    """

    number: int
    holder: str
    epoch: int
    expires_s: float
    lost: bool = False


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counters of one store. `body_bytes` is what the blocks unpack to, `sealed_bytes` what they take."""

    blocks: int
    sealed_bytes: int
    body_bytes: int
    disk_bytes: int
    segments: int
    broken_blocks: int
    condemned_blocks: int
    read_only: str
    oldest_verified_ns: int | None


class BlockStore(Protocol):
    """The store port. `tests/contract` says what every implementation must do."""

    def begin(self, holder: str) -> Lease:
        """Start writing. `holder` is for people: who holds it."""
        ...

    def end(self, lease: Lease) -> None:
        """Give the lease back. What was committed and has a root by now stays."""
        ...

    def have(self, lease: Lease, ids: Sequence[BlockId]) -> set[BlockId]:
        """Which of these are here, sound as far as we know, and stay at least as long as the lease.

        Raises `LeaseLost`.
        """
        ...

    def append(self, lease: Lease, blocks: Sequence[SealedBlock]) -> int:
        """Write those that are not here yet; not durable before `commit`. Returns how many were new.

        The caller has proven each block with `unseal`. Raises `LeaseLost`, `StoreFull`, `StoreReadOnly`.
        """
        ...

    def commit(self, lease: Lease, *, keep_cached: bool = True) -> None:
        """Return when everything appended before is on the disk and in the ledger. Raises as `append` does.

        `keep_cached` False says that nobody is about to read it: its pages are better used for what comes next.
        """
        ...

    def read(self, ids: Sequence[BlockId]) -> Bodies:
        """The bodies of these blocks, each proven by its hash."""
        ...

    def read_sealed(self, ids: Sequence[BlockId]) -> SealedRuns:
        """These blocks as they lie, in disk order, each proven by its hash."""
        ...

    def quarantine(self, faults: Sequence[Fault]) -> int:
        """Take broken blocks out of service. They count as absent until a sound copy is appended."""
        ...

    def broken(self) -> list[Fault]:
        """What is in quarantine."""
        ...

    def verify(self, *, after: "ScrubCursor | None", bytes_max: int) -> "VerifiedPart":
        """Read the next part of the store again and prove every block in it."""
        ...

    def ids(self) -> Iterator[bytes]:
        """All present ids in ascending order, packed, in batches."""
        ...

    def statistics(self) -> StoreStatistics: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ScrubCursor:
    """How far a scrub has come: it starts again here after a restart."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class VerifiedPart:
    """What one step of a scrub found. `cursor` is None when the whole store has been read."""

    cursor: ScrubCursor | None
    blocks: int
    sealed_bytes: int
    faults: list[Fault]


class BlockReader(Protocol):
    """Reading that may wait for another site: what is broken here is fetched, proven, and put back."""

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        """The bodies of all of these. Raises `BlockMissing` for the first that nobody has."""
        ...
