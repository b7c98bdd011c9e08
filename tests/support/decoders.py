"""Every decoder of bytes that somebody else may have written, or a disk may have spoiled, in one list.

A decoder may refuse with an error of ours and with nothing else; what it accepts it must give back the same.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from blake3 import blake3

from protocol.errors import ProtocolError
from protocol.ids import BLOCK_ID_BYTES, BlockId
from protocol.machines.connection import Connection
from protocol.merkle import cells, codes
from protocol.messages.registry import decode, encode
from protocol.messages.snapshots import DiffNumbers
from protocol.wire.envelope import parse_header, unseal, walk
from protocol.wire.frames import FRAME_HEADER_BYTES, parse_frame_header
from replicator.app.config import StateFolder, load_config
from replicator.app.keys import KeyFolder
from replicator.catalog.manifest.entries import decode_entry, encode_entry
from replicator.catalog.manifest.nodes import Shape, decode_node, encode_node
from replicator.catalog.records import open_record
from replicator.core.errors import ReplicatorError
from replicator.index.roots import pack_roots, unpack_roots
from replicator.index.shelf import Shelf
from replicator.ingest.config import IngestConfig
from replicator.ingest.memo import MemoReader
from replicator.ingest.sources import TreeSource
from replicator.ingest.witness import load_seen
from replicator.net.identity import Identity, site_of_leaf
from replicator.net.pairing import PairingCode
from replicator.net.site_record import open_card
from replicator.store.layout import StoreLayout
from replicator.store.ledger.log import read_log
from replicator.store.ledger.manifest import read_manifest, write_manifest
from replicator.store.ledger.rows import RECORD, unpack_record
from replicator.store.ledger.run import Run
from replicator.store.replay import sound_blocks
from replicator.store.sums import SumFiles
from replicator.sync.difference import DifferenceReader, read_varint
from replicator.sync.seed import _batches, _read_index
from tests.support.cells import CELLS
from tests.support.wire import connection, greeted

Decoder = Callable[[bytes], object]


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


def _records(data: bytes) -> None:
    width = cells.RECORD_BYTES
    whole = data[: len(data) // width * width]
    assert cells.pack_records(*cells.unpack_records(whole)) == whole


def _hear(end: Connection, data: bytes) -> None:
    end.receive_data(data)
    while end.next_event() is not None:
        pass


def _in_file(name: str, read: Callable[[Path], object]) -> Decoder:
    """A decoder that wants a file of that name."""

    def decoder(data: bytes) -> object:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return decoder


def _manifest(path: Path) -> None:
    # Its checksum would refuse all but one of four billion inputs; what lies behind it has to be sound as well.
    path.write_bytes(path.read_bytes() + crc32(path.read_bytes()).to_bytes(4, "little"))
    found = read_manifest(path)
    assert found is not None
    again = path.with_name("again")
    write_manifest(again, found)
    assert read_manifest(again) == found


def _sums(path: Path) -> None:
    # As with the manifest: what lies behind the checksum has to be sound as well.
    path.write_bytes(path.read_bytes() + blake3(path.read_bytes()).digest())
    files = SumFiles(path.parent)
    found = files.load(1)
    files.save(1, found)
    assert files.load(1) == sorted(found)


def _segment(path: Path) -> None:
    with path.open("rb") as file:
        for header, offset in sound_blocks(file.fileno(), 0, path.stat().st_size, unreadable=[]):
            assert offset + header.sealed_bytes <= path.stat().st_size


def _memo(path: Path) -> None:
    reader = MemoReader(path, IngestConfig(), TreeSource(path=path.parent))
    try:
        reader.end()
    finally:
        reader.close()


def _difference(data: bytes) -> None:
    """One message of numbers: the first byte says how many ids there are."""
    ids = bytes(range(BLOCK_ID_BYTES)) * (data[0] if data else 0)
    list(DifferenceReader(Shape.NUMBERS).changes(DiffNumbers(ids=ids, gaps=data[1:])))


def _run(path: Path) -> None:
    run = Run(path, level=0)
    for number in range(run.stretches_count):
        run.stretch(number)


DECODERS: dict[str, Decoder] = {
    **CELLS,
    "message": _message,
    "manifest node": _node,
    "tree entry": _entry,
    "roots": _roots,
    "summary records": _records,
    "summary states": lambda data: codes.decode_states(data[1:], data[0] if data else 0),
    "summary flags": lambda data: codes.decode_flags(data[1:], data[0] if data else 0),
    "frame header": lambda data: parse_frame_header(data[:FRAME_HEADER_BYTES].ljust(FRAME_HEADER_BYTES, b"\0")),
    "greeting of a dialer": lambda data: _hear(connection(is_dialer=False), data),
    "greeting of a listener": lambda data: _hear(connection(is_dialer=True), data),
    "frames of a dialer": lambda data: _hear(greeted(is_dialer=False), data),
    "frames of a listener": lambda data: _hear(greeted(is_dialer=True), data),
    "block header": parse_header,
    "sealed block": unseal,
    "sealed blocks": lambda data: list(walk(data)),
    "snapshot record": open_record,
    "site card": open_card,
    "pairing code": lambda data: PairingCode.parse(data.decode(errors="replace")),
    "varint": lambda data: read_varint(data, 0),
    "ledger log": _in_file("00000001.log", lambda path: list(read_log(path))),
    "ledger run": _in_file("00000001.run", _run),
    "ledger manifest": _in_file("manifest", _manifest),
    "ledger record": lambda data: unpack_record(data[: RECORD.size].ljust(RECORD.size, b"\0")),
    "segment": _in_file("00000001.seg", _segment),
    "sums of a segment": _in_file("00000001.sums", _sums),
    "generation of a store": _in_file("generation", lambda path: StoreLayout(path.parent).read_generation()),
    "ids of a snapshot": _in_file(f"{'00' * 32}.ids", lambda path: Shelf(path.parent).get(BlockId(bytes(32)))),
    "image as it was": _in_file("seen", load_seen),
    "tree as it was": _in_file("memo", _memo),
    "difference": _difference,
    "certificate": site_of_leaf,
    "key of a site": _in_file("identity.key", Identity.load),
    "history of keys": _in_file("identity.history", lambda path: KeyFolder(StateFolder(path.parent)).remembered()),
    "configuration": _in_file("config.toml", load_config),
    "seed index": _in_file("snapshots", lambda path: _read_index(path.parent)),
    "seed blocks": _in_file("blocks-000001", lambda path: list(_batches(path.parent))),
}


def feed(name: str, data: bytes) -> bool:
    """Whether the decoder took it. Raises whatever is neither taken nor refused properly."""
    try:
        DECODERS[name](data)
    except (ProtocolError, ReplicatorError):
        return False
    return True
