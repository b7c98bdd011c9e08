"""restic: to `rclone serve restic` over TLS, and to a folder beside it."""

import datetime
import ipaddress
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.peers.base import Subject, free_port


class ResticLocal(Subject):
    """A repository on the same file system: what an ingest is compared with."""

    name = "restic-local"
    needs: ClassVar[tuple[str, ...]] = ("restic",)
    _more: tuple[str, ...] = ()

    def start(self) -> None:
        self._repository = str(self.work / "repository")
        self.init()

    def init(self) -> None:
        (self.work / "password").write_text("bench")
        self.restic("init")

    def restic(self, *words: str, cwd: Path | None = None) -> str:
        fixed = ("--repo", self._repository, "--password-file", str(self.work / "password"), "--quiet")
        return self.run("restic", *fixed, "--cache-dir", str(self.work / "cache"), *self._more, *words, cwd=cwd)

    def copy(self) -> None:
        self.restic("backup", self.source.name, cwd=self.source.parent)


class ResticTls(ResticLocal):
    """Encrypted at rest, with history; the server stores what it is given."""

    name = "restic"
    needs = ("restic", "rclone")

    def start(self) -> None:
        port = free_port()
        key, certificate = self.work / "key.pem", self.work / "certificate.pem"
        _make_certificate(key, certificate)
        served = self.work / "served"
        served.mkdir()
        self.listen(
            "rclone", "serve", "restic", "--addr", f"127.0.0.1:{port}", "--cert", str(certificate), "--key", str(key),
            "--config", str(self.work / "rclone.conf"), str(served), port=port,
        )  # fmt: skip
        self._repository = f"rest:https://127.0.0.1:{port}/"
        self._more = ("--cacert", str(certificate))
        self.init()


def _make_certificate(key_path: Path, certificate_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_path.write_bytes(key.private_bytes(*plain))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
