"""Asking for blocks by name."""

from dataclasses import dataclass

from protocol.messages.fields import Ids, WantedIds
from protocol.messages.registry import Message, message


@message(code=0x30, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class WantBlocks(Message):
    """Please stream these blocks. Answered by BLOCKS frames in an order that suits your disk, then `BlocksSent`."""

    ids: WantedIds


@message(code=0x31, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksSent(Message):
    """That was all that I could send."""

    missing: Ids
    """What was asked for and is not here, or is here and unsound."""
