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
    lasts_s: float
    """How long it may go unused."""
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
    soft_errors: int
    """Reads that failed, or gave wrong bytes, and were right when repeated past the cache. Not damage yet: a
    disk, a cable or a memory bar that is about to make some."""


@dataclass(frozen=True, slots=True)
class SegmentAge:
    """When one segment was last read and proven whole; None if it never was."""

    number: int
    known_bytes: int
    verified_ns: int | None


class BlockStore(Protocol):
    """The store port. `tests/contract` says what every implementation must do."""

    def begin(self, holder: str) -> Lease:
        """Start writing. `holder` is for people: who holds it."""
        ...

    def end(self, lease: Lease) -> None:
        """Give the lease back. What was committed and has a root by now stays."""
        ...

    def renew(self, lease: Lease) -> None:
        """Say that its holder still lives. Raises `LeaseLost` if it is too late for that.

        Whoever publishes a root does this *after* publishing, and takes the root back if it fails: then a
        collection that did not count this writer as alive is sure to have read the root.
        """
        ...

    def holders(self) -> list[str]:
        """Who writes, or reads under a pin, now. For people, and for work that would rather wait."""
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

    def verify(
        self, *, after: "ScrubCursor | None", bytes_max: int, past_cache: bool = False, by_sums: bool = False
    ) -> "VerifiedPart":
        """Read the next part of the store again and prove every block in it.

        `past_cache`: from the disk even if it is in memory, so that a page that was read last week hides nothing.
        `by_sums`: bytes that still have the sum that they had when they were written or last proven need not be opened.
        """
        ...

    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]:
        """Look through all bytes at rest for sound copies of blocks that the index does not know, and enter them.

        Returns those that were found. Reads everything: for a block that a snapshot needs and nobody can find.
        """
        ...

    def check_index(self) -> str:
        """What was wrong with the index as files, and has been mended by making it anew; empty if nothing was.

        What is in it is proven by `verify`. Reads all of it. Raises `StoreError` if it cannot be made anew.
        """
        ...

    def of_kind(self, kind: int) -> list[BlockId]:
        """All present blocks of a kind. For the few of a rare kind (records)."""
        ...

    def ages(self) -> list[SegmentAge]:
        """When each segment was last proven, ascending."""
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
    soft_errors: int = 0
    """Blocks that were wrong at first, and right when read again past the cache."""


# -- collection -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """The beginning of a collection, taken before the roots are read."""

    epoch: int
    oldest_writer_epoch: int
    """The lowest epoch in which a lease that was alive then had begun."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """One segment that is never written to again, as a collector sees it."""

    number: int
    size_bytes: int
    live_bytes: int
    """Of blocks that the index points at there."""
    overhead_bytes: int
    """What an empty one takes."""
    frees_bytes: int
    """What its removal gives back to the disk."""
    is_held: bool
    """A broken block lies there that may yet be healed from its own bytes."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One part of emptying a segment. `after` is where to go on, None at its end."""

    after: int | None
    moved_bytes: int
    unreadable_blocks: int
    """They stay where they lie, and so does the segment."""


class Shelves(Protocol):
    """What a collector asks of an engine. `store/collect.py` decides everything; an engine only carries out.

    All verbs are blocking, each is one transaction or less, and being killed between any two of them loses nothing.
    An engine of objects and tables keeps this as well: a segment is an object, a shelf's numbers are one query.
    """

    def open_epoch(self, *, is_rehearsal: bool) -> Mark:
        """Make what is pending durable, note who lives, and begin a new epoch, durably. A rehearsal begins none."""
        ...

    def holders(self) -> list[str]: ...

    def totals(self) -> tuple[int, int]:
        """Present blocks, and their sealed bytes."""
        ...

    def ids(self) -> Iterator[bytes]:
        """All present ids in ascending order, packed, in batches."""
        ...

    def places(self, ids: Sequence[BlockId]) -> dict[BlockId, Place]:
        """Where those that are present lie."""
        ...

    def condemned(self, *, epoch_below: int, at_most_ns: int) -> list[BlockId]:
        """What was condemned before that epoch and not after that time, ascending."""
        ...

    def condemned_among(self, ids: Sequence[BlockId]) -> set[BlockId]: ...

    def condemn(self, ids: Sequence[BlockId], *, epoch: int, now_ns: int) -> None:
        """Sentence these. They stay present and readable; an older sentence stands."""
        ...

    def revive(self, ids: Sequence[BlockId]) -> None:
        """Lift their sentences."""
        ...

    def revive_all(self) -> int:
        """Lift every sentence. Returns how many there were."""
        ...

    def sweep(self, ids: Sequence[BlockId], *, epoch_below: int) -> int:
        """Take these out of the index, each only if its sentence from before that epoch still stands *at that
        moment*. Returns the sealed bytes of those that went."""
        ...

    def broken_ids(self) -> list[BlockId]: ...

    def drop_broken(self, ids: Sequence[BlockId]) -> None:
        """Nobody waits for the repair of these any more."""
        ...

    def shelves(self) -> list[Shelf]:
        """All closed segments, ascending. What a writer has appended meanwhile is never on one of them unseen."""
        ...

    def inventory(self, number: int) -> Iterator[bytes]:
        """The ids of the blocks whose bytes lie in a segment, by the segment's own word and not the index's; packed.

        Raises `OSError` if it cannot be read to its end: that is not an empty answer.
        """
        ...

    def move_out(self, number: int, *, after: int, bytes_max: int) -> Moved:
        """Give some live blocks of a segment, from an offset on, a second place: proven, durable, and only then
        pointed at. Raises `StoreFull`, `StoreReadOnly`."""
        ...

    def rescue(self, ids: Sequence[BlockId]) -> list[BlockId]:
        """As `BlockStore.rescue`."""
        ...

    def remove(self, numbers: Sequence[int]) -> int:
        """Give segments back to the disk. Returns the bytes that this frees. Takes no space itself."""
        ...


class BlockReader(Protocol):
    """Reading that may wait for another site: what is broken here is fetched, proven, and put back."""

    async def read(self, ids: Sequence[BlockId]) -> dict[BlockId, Buffer]:
        """The bodies of all of these. Raises `BlockMissing` for the first that nobody has."""
        ...
