"""The cluster's certificate authority: made by control at its first start, kept in its state folder, signs who joins.

Certificates name a process by one URI, `foreglow://ROLE/NAME`, and nothing else: hosts may move.
"""

import contextlib
import datetime
import os
import re
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from workers.rpc.transport import SCHEME

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
SKEW = datetime.timedelta(hours=1)  # a host whose clock is behind must not find its certificate not yet valid
SKEW_SHARE = 20  # ... but no more than this part of a short life
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_REQUEST = 8192


class BadRequest(ValueError):
    """What came is no certificate request, or not one that is signed here."""


class Authority:
    """`folder` is closed to others; made whole at first use, whoever else makes it then. Raises OSError, ValueError."""

    def __init__(self, folder: Path) -> None:
        self.certificate_file = folder / "ca.pem"
        key_file = folder / "ca.key"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not key_file.exists():
            keep(key_file, _key_pem(ec.generate_private_key(ec.SECP256R1())), first=True)
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_file} is not the key of an authority")
        self._key = key
        if not self.certificate_file.exists():
            keep(self.certificate_file, _pem(_self_signed(key)), first=True)
        self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())

    @property
    def pem(self) -> str:
        return _pem(self._certificate).decode()

    @property
    def digest(self) -> str:
        """SHA-256 of the certificate, hex: what a join token carries."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def sign(self, request_pem: str, role: str, name: str, now: float, days: float = CERTIFICATE_DAYS) -> tuple[str, str]:
        """Certificate (PEM) and its SHA-256 (hex) for the key of a request; what else the request asks for does not count.
        `now`: seconds since the epoch. Raises BadRequest."""
        if len(request_pem) > MAX_REQUEST:
            raise BadRequest("the certificate request is too long")
        try:
            request = x509.load_pem_x509_csr(request_pem.encode())
            signed = request.is_signature_valid
            key = request.public_key()
        except Exception as error:  # the library raises many kinds for what others wrote
            raise BadRequest("that is no certificate request") from error
        if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadRequest("the certificate request must be signed by a P-256 key")
        began, life = datetime.datetime.fromtimestamp(now, datetime.UTC), datetime.timedelta(days=days)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(f"{role} {name}"))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(began - min(SKEW, life / SKEW_SHARE))
            .not_valid_after(began + life)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{SCHEME}{role}/{name}")]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate).decode(), certificate.fingerprint(hashes.SHA256()).hex()


def make_request(key_file: Path) -> str:
    """A certificate request (PEM) for the key in `key_file` (0600), made when there is none. Raises OSError, ValueError."""
    if not key_file.exists():
        keep(key_file, _key_pem(ec.generate_private_key(ec.SECP256R1())), first=True)
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{key_file} holds another kind of key")
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name("foreglow"))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def keep(path: Path, content: bytes, first: bool = False) -> None:
    """Writes a file (0600) whole or not at all. `first`: the one that is there already stands. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if first:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        else:
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False
    )
    return (
        x509.CertificateBuilder()
        .subject_name(_name("foreglow authority"))
        .issuer_name(_name("foreglow authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
