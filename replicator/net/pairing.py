"""Becoming peers with one short code and no files to copy.

The inviter prints a code: where it listens, its full key, the invite's id and a secret. The
joiner pins that key at once, so nobody in between can play the inviter. It authenticates to
TLS as "a holder of this invite" (a key that both derive from the invite's id), so not even the
pairing is reachable for strangers, and then proves the secret inside the encrypted link.

A code works once, for some minutes, and dies after five wrong secrets. The same joiner may
repeat its last step: the answer may have been lost with the link.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import ErrorCode, ProtocolError
from protocol.ids import SITE_ID_BYTES, SiteId
from protocol.limits import HANDSHAKE_S
from protocol.messages.registry import decode, encode
from protocol.messages.session import PairJoin, PairWelcome, Refusal
from replicator.core.errors import Refused, ReplicatorError, Unreachable, Untrusted, UsageError
from replicator.net.identity import Identity
from replicator.net.ports import Credentials, Network, Transport

_PREFIX: Final = "rp1"
_PROOF: Final = b"replicator pair join v1\0"
INVITE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class PairingCode:
    """What a pairing code says."""

    addresses: tuple[str, ...]
    inviter: SiteId
    invite_id: bytes
    secret: bytes

    def __str__(self) -> str:
        body = self.inviter + self.invite_id + self.secret + ",".join(self.addresses).encode()
        body += zlib.crc32(body).to_bytes(4, "big")
        return f"{_PREFIX}-{base64.b32encode(body).decode().rstrip('=').lower()}"

    @classmethod
    def parse(cls, text: str) -> "PairingCode":
        """Raises `UsageError`: a typing error is found here, without asking anybody."""
        wrong = UsageError("That is not a whole pairing code.", hint="Copy all of what `pair invite` printed.")
        prefix, _, body = text.strip().lower().partition("-")
        if prefix != _PREFIX:
            raise wrong
        try:
            raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
        except ValueError:  # Not base32, or not even ASCII.
            raise wrong from None
        content, check = raw[:-4], raw[-4:]
        if len(content) < SITE_ID_BYTES + 32 or zlib.crc32(content).to_bytes(4, "big") != check:
            raise wrong
        addresses = tuple(content[SITE_ID_BYTES + 32 :].decode(errors="replace").split(","))
        at = SITE_ID_BYTES
        return cls(addresses, SiteId(content[:at]), content[at : at + 16], content[at + 16 : at + 32])


def join_proof(code_id: bytes, inviter: bytes, joiner: bytes) -> bytes:
    """What a joiner signs."""
    return _PROOF + code_id + inviter + joiner


_SENTENCES: Final = {
    ErrorCode.PAIR_CODE_WRONG: "The pairing code is wrong.",
    ErrorCode.PAIR_CODE_USED: "The pairing code was used already, by another site.",
    ErrorCode.PAIR_CODE_EXPIRED: "The pairing code has expired.",
    ErrorCode.PAIR_CODE_DEAD: "The pairing code had too many wrong tries and is dead.",
}


async def join(
    code: PairingCode, identity: Identity, *, name: str, addresses: Sequence[str], network: Network
) -> tuple[PairWelcome, str]:
    """Use a code. Returns what the inviter says of itself, and the address it was reached at.

    Raises `Unreachable`, `Untrusted` or `Refused`.
    """
    request = PairJoin(
        invite_id=code.invite_id,
        secret=code.secret,
        site_id=identity.site_id,
        name=name,
        addresses=tuple(addresses),
        proof=identity.sign(join_proof(code.invite_id, code.inviter, identity.site_id)),
    )
    problem: ReplicatorError = Unreachable("The pairing code names no address.")
    for address in code.addresses:
        try:
            with trio.fail_after(HANDSHAKE_S):
                return await _join_at(network, address, code, request), address
        except (Unreachable, OSError, trio.TooSlowError) as error:
            problem = Unreachable(
                f"{address} does not answer: {error or 'too slow'}.",
                hint="Is the other node up, and is that address reachable from here?",
            )
        except Untrusted as error:
            raise Refused(
                f"The site at {address} does not know this pairing code ({error.message}).",
                hint="It may be a day old, or from another node: ask for a new one with `replicator pair invite`.",
            ) from error
    raise problem


async def _join_at(network: Network, address: str, code: PairingCode, request: PairJoin) -> PairWelcome:
    door = Identity.of_invite(code.invite_id, code.inviter)
    transport = await network.dial(address, Credentials(door, (code.inviter,), is_server=False))
    try:
        await transport.handshake()
        await send_one(transport, encode(request))
        answer = decode(await receive_one(transport))
    except ProtocolError as error:
        raise Unreachable(f"The answer makes no sense: {error.why}") from error
    finally:
        await transport.close()
    if isinstance(answer, Refusal):
        sentence = _SENTENCES.get(ErrorCode(answer.error), answer.reason) if answer.error in set(ErrorCode) else ""
        raise Refused(sentence or answer.reason, hint="Ask for a new one with `replicator pair invite`.")
    if not isinstance(answer, PairWelcome) or answer.site_id != code.inviter:
        raise Untrusted("The site that answered is not the one that the code names.")
    return answer


_PAIR_FRAME_MAX: Final = 8192


async def send_one(transport: Transport, body: bytes) -> None:
    """The pairing conversation is one message each way: a u16 of length, and the message."""
    await transport.send([len(body).to_bytes(2, "big") + body])


async def receive_one(transport: Transport) -> bytes:
    """Raises `Unreachable` if the other side ends before a whole message is there."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        more = await transport.receive()
        if not more or len(data) > _PAIR_FRAME_MAX:
            raise Unreachable("the other side hung up")
        data += more
    return data[2 : 2 + int.from_bytes(data[:2], "big")]
