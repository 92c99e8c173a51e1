# SPDX-License-Identifier: BSD-3-Clause
"""Certificate authorities of a test: roots, what they issue, what they revoke, what is signed with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder
from cryptography.x509.oid import NameOID

NOW: Final = datetime(2030, 5, 6, 7, 30, tzinfo=UTC)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def key(name: str) -> Key:
    """A key per name; names that begin with `ec` have one on a curve."""
    return ec.generate_private_key(ec.SECP256R1()) if name.startswith("ec") else rsa.generate_private_key(65537, 2048)


def named(name: str) -> x509.Name:
    """A subject."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Issued:
    """What to issue: `issuer` None signs itself."""

    name: str
    issuer: str | None = None
    authority: bool = False
    length: int | None = None
    uri: str = ""
    begins: datetime = NOW - timedelta(days=1)
    ends: datetime = NOW + timedelta(days=1)
    digest: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)
    extra: x509.ExtensionType | None = None
    """A critical extension."""

    def make(self) -> x509.Certificate:
        """The certificate."""
        issuer = self.issuer or self.name
        built = x509.CertificateBuilder().subject_name(named(self.name)).issuer_name(named(issuer))
        built = built.public_key(key(self.name).public_key()).serial_number(sum(map(ord, self.name)))
        built = built.not_valid_before(self.begins).not_valid_after(self.ends)
        built = built.add_extension(x509.BasicConstraints(self.authority, self.length), critical=True)
        if self.uri:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(self.uri)])
            built = built.add_extension(names, critical=False)
        if self.extra is not None:
            built = built.add_extension(self.extra, critical=True)
        return built.sign(key(issuer), self.digest)  # type: ignore[arg-type]  # one of two that the library names


def revocations(
    issuer: str, revoked: Sequence[x509.Certificate], until: datetime = NOW + timedelta(days=1)
) -> x509.CertificateRevocationList:
    """What an authority has revoked."""
    built = x509.CertificateRevocationListBuilder().issuer_name(named(issuer))
    built = built.last_update(min(NOW, until) - timedelta(days=2)).next_update(until)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(NOW)
        built = built.add_revoked_certificate(entry.build())
    return built.sign(key(issuer), hashes.SHA256())


def message(
    text: bytes,
    signer: x509.Certificate,
    name: str,
    others: Sequence[x509.Certificate] = (),
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = None,
    options: Sequence[PKCS7Options] = (PKCS7Options.Binary,),
) -> bytes:
    """A PEM PKCS#7 message with the text in it, signed by the key `name`."""
    built = PKCS7SignatureBuilder().set_data(text).add_signer(signer, key(name), digest or hashes.SHA256())
    for one in others:
        built = built.add_certificate(one)
    return built.sign(Encoding.PEM, list(options))
