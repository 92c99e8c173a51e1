# SPDX-License-Identifier: BSD-3-Clause
"""Who may say what a repository contains: master keys, whitelist, certificate, black list.

Signatures are verified by hand (modular exponentiation and comparison with the one correct padded block), because
hardened OpenSSL policies refuse SHA-1, and because the whitelist's signature has no DigestInfo.  Every refusal is
an `Untrusted` with its own sentence.  Nothing here touches the network.  Thread-safe: values.
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
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from .errors import Malformed, Mistake, RolledBack, Unsupported, Untrusted
from .hashes import ContentHash, hash_of, parse_fingerprint
from .manifest import Envelope, Manifest

SHA1_DIGEST_INFO: Final = bytes.fromhex("3021300906052b0e03021a05000414")
MIN_KEY_BITS: Final = 1024
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
        """Raise Untrusted when `revision` is refused."""
        for name, least in self.least_revisions:
            if name == fqrn and revision < least:
                raise Untrusted(f"{fqrn}: revision {revision} is black-listed (revisions below {least} are refused)")


@dataclass(frozen=True)
class Whitelist:
    """The certificates that may sign a repository, with the date after which nothing is believed."""

    fqrn: str
    expires: datetime
    """UTC, cut to the hour."""
    fingerprints: frozenset[ContentHash]
    flags: frozenset[str] = field(default=frozenset())
    """Lines that ask for another way of checking: `Vpkcs7`, `Wcachain`."""


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


def signed_block_matches(key: RSAPublicKey, signature: bytes, payload: bytes) -> bool:
    """Tell whether `signature` is `payload` in PKCS#1 v1.5 type-1 padding under `key`.

    `payload` is everything after the padding's zero byte: a DigestInfo with digest, or, for whitelists, bare text.
    """
    size = (key.key_size + 7) // 8
    filling = size - 3 - len(payload)
    if len(signature) != size or filling < 8:
        return False
    numbers = key.public_numbers()
    number = int.from_bytes(signature, "big")
    if number >= numbers.n:
        return False
    block = pow(number, numbers.e, numbers.n).to_bytes(size, "big")
    return block == b"\x00\x01" + b"\xff" * filling + b"\x00" + payload


def load_certificate(pem: bytes) -> x509.Certificate:
    """Read the certificate object's content.  Raises Malformed."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise Malformed("the repository's certificate is not a PEM X.509 certificate") from error
    return certificate


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

    Raises Untrusted, Malformed or Unsupported.
    """
    whitelist = parse_whitelist(envelope.text)
    if whitelist.flags:
        raise Unsupported(f"{fqrn}: the whitelist asks for {', '.join(sorted(whitelist.flags))} checks")
    if not any(signed_block_matches(key.key, envelope.signature, envelope.hash_text) for key in keys):
        tried = ", ".join(str(key.origin) for key in keys)
        raise Untrusted(f"{fqrn}: the whitelist is not signed by any of the master keys ({tried})")
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
    if {hash_of(der, entry.algorithm) for entry in blacklist.certificates} & blacklist.certificates:
        raise Untrusted(f"{fqrn}: the repository's certificate is black-listed")


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
    if known is not None and (manifest.timestamp, manifest.revision) < (known.timestamp, known.revision):
        raise RolledBack(
            f"{fqrn}: the server offers revision {manifest.revision} of {_when(manifest.timestamp)}, "
            f"older than the known revision {known.revision} of {_when(known.timestamp)}"
        )


def _when(timestamp: int) -> str:
    try:
        return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"second {timestamp}"
