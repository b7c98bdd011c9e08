"""A second client, written from docs/protocol.md and docs/storage.md alone. It imports neither package.

    python client.py CODE VOLUME FILE

uses a pairing code, becomes a peer, fetches the newest snapshot of an image volume block by
block into FILE, verifies everything on the way, and prints what it found as JSON.

Plain blocking sockets and the libraries that any language has: TLS, Ed25519, BLAKE3, msgpack, LZ4.
"""

import base64
import datetime
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
import time
import zlib

import lz4.block
import msgpack
from blake3 import blake3
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HELLO, OPEN, MESSAGE, BLOCKS, RESET, CREDIT, PING, PONG, GOODBYE = range(1, 10)
END_STREAM = 1
CONTROL, SYNC = 0, 3
KINDS = {1: "replicator 2026-11-22 manifest node v1", 2: "replicator 2026-11-22 snapshot record v1"}


# -- trust ------------------------------------------------------------------------------------


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def certificate(subject: str, issuer: str, key, *, signed_by, is_anchor: bool) -> bytes:  # type: ignore[no-untyped-def]
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    constraints = x509.BasicConstraints(ca=is_anchor, path_length=0 if is_anchor else None)
    return (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
        .add_extension(constraints, critical=True)
        .sign(signed_by, None)
        .public_bytes(Encoding.PEM)
    )


def dial(address: str, mine: Ed25519PrivateKey, pinned: bytes) -> ssl.SSLSocket:
    """TLS 1.3 to a site of which nothing is known but its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols(["replicator/1"])
    site, anyone, leaf_key = pinned.hex(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    anchor = certificate(site, site, Ed25519PublicKey.from_public_bytes(pinned), signed_by=anyone, is_anchor=True)
    context.load_verify_locations(cadata=anchor.decode())
    leaf = certificate("replicator node", public(mine).hex(), leaf_key.public_key(), signed_by=mine, is_anchor=False)
    with tempfile.NamedTemporaryFile() as file:
        file.write(leaf + leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        context.load_cert_chain(file.name)
    host, port = address.rsplit(":", 1)
    tls = context.wrap_socket(socket.create_connection((host.strip("[]"), int(port)), timeout=20))
    assert tls.selected_alpn_protocol() == "replicator/1"
    shown = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    assert shown.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == site
    Ed25519PublicKey.from_public_bytes(pinned).verify(shown.signature, shown.tbs_certificate_bytes)
    return tls


def exactly(stream: ssl.SSLSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = stream.recv(min(count - len(data), 1 << 20))
        assert more, "the node hung up"
        data += more
    return bytes(data)


def pair(code: str, mine: Ed25519PrivateKey) -> tuple[bytes, str]:
    """Become a peer. Returns the inviter's site id and address."""
    body = code.removeprefix("rp1-").upper()
    raw = base64.b32decode(body + "=" * (-len(body) % 8))
    assert zlib.crc32(raw[:-4]).to_bytes(4, "big") == raw[-4:]
    inviter, invite_id, secret = raw[:32], raw[32:48], raw[48:64]
    address = raw[64:-4].decode().split(",")[0]
    seed = blake3(invite_id + inviter, derive_key_context="replicator 2026-11-22 pairing door v1").digest()
    proof = mine.sign(b"replicator pair join v1\0" + invite_id + inviter + public(mine))
    join = msgpack.packb([0x10, invite_id, secret, public(mine), "stranger", [], proof])
    with dial(address, Ed25519PrivateKey.from_private_bytes(seed), inviter) as tls:
        tls.sendall(len(join).to_bytes(2, "big") + join)
        welcome = msgpack.unpackb(exactly(tls, int.from_bytes(exactly(tls, 2), "big")))
    assert welcome[0] == 0x11 and welcome[1] == inviter, welcome
    return inviter, address


# -- the conversation -------------------------------------------------------------------------


