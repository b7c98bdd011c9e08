"""What damage touches: from blocks that cannot be mended to the snapshots and paths that need them."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.ids import BLOCK_ID_BYTES, BlockId
from replicator.catalog.catalog import Catalog
from replicator.catalog.manifest.entries import decode_entry, key_path
from replicator.catalog.manifest.nodes import Shape, key_number
from replicator.catalog.manifest.walk import closure, entries
from replicator.core.errors import BlockMissing, ManifestDamaged
from replicator.store.ports import BlockReader

_LISTED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Touched:
    """One place in one snapshot that needs a lost block."""

    snapshot: str
    volume: str
    where: str


async def find_touched(catalog: Catalog, reader: BlockReader, lost: Sequence[BlockId]) -> list[Touched]:
    """Every snapshot, and every file or block number in it, that one of `lost` belongs to. Bounded in length."""
    wanted = set(lost)
    found: list[Touched] = []
    for snapshot in catalog.snapshots() if wanted else []:
        record = snapshot.record
        label = (snapshot.snapshot_id.hex()[:12], record.volume_name)
        try:
            async for key, value in entries(reader, record.root, record.shape):
                if record.shape is not Shape.NAMES:
                    if value[:BLOCK_ID_BYTES] in wanted:
                        found.append(Touched(*label, f"block {key_number(key)}"))
                elif await _entry_needs(reader, value, wanted):
                    found.append(Touched(*label, key_path(key).decode(errors="backslashreplace") or "."))
                if len(found) >= _LISTED_MAX:
                    return found
        except (BlockMissing, ManifestDamaged) as error:
            found.append(Touched(*label, f"all that lies below a lost manifest node ({error.message})"))
    return found


async def _entry_needs(reader: BlockReader, value: bytes, wanted: set[BlockId]) -> bool:
    entry = decode_entry(value)
    if any(block in wanted for block in entry.block_ids()):
        return True
    if entry.pieces_root:
        async for _, packed in closure(reader, BlockId(entry.pieces_root), Shape.PIECES):
            if any(packed[at : at + BLOCK_ID_BYTES] in wanted for at in range(0, len(packed), BLOCK_ID_BYTES)):
                return True
    return False
