"""ioGuardian: asking a peer for a block that has rotted or gone."""

from dataclasses import dataclass

from protocol.messages.fields import WantedIds
from protocol.messages.registry import Message, message


@message(code=0x50, since=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class RepairBlocks(Message):
    """My copies of these are broken; please give me yours. Answered like `WantBlocks`, on the repair lane."""

    ids: WantedIds
    cause: str
    """What was found: `corrupt`, `missing`, `unreadable`. For the audit line of the one who serves."""
