"""Opening a connection, closing it, and becoming a peer."""

from dataclasses import dataclass

from protocol.messages.fields import Nonce16, Signature, Site
from protocol.messages.registry import Message, message


@message(code=0x01, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """The first thing each side says."""

    version_min: int
    version_max: int
    site_id: Site
    incarnation: Nonce16
    """Random, and renewed whenever the site lost or rolled back state: the peer then trusts no old watermark."""
    name: str
    """What the operator calls the site. A label: nothing is looked up by it."""


@message(code=0x02, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(Message):
    """The body of RESET and GOODBYE: an `ErrorCode` and a sentence for a person."""

    error: int
    reason: str


@message(code=0x10, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class PairJoin(Message):
    """I hold a pairing code of yours; this is who I am."""

    invite_id: Nonce16
    secret: Nonce16
    site_id: Site
    name: str
    addresses: tuple[str, ...]
    proof: Signature
    """Over the invite and both site ids, by `site_id`'s key: nobody can join in another site's name."""


@message(code=0x11, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class PairWelcome(Message):
    """You are a peer now; this is who I am."""

    site_id: Site
    name: str
    addresses: tuple[str, ...]
