"""Coverage-guided fuzzing of every decoder: the first byte chooses one, the rest is its input.

    scripts/fuzz --guided 600

A decoder may refuse with an error of ours and with nothing else; what it accepts it must give
back the same. Needs Atheris, which comes as the extra `fuzz`.
"""

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["protocol", "replicator"]):
    from protocol.errors import ProtocolError
    from protocol.machines.connection import Connection
    from protocol.merkle import codes
    from protocol.messages.registry import decode, encode
    from protocol.wire.envelope import unseal, walk
    from replicator.catalog.manifest.entries import decode_entry, encode_entry
    from replicator.catalog.manifest.nodes import decode_node, encode_node
    from replicator.catalog.records import open_record
    from replicator.core.errors import ReplicatorError
    from replicator.index.roots import pack_roots, unpack_roots
    from replicator.net.pairing import PairingCode
    from replicator.sync.difference import read_varint
    from tests.support.wire import connection, greeted


def _message(data: bytes) -> None:
    item = decode(data)
    assert decode(encode(item)) == item


def _node(data: bytes) -> None:
    node = decode_node(data)
    assert decode_node(encode_node(node.shape, node.level, node.keys, node.values)) == node


def _entry(data: bytes) -> None:
    entry = decode_entry(data)
    assert decode_entry(encode_entry(entry)) == entry


def _roots(data: bytes) -> None:
    whole = data[: len(data) // 40 * 40]
    assert pack_roots(unpack_roots(whole)) == whole


def _hear(end: Connection, data: bytes) -> None:
    end.receive_data(data)
    while end.next_event() is not None:
        pass


DECODERS: tuple[Callable[[bytes], object], ...] = (
    _message,
    _node,
    _entry,
    _roots,
    lambda data: _hear(connection(is_dialer=True), data),
    lambda data: _hear(connection(is_dialer=False), data),
    lambda data: _hear(greeted(is_dialer=True), data),
    lambda data: _hear(greeted(is_dialer=False), data),
    lambda data: codes.decode_states(data[1:], data[0] if data else 0),
    lambda data: codes.decode_flags(data[1:], data[0] if data else 0),
    lambda data: list(walk(data)),
    unseal,
    open_record,
    lambda data: PairingCode.parse(data.decode(errors="replace")),
    lambda data: read_varint(data, 0),
)


def one_input(data: bytes) -> None:
    if data:
        try:
            DECODERS[data[0] % len(DECODERS)](data[1:])
        except (ProtocolError, ReplicatorError):
            return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
