"""What sites that keep copies for each other say besides the copies: terms, pace, plans, and who is who."""

from dataclasses import dataclass
from typing import Annotated

from protocol.limits import SITE_RECORD_MAX, SNAPSHOT_RECORD_MAX
from protocol.messages.fields import Root, Signature, Site, Snapshot, Volume, WantedIds
from protocol.messages.registry import Message, Size, message


@message(code=0x60, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class OfferCopy(Message):
    """`OfferSnapshot`, with what the sender would like of the copy. Answered like it; the receiver decides."""

    record: Annotated[bytes, Size(1, multiple=True, most=SNAPSHOT_RECORD_MAX)]
    every_s: int
    job: str
    keep: str
    """The keep rule that the sender asks for; empty for none."""
    prefix: str
    """What to put before the volume's name there."""
    is_passive: bool
    """Please keep it, and do not offer it onward."""


@message(code=0x61, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class PaceNotice(Message):
    """Send me no more bulk data than this over all our links together, until I say otherwise. Answered by `Noted`."""

    rate_bytes: int
    """Bytes a second; 0 for no limit."""


@message(code=0x62, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Message):
    """Understood and remembered."""


@message(code=0x63, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class HandReceipt(Message):
    """I have fetched this snapshot from you, and sign for it as in `Receipt`. Answered by `Noted`."""

    snapshot_id: Snapshot
    root: Root
    site_id: Site
    received_at_ns: int
    signature: Signature


@message(code=0x64, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeBlocks(Message):
    """Which of these do you lack? I would send them if you did. Answered by `ProbeAnswer`."""

    ids: WantedIds


@message(code=0x65, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer(Message):
    """One bit for each id of the probe, in its order, least significant bit first; 1 is lacking."""

    lacking: bytes


@message(code=0x66, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class WantSiteRecord(Message):
    """Tell me who you are, so that I can introduce you to `reader`. Answered by `SiteRecord`."""

    reader: Site


@message(code=0x67, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord(Message):
    """Who I am, signed by me, for one reader: a record cannot be used for anybody else."""

    record: Annotated[bytes, Size(1, multiple=True, most=SITE_RECORD_MAX)]


@message(code=0x68, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class Introduce(Message):
    """I know this site and vouch for its record. Answered by `Noted`, or refused: what it may do is your decision."""

    record: Annotated[bytes, Size(1, multiple=True, most=SITE_RECORD_MAX)]
    voucher: Signature
    """The sender's, over the record."""


@message(code=0x69, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey(Message):
    """I will be known by another key. Answered by `Noted`. Signed by both keys, and sent over a link of the old one."""

    old: Site
    new: Site
    until_ns: int
    """When the old key stops counting, by the sender's clock."""
    sequence_max: int
    """No snapshot of the old key has a higher sequence than this."""
    by_old: Signature
    by_new: Signature


@message(code=0x6A, since=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyBlocks(Message):
    """I am taking a snapshot that you will be offered, and send its blocks ahead.

    On this stream I send `ProbeBlocks`, each answered by `ProbeAnswer`, and then what you lack of it. My end is a
    `Noted`, answered by one when all of it is stored, not yet durably. Nothing is promised by either side.
    """

    volume_id: Volume
