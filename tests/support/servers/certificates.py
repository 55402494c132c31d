"""A certificate authority of a test's own, and what it signs."""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_AUTHORITY, _LEAF = (
    x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("unskew tests", "a server or a client")
)
_VALID = dt.timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """PEM files. ``certificate``, ``key``: for a server on 127.0.0.1 or a client; ``both``: both in one file."""

    authority: Path
    certificate: Path
    key: Path
    both: Path


def certified(folder: Path) -> Certificates:
    """A new authority, and a certificate that it signed, in a new ``folder``."""
    folder.mkdir(parents=True)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _builder(root_key, _AUTHORITY).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root_certificate = root.sign(root_key, hashes.SHA256())
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    leaf = _builder(key, _LEAF).add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = leaf.sign(root_key, hashes.SHA256())
    made = Certificates(*(folder / name for name in ("authority.pem", "certificate.pem", "key.pem", "both.pem")))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    made.authority.write_bytes(root_certificate.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(public)
    made.key.write_bytes(private)
    made.both.write_bytes(private + public)
    return made


def _builder(key: ec.EllipticCurvePrivateKey, subject: x509.Name) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_AUTHORITY)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )
