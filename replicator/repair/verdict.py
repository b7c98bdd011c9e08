"""What a scrub says of one thing that is not as it should be."""

from dataclasses import dataclass
from typing import Final

from protocol.ids import BlockId
from protocol.wire.hashing import Kind
from replicator.repair.coverage import Touched
from replicator.store.ports import Fault

_WHAT: Final = {Kind.DATA: "block", Kind.NODE: "manifest", Kind.RECORD: "record"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One finding: what, why, where, what was done about it, and whom it touches."""

    what: str
    """`block`, `manifest` (a node), `record`, `catalogue` (a row, or the file), `index` (the ledger)."""
    subject: str
    """The id of the block or of the snapshot, in hex, or the name of the file."""
    cause: str
    place: str
    done: str
    is_mended: bool
    block_id: BlockId | None = None
    touches: tuple[Touched, ...] = ()
    """What needs it, if it is not mended."""


def of_fault(fault: Fault, *, done: str, is_mended: bool) -> Verdict:
    """A verdict on a block."""
    return Verdict(
        what=_WHAT.get(Kind(fault.kind), "block"),
        subject=fault.block_id.hex(),
        cause=fault.cause.value,
        place=describe_place(fault),
        done=done,
        is_mended=is_mended,
        block_id=fault.block_id,
    )


def describe_place(fault: Fault) -> str:
    place = fault.place
    return f"segment {place.segment} at {place.offset}" if place is not None else "no known place"
