"""The signed snapshot record: what the origin says it took, once and for ever.

What a *site* decides about its copy (expiry, holds) is not in here: that is the site's own
business, and a source that is taken over must not be able to shorten it.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.ids import BlockId, SiteId, SnapshotId, VolumeId
from protocol.limits import BLOCK_BODY_MAX, SNAPSHOT_RECORD_MAX
from replicator.catalog.manifest.nodes import Shape
from replicator.core.errors import ManifestDamaged, Untrusted

RECORD_VERSION: Final = 1
_SIGNED_AS: Final = b"replicator snapshot record v1\0"
_SIGNATURE_BYTES: Final = 64

Signer = Callable[[bytes], bytes]
"""Signs with the site's key."""

KINDS: Final = {"tree": Shape.NAMES, "image": Shape.NUMBERS}
"""The kinds of volume, and the shape of their manifests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """One volume at one moment."""

    snapshot_id: SnapshotId
    origin: SiteId
    volume_id: VolumeId
    volume_name: str
    kind: str
    sequence: int
    """Counts this volume's snapshots at its origin: it orders them, clocks do not."""
    taken_ns: int
    root: BlockId
    size_bytes: int
    """What the source held: the image's length, or the sum of the files."""
    entries: int
    """Files and folders, or non-zero blocks of an image."""
    block_bytes: int
    """Bytes of one block of an image; 0 for a tree."""
    consistency: str
    """`crash`: as after pulling the plug; `quiesced`: a hook had put the source in order."""
    tags: tuple[str, ...]
    system_id: bytes
    """16 bytes that the members of one system snapshot share; empty for one taken alone."""
    system_size: int
    """How many members that system snapshot has."""
    skipped: int
    """Paths that could not be read: the snapshot says that it is not the whole."""

    @property
    def shape(self) -> Shape:
        return KINDS[self.kind]


def encode_record(record: SnapshotRecord) -> bytes:
    """The bytes that are signed."""
    packed: bytes = msgpack.packb([RECORD_VERSION, *asdict(record).values()], use_bin_type=True)
    return packed


def sign_record(record: SnapshotRecord, sign: Signer) -> bytes:
    """The record as it is stored and sent: its bytes, and the origin's signature of them."""
    packed = encode_record(record)
    return packed + sign(_SIGNED_AS + packed)


def open_record(signed: bytes) -> SnapshotRecord:
    """The record, after checking that its origin signed it. Raises `ManifestDamaged`, `Untrusted`."""
    if not _SIGNATURE_BYTES < len(signed) <= SNAPSHOT_RECORD_MAX:
        raise ManifestDamaged("A snapshot record has an impossible length.")
    packed, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
    try:
        parts = msgpack.unpackb(packed, raw=False, strict_map_key=True, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ManifestDamaged(f"A snapshot record cannot be read: {error}.") from error
    record = _from_parts(parts)
    verify_signature(record.origin, _SIGNED_AS + packed, signature)
    return record


def _from_parts(parts: Any) -> SnapshotRecord:
    fields = SnapshotRecord.__dataclass_fields__
    if not isinstance(parts, list) or len(parts) < len(fields) + 1 or parts[0] != RECORD_VERSION:
        raise ManifestDamaged("A snapshot record is of a version that this release does not know.")
    values = dict(zip(fields, parts[1:], strict=False))
    tags = values["tags"]
    if not isinstance(tags, list) or any(type(tag) is not str for tag in tags):
        raise ManifestDamaged("A snapshot record has tags of the wrong type.")
    values["tags"] = tuple(tags)
    for name, expected in _FIELD_TYPES.items():
        if type(values[name]) is not expected or (expected is int and not 0 <= values[name] < 2**63):
            raise ManifestDamaged(f"A snapshot record has a {name} of the wrong type.")
    for name, size in (("snapshot_id", 16), ("origin", 32), ("volume_id", 16), ("root", 32)):
        if len(values[name]) != size:
            raise ManifestDamaged(f"A snapshot record has a {name} of {len(values[name])} bytes.")
    if len(values["system_id"]) not in (0, 16) or values["block_bytes"] > BLOCK_BODY_MAX:
        raise ManifestDamaged("A snapshot record has a system id or a block size that cannot be.")
    if values["kind"] not in KINDS or (values["kind"] == "image") != (values["block_bytes"] > 0):
        raise ManifestDamaged(f"A snapshot record is of the unknown kind {values['kind']!r}.")
    return SnapshotRecord(**values)


_FIELD_TYPES: Final[dict[str, type]] = {
    "snapshot_id": bytes, "origin": bytes, "volume_id": bytes, "volume_name": str, "kind": str, "sequence": int,
    "taken_ns": int, "root": bytes, "size_bytes": int, "entries": int, "block_bytes": int, "consistency": str,
    "system_id": bytes, "system_size": int, "skipped": int,
}  # fmt: skip


def verify_signature(site: bytes, message: bytes, signature: bytes) -> None:
    """Raises `Untrusted` unless `site`'s key made this signature."""
    try:
        Ed25519PublicKey.from_public_bytes(site).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Untrusted(f"A signature is not that of site {site.hex()[:12]}.") from None
