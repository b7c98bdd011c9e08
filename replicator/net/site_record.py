"""What a site signs about itself: who it is, for being introduced, and which key takes its key's place.

Everything here is pure: bytes and keys in, checked values out. Each statement has a domain of
its own, so that a signature given for one purpose is worth nothing for another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.ids import SITE_ID_BYTES, SiteId
from protocol.limits import SITE_RECORD_MAX
from replicator.core.errors import Untrusted

Sign = Callable[[bytes], bytes]
_RECORD_AS: Final = b"replicator site record v1\0"
_VOUCHED_AS: Final = b"replicator site voucher v1\0"
_NEW_KEY_AS: Final = b"replicator new key v1\0"
_SIGNATURE_BYTES: Final = 64
_ADDRESSES_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class SiteCard:
    """Who a site says it is, to one reader."""

    site_id: SiteId
    name: str
    addresses: tuple[str, ...]
    reader: SiteId


def sign_card(site_id: SiteId, *, name: str, addresses: Sequence[str], reader: SiteId, sign: Sign) -> bytes:
    packed: bytes = msgpack.packb([1, site_id, name, list(addresses)[:_ADDRESSES_MAX], reader], use_bin_type=True)
    return packed + sign(_RECORD_AS + packed)


def open_card(signed: bytes) -> SiteCard:
    """Raises `Untrusted` unless the site that it names has signed it."""
    packed, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
    try:
        parts: Any = msgpack.unpackb(packed, raw=False, max_map_len=0, max_ext_len=0, max_array_len=16)
        version, site, name, addresses, reader = parts[:5]
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise Untrusted(f"A site record cannot be read: {error}.") from error
    keys_fit = all(type(key) is bytes and len(key) == SITE_ID_BYTES for key in (site, reader))
    names_fit = type(name) is str and isinstance(addresses, list) and all(type(one) is str for one in addresses)
    if version != 1 or not keys_fit or not names_fit or len(addresses) > _ADDRESSES_MAX:
        raise Untrusted("A site record does not say what a site record can say.")
    check_signature(site, _RECORD_AS + packed, signature)
    return SiteCard(SiteId(site), name, tuple(addresses), SiteId(reader))


def sign_voucher(card: bytes, sign: Sign) -> bytes:
    """I know the site that this record is of."""
    assert len(card) <= SITE_RECORD_MAX
    return sign(_VOUCHED_AS + card)


def check_voucher(card: bytes, voucher: bytes, *, by: bytes) -> None:
    """Raises `Untrusted`."""
    check_signature(by, _VOUCHED_AS + card, voucher)


def new_key_statement(old: bytes, new: bytes, *, until_ns: int, sequence_max: int) -> bytes:
    """What the old and the new key both sign."""
    return _NEW_KEY_AS + old + new + until_ns.to_bytes(8, "big") + sequence_max.to_bytes(8, "big")


def check_signature(site: bytes, message: bytes, signature: bytes) -> None:
    """Raises `Untrusted` unless `site`'s key made this signature."""
    try:
        Ed25519PublicKey.from_public_bytes(site).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Untrusted(f"A signature is not that of site {site.hex()[:12]}.") from None
