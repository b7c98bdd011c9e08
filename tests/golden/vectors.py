"""What is frozen: one value of each thing that lies on a disk or crosses a wire, and its bytes.

The values are made by rule from the declarations, so that nothing is forgotten; the bytes lie
in `v1.json`, and are never regenerated for a version that was released. `scripts/vectors`
writes the file of a new version.
"""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ErrorCode
from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from protocol.machines.reconcile import Reconciliation
from protocol.messages import blocks, repair, session, snapshots, summary
from protocol.messages.registry import Message, Size, encode, registered
from protocol.messages.session import Refusal
from protocol.wire.envelope import seal
from protocol.wire.frames import END_STREAM, FrameKind, Lane, pack_header
from protocol.wire.hashing import Kind, block_id
from replicator.catalog.manifest.entries import Entry, encode_entry
from replicator.catalog.manifest.nodes import Shape, encode_node, number_key
from replicator.catalog.records import SnapshotRecord, sign_record
from replicator.index.tokens import TokenKey
from replicator.index.view import FrozenSet

FROZEN = Path(__file__).with_name("v1.json")
MODULES = (session, snapshots, blocks, repair, summary)
MESSAGES = [cls for cls in registered().values() if any(cls.__module__ == module.__name__ for module in MODULES)]

RAW_BODY = bytes(range(256))
PACKED_BODY = b"all work and no play makes jack a dull boy. " * 20
BODIES = {f"{kind.name.lower()}-{name}": (kind, body)
          for kind in Kind for name, body in (("raw", RAW_BODY), ("lz4", PACKED_BODY))}  # fmt: skip

SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RECORD = SnapshotRecord(
    snapshot_id=SnapshotId(bytes(range(16))),
    origin=SiteId(SIGNING_KEY.public_key().public_bytes_raw()),
    volume_id=VolumeId(bytes(range(16, 32))),
    volume_name="Büro",
    kind="image",
    sequence=7,
    taken_ns=1_763_800_000_000_000_000,
    root=BlockId(bytes(range(32))),
    size_bytes=2**40,
    entries=12,
    block_bytes=65536,
    consistency="crash",
    tags=("daily", "état"),
    system_id=b"",
    system_size=1,
    skipped=0,
)
ENTRY = Entry(
    mode=0o100644, uid=1000, gid=100, mtime_ns=-1, size=300, lengths=(100, 200), ids=bytes(range(64)),
    xattrs=((b"user.a", b"\xff"),), is_sparse=True,
)  # fmt: skip
NODES: dict[str, tuple[Shape, int, list[bytes], list[bytes]]] = {
    "numbers": (Shape.NUMBERS, 0, [number_key(0), number_key(2**40)], [bytes(32), bytes(range(32))]),
    "numbers-inner": (Shape.NUMBERS, 1, [number_key(127)], [bytes(range(32))]),
    "names": (Shape.NAMES, 0, [b"", b"a\0b"], [encode_entry(ENTRY), b"\x90"]),
    "names-inner": (Shape.NAMES, 3, [b"a", b"b"], [bytes(range(32)), bytes(32)]),
    "pieces": (Shape.PIECES, 0, [number_key(0)], [bytes(range(32)) + b"\0\1\0\0"]),
}
FRAMES: dict[FrameKind, tuple[int, bytes, Lane, int]] = {
    FrameKind.HELLO: (0, b"", Lane.CONTROL, 0),
    FrameKind.OPEN: (1, b"request", Lane.REPAIR, END_STREAM),
    FrameKind.MESSAGE: (2, b"message", Lane.RESTORE, 0),
    FrameKind.BLOCKS: (3, b"sealed blocks", Lane.SYNC, END_STREAM),
    FrameKind.RESET: (4, encode(Refusal(error=ErrorCode.BUSY, reason="später")), Lane.SEED, 0),
    FrameKind.CREDIT: (2**32 - 1, b"\0\x80\0\0", Lane.CONTROL, 0),
    FrameKind.PING: (0, b"12345678", Lane.CONTROL, 0),
    FrameKind.PONG: (0, b"12345678", Lane.CONTROL, 0),
    FrameKind.GOODBYE: (0, encode(Refusal(error=ErrorCode.STOPPING, reason="")), Lane.CONTROL, 0),
}


def sample(cls: type[Message]) -> Message:
    """The one value of a message that is frozen."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return cls(**{field.name: _sample(hints[field.name], number) for number, field in enumerate(fields, 1)})


def _sample(hint: Any, number: int) -> Any:
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        for size in (extra for extra in extras if isinstance(extra, Size)):
            return bytes((number + at) % 256 for at in range(size.count))
        return _sample(base, number)
    if typing.get_origin(hint) is tuple:
        return (_sample(typing.get_args(hint)[0], number), _sample(typing.get_args(hint)[0], number + 1))
    plain = getattr(hint, "__supertype__", hint)
    return {int: 10**number, bool: True, str: f"Feld {number} ü", bytes: bytes([number, 255])}[plain]


TALK_SCOPE, TALK_NONCE = SnapshotId(bytes(range(16))), bytes(range(16, 32))
TALK_BOTH, TALK_ONLY = 2000, 300
"""Blocks that both sites of the frozen talk hold, and that each holds alone."""


def talk_ids(site: int) -> bytes:
    """Sorted ids: BLAKE3 of a number as four bytes. The first 2,000 are on both sites, 300 more on each alone."""
    numbers = [*range(TALK_BOTH), *range(TALK_BOTH + site * TALK_ONLY, TALK_BOTH + (site + 1) * TALK_ONLY)]
    return b"".join(sorted(block_id(Kind.DATA, number.to_bytes(4, "big")) for number in numbers))


def talk() -> list[bytes]:
    """A whole reconciliation of these two sites, message by message, as the sites take turns."""
    key = TokenKey(snapshot_id=TALK_SCOPE, nonce=TALK_NONCE)
    sides = [Reconciliation(FrozenSet(talk_ids(n), key), snapshot_id=TALK_SCOPE, nonce=TALK_NONCE) for n in (0, 1)]
    said, turn, messages = [], 1, sides[0].start()
    while messages:
        said += [encode(item) for item in messages]
        messages = [answer for item in messages for answer in sides[turn % 2].receive(item)]
        turn += 1
    assert all(len(one.result.peer_lacks) == TALK_ONLY * 32 for one in sides)
    return said


def frame(kind: FrameKind) -> bytes:
    stream, body, lane, flags = FRAMES[kind]
    return pack_header(kind, stream, len(body), lane=lane, flags=flags) + body


def vectors() -> dict[str, bytes]:
    """Every frozen thing as this release writes it."""
    made = {f"block/{name}": seal(kind, body) for name, (kind, body) in BODIES.items()}
    made |= {f"frame/{kind.name.lower()}": frame(kind) for kind in FrameKind}
    made |= {f"message/{cls.__name__}": encode(sample(cls)) for cls in MESSAGES}
    made |= {f"node/{name}": encode_node(*parts) for name, parts in NODES.items()}
    made |= {f"talk/{number:02}": said for number, said in enumerate(talk(), 1)}
    made["entry"] = encode_entry(ENTRY)
    made["record"] = sign_record(RECORD, SIGNING_KEY.sign)
    return made


def frozen() -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in json.loads(FROZEN.read_text()).items()}


def write() -> None:
    FROZEN.write_text(json.dumps({name: data.hex() for name, data in vectors().items()}, indent=1) + "\n")
