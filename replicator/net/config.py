"""What an operator can set about the mesh. Apart: the command line reads it, and must not load the mesh for that."""

from dataclasses import dataclass

from protocol.messages.versions import CURRENT


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Where the node listens and how fast it may talk."""

    listen: str = "127.0.0.1:7421"
    advertise: tuple[str, ...] = ()
    """Addresses that peers are told; empty means `listen`."""
    rate_out_bytes: int = 0
    """Bulk bytes a second to all peers together; 0 is no limit."""
    rate_in_bytes: int = 0
    ahead_from_bytes: int = 4 * 1024 * 1024
    """A snapshot that adds less is over before a second question would be answered: nothing of it is sent ahead."""
    protocol_newest: int = CURRENT
    """The newest version of the protocol that peers are offered."""
