"""A site is an Ed25519 key.

TLS wants certificates, and a certificate can expire or be renewed while the key stays; so
peers pin the *key*. A node signs a throw-away leaf certificate with its site key at each
start. Whoever pins that key makes, from the key alone, a trust anchor with the matching name:
OpenSSL then accepts any leaf that the site key has signed, and nothing else. No certificate
is ever exchanged beforehand, and none can run out.

Validity dates are set wide open on purpose: the pin decides, not a clock that may be wrong.
"""

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from protocol.ids import SiteId
from protocol.wire.hashing import derived_key
from replicator.core.errors import ConfigError, Untrusted
from replicator.core.files import write_durably

_NOT_BEFORE = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class Identity:
    """The private half of a site (or, while pairing, of an invite)."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.site_id = SiteId(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> "Identity":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def of_invite(cls, invite_id: bytes, inviter: SiteId) -> "Identity":
        """A key that any holder of a pairing code can derive: it opens the door, the secret opens the house."""
        seed = derived_key("replicator 2026-11-22 pairing door v1", invite_id + inviter)
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Raises `ConfigError` if the file is not there or is not an Ed25519 key."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            message = f"The site's key at {path} cannot be read: {error}."
            raise ConfigError(message, hint="Restore it from a copy.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"The key at {path} is not an Ed25519 key.")
        return cls(key)

    def save(self, path: Path) -> None:
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_durably(path, pem, mode=0o600)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def leaf_file(self) -> int:
        """A memory file with a fresh leaf certificate and its key, as `ssl` wants to read them."""
        leaf_key = Ed25519PrivateKey.generate()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "replicator node")]))
            .issuer_name(_name_of(self.site_id))
            .public_key(leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_NOT_BEFORE)
            .not_valid_after(_NOT_AFTER)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, None)
        )
        handle = os.memfd_create("leaf", os.MFD_CLOEXEC)
        os.write(handle, certificate.public_bytes(Encoding.PEM))
        os.write(handle, leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return handle


def _name_of(site_id: bytes) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site_id.hex())])


def trust_anchor(site_id: SiteId) -> str:
    """A PEM certificate that makes OpenSSL trust whatever `site_id`'s key has signed.

    It is signed by a throw-away key: a verifier never checks the signature of what it was told to trust.
    """
    name = _name_of(site_id)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(Ed25519PublicKey.from_public_bytes(site_id))
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(Ed25519PrivateKey.generate(), None)
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def site_of_leaf(leaf_der: bytes | None) -> SiteId:
    """Whose key signed the leaf that a finished handshake showed. Raises `Untrusted`.

    OpenSSL has checked it against the anchors already; this says *which* of them it was, and
    proves it once more with the key itself.
    """
    if leaf_der is None:
        raise Untrusted("The other side showed no certificate.")
    try:
        leaf = x509.load_der_x509_certificate(leaf_der)  # Stricter than OpenSSL, which has let it pass.
        names = leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        site = bytes.fromhex(str(names[0].value))
        Ed25519PublicKey.from_public_bytes(site).verify(leaf.signature, leaf.tbs_certificate_bytes)
    except Exception as error:
        raise Untrusted(f"The other side's certificate proves nothing: {error!r}.") from error
    return SiteId(site)
