"""Two connections and the wire between them, which delivers as slowly as a test likes."""

from protocol.errors import ProtocolError
from protocol.ids import SiteId
from protocol.machines.connection import Connection
from protocol.machines.events import Event
from protocol.messages.session import Hello
from protocol.messages.versions import CURRENT, OLDEST

DIALER, LISTENER = 0, 1


def hello(name: str = "site") -> Hello:
    return Hello(version_min=OLDEST, version_max=CURRENT, site_id=SiteId(bytes(32)), incarnation=bytes(16), name=name)


def connection(*, is_dialer: bool) -> Connection:
    return Connection(is_dialer=is_dialer, hello=hello("dialer" if is_dialer else "listener"))


def frame_bytes(side: Connection) -> bytes:
    return b"".join(side.next_frame())


def all_frames(side: Connection) -> list[bytes]:
    frames = []
    while side.next_lane() is not None:
        frames.append(frame_bytes(side))
    return frames


def events_of(side: Connection) -> list[Event]:
    events = []
    while (event := side.next_event()) is not None:
        events.append(event)
    return events


def greeted(*, is_dialer: bool) -> Connection:
    """A connection that has heard its peer's hello and written its own."""
    side, peer = connection(is_dialer=is_dialer), connection(is_dialer=not is_dialer)
    side.receive_data(frame_bytes(peer))
    events_of(side)
    all_frames(side)
    return side


def heard(side: Connection, pieces: list[bytes]) -> tuple[list[Event], str]:
    """What a connection makes of these pieces: its events, and the error that ended it, if one did."""
    events: list[Event] = []
    for piece in pieces:
        side.receive_data(piece)
        try:
            while (event := side.next_event()) is not None:
                events.append(event)
        except ProtocolError as error:
            return events, f"{type(error).__name__}: {error}"
    return events, ""


class Pair:
    """A dialer, a listener, and what is on its way between them."""

    def __init__(self) -> None:
        self.sides = (connection(is_dialer=True), connection(is_dialer=False))
        self._wires = (bytearray(), bytearray())  # towards the side of that number
        self.events: tuple[list[Event], list[Event]] = ([], [])

    def write(self, side: int) -> bool:
        """Put one frame on the wire; False if none waits."""
        if self.sides[side].next_lane() is None:
            return False
        self._wires[1 - side].extend(frame_bytes(self.sides[side]))
        return True

    def deliver(self, side: int, count: int | None = None) -> list[Event]:
        """Let that many bytes arrive (all, for None). Returns what they meant."""
        wire = self._wires[side]
        data = bytes(wire[:count])
        del wire[: len(data)]
        self.sides[side].receive_data(data)
        found = events_of(self.sides[side])
        self.events[side].extend(found)
        return found

    def settle(self) -> None:
        """Write and deliver until nothing moves any more."""
        moving = True
        while moving:
            moving = False
            for side in (DIALER, LISTENER):
                while self.write(side):
                    moving = True
                moving = bool(self._wires[1 - side]) or moving
                self.deliver(1 - side)