class Talk:
    """One connection, one question at a time."""

    def __init__(self, tls: ssl.SSLSocket, mine: bytes, theirs: bytes) -> None:
        self.tls, self.next_stream = tls, 1
        self.frame(HELLO, 0, [0x01, 1, 1, mine, os.urandom(16), "stranger"])
        kind, _, _, body = self.read()
        hello = msgpack.unpackb(body)
        assert kind == HELLO and hello[0] == 0x01 and hello[3] == theirs, "the hello names another site than its key"
        assert hello[1] <= 1 <= hello[2], "no version in common"
        self.peer_name = hello[5]

    def frame(self, kind: int, stream: int, body, *, lane: int = CONTROL, flags: int = 0) -> None:  # type: ignore[no-untyped-def]
        data = body if isinstance(body, bytes) else msgpack.packb(body)
        self.tls.sendall(struct.pack(">IBBBBI", len(data), kind, flags, lane, 0, stream) + data)

    def read(self) -> tuple[int, int, int, bytes]:
        length, kind, flags, _lane, reserved, stream = struct.unpack(">IBBBBI", exactly(self.tls, 12))
        assert reserved == 0 and length <= 4_259_840
        return kind, flags, stream, exactly(self.tls, length)

    def ask(self, request, *, lane: int):  # type: ignore[no-untyped-def]
        """Open a stream; yields messages as lists, and runs of sealed blocks as bytes, until it ends."""
        mine, self.next_stream = self.next_stream, self.next_stream + 2
        self.frame(OPEN, mine, request, lane=lane, flags=END_STREAM)
        while True:
            kind, flags, stream, body = self.read()
            if kind == PING:
                self.frame(PONG, 0, body)
            elif kind == OPEN:
                self.frame(RESET, stream, [0x02, 8, "a client answers nothing"])
            elif kind in (RESET, GOODBYE):
                raise SystemExit(f"refused: {msgpack.unpackb(body)}")
            elif stream == mine and kind in (MESSAGE, BLOCKS):
                self.frame(CREDIT, mine, struct.pack(">I", len(body)))
                if body:
                    yield msgpack.unpackb(body) if kind == MESSAGE else body
                if flags & END_STREAM:
                    return


def varints(data: bytes):  # type: ignore[no-untyped-def]
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0


def open_blocks(run: bytes):  # type: ignore[no-untyped-def]
    """The id and the body of each sealed block, proven."""
    at = 0
    while at < len(run):
        magic, version, kind, codec, flags, size, payload_size, name, payload_crc, crc = struct.unpack_from(
            ">4sBBBBII32sII", run, at
        )
        assert magic == b"\x89RSB" and version == 1 and flags == 0 and size <= 4 << 20
        assert crc == zlib.crc32(run[at : at + 52])
        payload = run[at + 56 : at + 56 + payload_size]
        body = payload
        if codec == 1:
            assert zlib.crc32(payload) == payload_crc
            body = lz4.block.decompress(payload, uncompressed_size=size)
        digest = blake3(body).digest() if kind == 0 else blake3(body, derive_key_context=KINDS[kind]).digest()
        assert digest == name and len(body) == size, "a block is not what it says"
        yield name, body
        at += 56 + payload_size


def listed(talk: "Talk") -> list[bytes]:
    """All records that the node shows us. What it shows is decided there, after we have become its peer."""
    for _ in range(100):
        if signed := [one for answer in talk.ask([0x28, b""], lane=CONTROL) for one in answer[1]]:
            return signed
        time.sleep(0.1)
    raise SystemExit("the node shows no snapshot")


def fetch(code: str, volume: str, target: str) -> dict[str, object]:
    mine = Ed25519PrivateKey.generate()
    inviter, address = pair(code, mine)
    with dial(address, mine, inviter) as tls:
        talk = Talk(tls, public(mine), inviter)
        signed = listed(talk)
        records = []
        for one in signed:
            Ed25519PublicKey.from_public_bytes(inviter).verify(
                one[-64:], b"replicator snapshot record v1\0" + one[:-64]
            )
            records.append(msgpack.unpackb(one[:-64]))
        record = max((one for one in records if one[4] == volume), key=lambda one: one[6])
        assert record[2] == inviter and record[5] == "image"
        places: dict[int, bytes] = {}
        last, ends = -1, 0
        for answer in talk.ask([0x24, record[1], b""], lane=SYNC):
            if answer[0] == 0x25:
                ends += 1
                continue
            ids = [answer[2][at : at + 32] for at in range(0, len(answer[2]), 32)]
            for gap, block in zip(varints(answer[1]), ids, strict=True):
                last += gap + 1
                places[last] = block
        assert ends == 2 and len(places) == record[10]
        wanted = list(dict.fromkeys(places.values()))
        bodies: dict[bytes, bytes] = {}
        for at in range(0, len(wanted), 4096):
            for answer in talk.ask([0x30, b"".join(wanted[at : at + 4096])], lane=SYNC):
                if isinstance(answer, bytes):
                    bodies.update(open_blocks(answer))
                else:
                    assert answer == [0x31, b""], "the node lacks some of its own snapshot"
        assert set(bodies) == set(wanted)
        talk.frame(GOODBYE, 0, [0x02, 0, "thank you"])
    with open(target, "wb") as file:
        file.truncate(record[9])
        for number, block in places.items():
            file.seek(number * record[11])
            file.write(bodies[block])
    return {"node": talk.peer_name, "snapshots": len(records), "entries": len(places), "blocks": len(bodies)}


if __name__ == "__main__":
    print(json.dumps(fetch(*sys.argv[1:])))
