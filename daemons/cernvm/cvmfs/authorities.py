# SPDX-License-Identifier: BSD-3-Clause
"""Certificate authorities that a site trusts, and the chains from them to a certificate.

Only for whitelists that ask for it (`Vpkcs7`, `Wcachain`).  RSA signatures are verified by the arithmetic itself, since
system-wide policies may refuse old digests that a site's authority still uses.  Each refusal has its own sentence.
Thread-safe: values.  Enforced by tests/unit/test_cvmfs_pkcs7.py.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509.oid import ExtensionOID

from .errors import Malformed, Mistake, Untrusted
from .rsa import signed_block_matches

log = logging.getLogger(__name__)
MAX_DEPTH: Final = 8
MAX_TRIES: Final = 100
"""Pairs of certificate and possible issuer that one question looks at."""
DIGEST_INFO: Final = {
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
"""What stands before the digest in a PKCS#1 v1.5 signature (RFC 8017, 9.2)."""
_CURVE_HASHES: Final = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
_UNREADABLE: Final = (
    *(ValueError, TypeError, OverflowError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
_UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
"""Extensions that may be marked critical."""


def check_readable(certificate: x509.Certificate) -> x509.Certificate:
    """Return the certificate if all that is ever asked of it can be read: the library looks late.  Raises Malformed."""
    try:
        _ = certificate.subject, certificate.issuer, certificate.serial_number, certificate.public_key()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm
        _ = list(certificate.extensions)
    except _UNREADABLE as error:
        raise Malformed(f"a certificate cannot be read: {error}") from error
    return certificate


@dataclass(frozen=True)
class Authorities:
    """The certificates below the site's directories, and the lists of what they have revoked."""

    certificates: tuple[x509.Certificate, ...] = ()
    revocations: tuple[x509.CertificateRevocationList, ...] = ()
    origin: str = "no directory"

    def check(self, leaf: x509.Certificate, others: Sequence[x509.Certificate], now: datetime, what: str) -> None:
        """Raise Untrusted, about `what`, unless a chain leads from the leaf over `others` to a root of ours."""
        _check_alone(leaf, now, what)
        search = _Search(self, tuple(others), now, what)
        if not search.reaches_root(leaf, 0):
            raise Untrusted(f"{what}: {search.complaint or f'no trusted authority ({self.origin}) has issued it'}")


class _Search:
    """One question for a chain."""

    def __init__(self, store: Authorities, others: tuple[x509.Certificate, ...], now: datetime, what: str) -> None:
        self._store = store
        self._others = others
        self._now = now
        self._what = what
        self._tries = 0
        self.complaint = ""

    def reaches_root(self, certificate: x509.Certificate, depth: int) -> bool:
        """Whether the certificate is a root of the store or is issued by what reaches one."""
        if certificate.subject == certificate.issuer and certificate in self._store.certificates:
            return True
        if depth >= MAX_DEPTH:
            return False
        return any(self.reaches_root(issuer, depth + 1) for issuer in self._issuers(certificate, depth))

    def _issuers(self, certificate: x509.Certificate, depth: int) -> Iterator[x509.Certificate]:
        for candidate in (*self._store.certificates, *self._others):
            if candidate.subject != certificate.issuer or candidate == certificate:
                continue
            self._tries += 1
            if self._tries > MAX_TRIES:
                return
            try:
                _check_alone(candidate, self._now, self._what)
                _check_may_issue(candidate, depth, self._what)
                _check_issued(certificate, candidate, self._what)
                self._check_not_revoked(certificate, candidate)
            except Untrusted as refusal:
                self.complaint = str(refusal).removeprefix(f"{self._what}: ")
                continue
            yield candidate

    def _check_not_revoked(self, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
        for revocation in self._store.revocations:
            if revocation.issuer != issuer.subject:
                continue
            digest = revocation.signature_hash_algorithm
            name = digest.name if digest else ""
            if not signature_fits(issuer, revocation.signature, revocation.tbs_certlist_bytes, name):
                continue  # of another authority with the same name
            until = revocation.next_update_utc
            if until is not None and until < self._now:
                raise Untrusted(f"{self._what}: the revocation list of {_name(issuer)} is out of date since {until}")
            if revocation.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                raise Untrusted(f"{self._what}: {_name(issuer)} has revoked {_name(certificate)}")


def signature_fits(signer: x509.Certificate, signature: bytes, signed: bytes, digest: str) -> bool:
    """Whether the signer's key made `signature` over `signed` with the named digest."""
    key = signer.public_key()
    prefix = DIGEST_INFO.get(digest)
    if isinstance(key, RSAPublicKey) and prefix is not None:
        return signed_block_matches(
            key, signature, prefix + hashlib.new(digest, signed, usedforsecurity=False).digest()
        )
    if isinstance(key, EllipticCurvePublicKey) and digest in _CURVE_HASHES:
        with suppress(InvalidSignature):
            key.verify(signature, signed, ECDSA(_CURVE_HASHES[digest]))
            return True
    return False


def _check_alone(certificate: x509.Certificate, now: datetime, what: str) -> None:
    """What can be said about a certificate without its issuer."""
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Untrusted(
            f"{what}: the certificate of {_name(certificate)} is valid from "
            f"{certificate.not_valid_before_utc} to {certificate.not_valid_after_utc} only"
        )
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise Untrusted(
                f"{what}: the certificate of {_name(certificate)} has the critical extension "
                f"{extension.oid.dotted_string}, which is not understood"
            )


def _check_may_issue(issuer: x509.Certificate, below: int, what: str) -> None:
    """`below`: how many authorities stand between it and the leaf."""
    extensions = issuer.extensions
    try:
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        allowed = basic.ca and (basic.path_length is None or basic.path_length >= below)
    except x509.ExtensionNotFound:
        allowed = False
    with suppress(x509.ExtensionNotFound):
        allowed = allowed and extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    if not allowed:
        raise Untrusted(f"{what}: {_name(issuer)} may not issue certificates")


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    algorithm = certificate.signature_hash_algorithm
    digest = algorithm.name if algorithm else ""
    if not signature_fits(issuer, certificate.signature, certificate.tbs_certificate_bytes, digest):
        raise Untrusted(f"{what}: {_name(issuer)} has not signed the certificate of {_name(certificate)}")


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "an unnamed subject"


def load_authorities(directories: Sequence[Path]) -> Authorities:
    """Read certificates and revocation lists (PEM or DER) from directories; one that is missing is empty.

    Files that are neither are passed over.  Raises Mistake if a directory cannot be read.
    """
    certificates: dict[x509.Certificate, None] = {}
    revocations = []
    for directory in directories:
        try:
            files = sorted(file for file in directory.iterdir() if file.is_file())
            for file in files:
                data = file.read_bytes()
                certificates |= dict.fromkeys(_certificates_in(data))
                revocations += _revocations_in(data)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Mistake(f"{directory}: the certificate authorities cannot be read: {error.strerror}") from error
    return Authorities(tuple(certificates), tuple(revocations), ":".join(map(str, directories)) or "no directory")


def _certificates_in(data: bytes) -> list[x509.Certificate]:
    with suppress(Malformed, *_UNREADABLE):
        if b"-----BEGIN CERTIFICATE-----" in data:
            return [check_readable(one) for one in x509.load_pem_x509_certificates(data)]
        return [check_readable(x509.load_der_x509_certificate(data))]
    return []


def _revocations_in(data: bytes) -> list[x509.CertificateRevocationList]:
    with suppress(*_UNREADABLE):
        pem = b"-----BEGIN X509 CRL-----" in data
        read = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        _ = read.issuer, read.next_update_utc, read.signature_hash_algorithm
        return [read]
    return []
