"""What a site holds of each scope, in forty bytes: what heartbeats carry.

A snapshot's manifest is a Merkle tree over its blocks, and a snapshot is entered only when each
of them is here. So two sites that hold the same snapshots of a volume, and know of no hole in
their stores, hold the same blocks of it; nothing need be added up over the blocks to know that.

A volume's root is therefore the sum of the tokens of its *snapshots*. What a store has lost and
knows of is a scope of its own, `HOLES`, summed over block ids: it is empty at a healthy site.
Blocks come and go without touching any of this. A collection removes only what no held snapshot
needs; deleting a snapshot takes its token away; a quarantined block shows in `HOLES` until it
is mended.

Sums, not hashes of lists: an update is one addition, and the difference of two roots that
differ in one snapshot *is* that snapshot's token.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from protocol.errors import Malformed
from protocol.ids import BlockId, SnapshotId, VolumeId
from protocol.messages.summary import ROOT_BYTES, ROOTS_DIGEST_BYTES
from protocol.wire.hashing import derived_key
from replicator.index.tokens import TokenKey

HOLES: Final = VolumeId(bytes(16))
"""The scope of all blocks that a store should have and has not. No volume has this id."""

_NONCE: Final = b"standing roots 1"
_HELD: Final = "replicator 2026 held snapshot v1"
_DIGEST: Final = "replicator 2026 roots digest v1"
_WRAP: Final = 2**64


@dataclass(frozen=True, slots=True)
class ScopeRoot:
    """A scope in one cell: how many things, and the sum of their tokens."""

    scope: VolumeId
    count: int
    sum_a: int
    sum_b: int

    def packed(self) -> bytes:
        numbers = (self.count, self.sum_a, self.sum_b)
        return self.scope + b"".join(number.to_bytes(8, "big") for number in numbers)


def volume_root(volume: VolumeId, held: Iterable[tuple[SnapshotId, BlockId]]) -> ScopeRoot:
    """Of snapshots, each with the root of its manifest."""
    return _root(volume, [derived_key(_HELD, snapshot + root) for snapshot, root in held])


def holes_root(missing: Iterable[BlockId]) -> ScopeRoot:
    return _root(HOLES, list(missing))


def _root(scope: VolumeId, items: Sequence[bytes]) -> ScopeRoot:
    lanes = TokenKey(snapshot_id=SnapshotId(scope), nonce=_NONCE).tokens(b"".join(items))
    sum_a, sum_b = (sum(lane.tolist()) % _WRAP for lane in lanes)
    return ScopeRoot(scope, len(items), sum_a, sum_b)


def pack_roots(roots: Iterable[ScopeRoot]) -> bytes:
    """In the order of their scopes."""
    return b"".join(sorted(root.packed() for root in roots))


def unpack_roots(packed: bytes) -> tuple[ScopeRoot, ...]:
    """Raises `Malformed` if a scope comes twice or out of order."""
    parts = [packed[at : at + ROOT_BYTES] for at in range(0, len(packed), ROOT_BYTES)]
    scopes = [part[:16] for part in parts]
    if scopes != sorted(set(scopes)):
        raise Malformed("roots are not in the order of their scopes")
    numbers = [[int.from_bytes(part[at : at + 8], "big") for at in (16, 24, 32)] for part in parts]
    return tuple(ScopeRoot(VolumeId(scope), *three) for scope, three in zip(scopes, numbers, strict=True))


def digest_of(packed: bytes) -> bytes:
    """All roots in eight bytes. Two that agree by chance cost an audit's delay, not a block."""
    return derived_key(_DIGEST, packed)[:ROOTS_DIGEST_BYTES]


_Site = TypeVar("_Site", bound=Hashable)


def classes(held: Mapping[_Site, ScopeRoot | None]) -> list[list[_Site]]:
    """Sites that hold the same of a scope, largest class first. One session between two classes speaks for all."""
    by_root: dict[ScopeRoot | None, list[_Site]] = {}
    for site, root in held.items():
        by_root.setdefault(root, []).append(site)
    return sorted(by_root.values(), key=len, reverse=True)
