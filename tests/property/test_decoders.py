"""Every decoder, fed with what is nearly right: taken, or refused with an error of ours, and nothing else.

`scripts/fuzz --guided` feeds the same list for as long as one likes, led by coverage.
"""

import json
import struct
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages.registry import encode
from protocol.messages.session import Refusal
from protocol.wire.envelope import seal
from protocol.wire.frames import FrameKind, pack_header
from protocol.wire.hashing import Kind
from replicator.catalog.manifest.nodes import Shape, encode_node, number_key
from replicator.catalog.terms import SyncTerms, encode_terms
from replicator.repair.verdict import Verdict
from tests.support.decoders import DECODERS, feed
from tests.support.wire import all_frames, connection

SEALED = bytes(seal(Kind.DATA, b"words and words and words " * 40))
MESSAGE = encode(Refusal(error=3, reason="because"))
HELLO = b"".join(all_frames(connection(is_dialer=True)))
FRAMES = pack_header(FrameKind.OPEN, 1, len(MESSAGE)) + MESSAGE
"""From a dialer; a listener opens even numbers."""
FINDING = Verdict(what="block", subject="ab", cause="corrupt", place="segment 1", done="healed", is_mended=True)
RIGHT: dict[str, bytes] = {
    "message": MESSAGE,
    "manifest node": encode_node(Shape.PIECES, 0, [number_key(1), number_key(2)], [bytes(36), bytes(36)]),
    "roots": bytes(40),
    "summary records": bytes(64),
    "frame header": pack_header(FrameKind.PING, 0, 8),
    "greeting of a dialer": HELLO,
    "greeting of a listener": b"".join(all_frames(connection(is_dialer=False))),
    "frames of a dialer": FRAMES,
    "frames of a listener": pack_header(FrameKind.OPEN, 2, len(MESSAGE)) + MESSAGE,
    "block header": SEALED,
    "sealed block": SEALED,
    "sealed blocks": SEALED * 3,
    "pairing code": b"rp1-00000000",
    "varint": b"\x85\x01",
    "segment": b"torn" + SEALED * 2,
    "difference": b"\x02\x00\x05",
    "configuration": b'name = "home"\nlisten = "127.0.0.1:7421"\n',
    "generation of a store": b"7\n",
    "seed index": struct.pack(">I", 3) + b"abc",
    "seed blocks": SEALED * 2,
    "cell: what a volume leaves out": b'["*.tmp"]',
    "cell: addresses of a peer": b'["cabin:7421"]',
    "cell: rights of a peer": b'{"may": ["sync"], "volumes": []}',
    "cell: terms of a sync": encode_terms(SyncTerms(tenants=("acme",), cron="0 3 * * *")).encode(),
    "cell: who was told of a key": f'["{"00" * 32}"]'.encode(),
    "cell: arguments of a job": b'{"names": ["\\udcff"]}',
    "cell: result of a job": b'{"blocks": 5}',
    "cell: error of a job": b'{"message": "no", "code": "store"}',
    "fact: records that cannot be read": f'["{"00" * 32}"]'.encode(),
    "fact: peaks": b'{"490000": 12}',
    "fact: a collection that is held": b'{"why": "many", "share": 0.5, "peak": 9}',
    "fact: the day's collections": b'[{"at_ns": 5, "alive": 7}]',
    "fact: copies of a volume": b'{"hour": 5, "count": 2, "counted_ns": 9, "crowded": [4, 5]}',
    "fact: pass of a scrub": b'{"started_ns": 5, "cursor": "x", "is_deep": true}',
    "fact: findings of a scrub": json.dumps([asdict(FINDING)]).encode(),
    "fact: the clock": b'{"last": {"boot": "b", "lived_s": 1.5, "wall_ns": 9}, "drift_s": 0.0}',
}
"""Where there is one, an input that is taken: what is nearly right reaches further than what is not."""


@pytest.mark.parametrize("name", sorted(RIGHT.keys() - {"pairing code"}))
def test_what_is_right_is_taken(name: str) -> None:
    assert feed(name, RIGHT[name])


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(("flip", "cut", "drop", "add", "twice")), st.binary(max_size=9)),
    max_size=6,
)


def mutated(data: bytes, steps: list[tuple[int, str, bytes]]) -> bytes:
    for number, how, more in steps:
        at = number % (len(data) + 1)
        match how:
            case "flip":
                data = data[:at] + bytes(byte ^ (1 << number % 8) for byte in data[at : at + 1]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[at + len(more) :]
            case "add":
                data = data[:at] + more + data[at:]
            case _:
                data = data[:at] + data
    return data


@pytest.mark.parametrize("name", sorted(DECODERS))
@settings(max_examples=150, deadline=None)
@given(steps=MUTATIONS, noise=st.binary(max_size=200))
def test_what_is_nearly_right_is_taken_or_refused_properly(
    name: str, steps: list[tuple[int, str, bytes]], noise: bytes
) -> None:
    feed(name, mutated(RIGHT.get(name, noise), steps))
