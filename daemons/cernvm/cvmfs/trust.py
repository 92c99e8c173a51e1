# SPDX-License-Identifier: BSD-3-Clause
"""Who may say what a repository contains: master keys, whitelist, certificate, black list.

Signatures are verified by the arithmetic itself (`rsa`).  Every refusal is an `Untrusted` with its own sentence.
Nothing here touches the network.  Thread-safe: values.
Format: docs/cvmfs-format.md, "Trust"; enforced by tests/unit/test_cvmfs_trust.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from .authorities import DIGEST_INFO, Authorities, check_readable
from .errors import Malformed, Mistake, Revoked, RolledBack, Untrusted
from .hashes import ContentHash, hash_of, parse_fingerprint
from .manifest import Envelope, Manifest
from .pkcs7 import verified_content
from .rsa import signed_block_matches

SHA1_DIGEST_INFO: Final = DIGEST_INFO["sha1"]
MIN_KEY_BITS: Final = 1024
_EXPIRY: Final = re.compile(r"E[0-9]{14}")
_BLACKLISTED_REVISION: Final = re.compile(r"<\s*(\S+)\s+(\d{1,18})")


@dataclass(frozen=True)
class MasterKey:
    """A public key that the person trusts, and the file that it came from."""

    key: RSAPublicKey
    origin: Path


@dataclass(frozen=True)
class Blacklist:
    """What must not be trusted although it is signed: certificates, and revisions below a number per repository."""

    certificates: frozenset[ContentHash] = frozenset()
    least_revisions: tuple[tuple[str, int], ...] = ()

    def check_revision(self, fqrn: str, revision: int) -> None:
        """Raise Revoked when `revision` is refused."""
        for name, least in self.least_revisions:
            if name == fqrn and revision < least:
                raise Revoked(f"{fqrn}: revision {revision} is black-listed (revisions below {least} are refused)")

    def check_certificate(self, certificate: x509.Certificate, fqrn: str) -> None:
        """Raise Revoked when the certificate is refused."""
        der = certificate.public_bytes(Encoding.DER)
        if {hash_of(der, entry.algorithm) for entry in self.certificates} & self.certificates:
            raise Revoked(f"{fqrn}: the repository's certificate is black-listed")


@dataclass(frozen=True)
class Whitelist:
    """The certificates that may sign a repository, with the date after which nothing is believed."""

    fqrn: str
    expires: datetime
    """UTC, cut to the hour."""
    fingerprints: frozenset[ContentHash]
    flags: frozenset[str] = field(default=frozenset())
    """Lines that ask for more: `Vpkcs7` (believe the PKCS#7 message instead), `Wcachain` (and the authorities)."""


def load_master_keys(files: Sequence[Path]) -> tuple[MasterKey, ...]:
    """Read PEM public keys.  Raises Mistake naming the file, or that there is none."""
    if not files:
        raise Mistake("no public master key is configured: set CVMFS_PUBLIC_KEY or CVMFS_KEYS_DIR")
    return tuple(MasterKey(_load_key(file), file) for file in files)


def _load_key(file: Path) -> RSAPublicKey:
    try:
        key = load_pem_public_key(file.read_bytes())
    except OSError as error:
        raise Mistake(f"{file}: the public master key cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Mistake(f"{file}: not a public key in PEM form") from error
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise Mistake(f"{file}: not an RSA public key of at least {MIN_KEY_BITS} bits")
    return key


def load_certificate(pem: bytes) -> x509.Certificate:
    """Read the certificate object's content.  Raises Malformed."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise Malformed("the repository's certificate is not a PEM X.509 certificate") from error
    return check_readable(certificate)


def check_manifest_signature(envelope: Envelope, certificate: x509.Certificate, fqrn: str) -> None:
    """Raise Untrusted unless the manifest is signed by the certificate's key."""
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise Untrusted(f"{fqrn}: the repository's certificate has no RSA key of at least {MIN_KEY_BITS} bits")
    payload = SHA1_DIGEST_INFO + hashlib.sha1(envelope.hash_text, usedforsecurity=False).digest()
    if not signed_block_matches(key, envelope.signature, payload):
        raise Untrusted(f"{fqrn}: the manifest's signature does not belong to the repository's certificate")


def parse_whitelist(text: bytes) -> Whitelist:
    """Read the lines of a whitelist.  Raises Malformed."""
    lines = text.decode("utf-8", "replace").split("\n")
    if len(lines) < 3 or len(lines[0]) != 14 or lines[1][:1] != "E" or lines[2][:1] != "N":
        raise Malformed("the whitelist does not begin with its dates and its repository name")
    try:
        if not _EXPIRY.fullmatch(lines[1]):
            raise ValueError
        expires = datetime.strptime(lines[1][1:11], "%Y%m%d%H").replace(tzinfo=UTC)
    except ValueError:
        raise Malformed(f"the whitelist's expiry date is not a date: {lines[1][1:30]!r}") from None
    rest = lines[3:]
    return Whitelist(
        fqrn=lines[2][1:],
        expires=expires,
        fingerprints=frozenset(_fingerprints(rest)),
        flags=frozenset(line for line in rest if line in ("Vpkcs7", "Wcachain")),
    )


def _fingerprints(lines: Iterable[str]) -> Iterable[ContentHash]:
    for line in lines:
        fingerprint = parse_fingerprint(line)
        if fingerprint is not None:
            yield fingerprint


def parse_blacklist(text: str) -> Blacklist:
    """Read fingerprint lines and `<REPOSITORY N` lines; others are comments."""
    lines = text.splitlines()
    revisions = (match for line in lines if (match := _BLACKLISTED_REVISION.match(line)))
    return Blacklist(frozenset(_fingerprints(lines)), tuple((match[1], int(match[2])) for match in revisions))


def check_whitelist(envelope: Envelope, keys: Sequence[MasterKey], fqrn: str, now: datetime) -> Whitelist:
    """Return the whitelist if one of the master keys signed it, for this repository, and it has not expired.

    Raises Untrusted or Malformed.
    """
    whitelist = parse_whitelist(envelope.text)
    if not any(signed_block_matches(key.key, envelope.signature, envelope.hash_text) for key in keys):
        tried = ", ".join(str(key.origin) for key in keys)
        raise Untrusted(f"{fqrn}: the whitelist is not signed by any of the master keys ({tried})")
    return _check_terms(whitelist, fqrn, now)


def check_pkcs7_whitelist(data: bytes, authorities: Authorities, fqrn: str, now: datetime) -> Whitelist:
    """Return the whitelist inside a PKCS#7 message that somebody signed who may speak for the repository.

    Raises Untrusted or Malformed.
    """
    text = verified_content(data, authorities, f"cvmfs:{fqrn}", now, f"{fqrn}: the PKCS#7 whitelist")
    return _check_terms(parse_whitelist(text.replace(b"\r\n", b"\n").partition(b"\n--\n")[0] + b"\n"), fqrn, now)


def _check_terms(whitelist: Whitelist, fqrn: str, now: datetime) -> Whitelist:
    if whitelist.fqrn != fqrn:
        raise Untrusted(f"{fqrn}: the server's whitelist is for the repository {whitelist.fqrn}")
    if now >= whitelist.expires:
        raise Untrusted(
            f"{fqrn}: the whitelist expired on {whitelist.expires:%Y-%m-%d %H:%M} UTC; "
            "the repository's owner has to sign it again"
        )
    return whitelist


def check_certificate(certificate: x509.Certificate, whitelist: Whitelist, blacklist: Blacklist, fqrn: str) -> None:
    """Raise Untrusted unless the whitelist lists the certificate and the black list does not."""
    der = certificate.public_bytes(Encoding.DER)
    listed = {hash_of(der, entry.algorithm) for entry in whitelist.fingerprints} & whitelist.fingerprints
    if not listed:
        raise Untrusted(f"{fqrn}: the repository's certificate is not on the whitelist")
    blacklist.check_certificate(certificate, fqrn)


@dataclass(frozen=True)
class Known:
    """The newest state of a repository that this machine has believed."""

    root_hash: ContentHash
    timestamp: int
    revision: int


def check_manifest(manifest: Manifest, fqrn: str, known: Known | None) -> None:
    """Raise Untrusted unless the manifest is this repository's and not older than what is already known."""
    if manifest.fqrn != fqrn:
        raise Untrusted(f"{fqrn}: the server's manifest is for the repository {manifest.fqrn}")
    if known is not None and (manifest.timestamp < known.timestamp or manifest.revision < known.revision):
        raise RolledBack(
            f"{fqrn}: the server offers revision {manifest.revision} of {_when(manifest.timestamp)}, "
            f"older than the known revision {known.revision} of {_when(known.timestamp)}"
        )


def _when(timestamp: int) -> str:
    try:
        return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"second {timestamp}"
