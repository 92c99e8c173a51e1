# SPDX-License-Identifier: BSD-3-Clause
"""Signatures over manifests and whitelists, by the RSA operation itself.

The format asks for SHA-1 (manifest) and for a padding without any digest name (whitelist); hardened systems refuse
both in their cryptographic library.  The arithmetic is short: pad, raise to the private exponent by the Chinese
remainder theorem, and check the result with the public exponent before it leaves.  It is not constant in time: run
it where no stranger shares the machine's clock.  Thread-safe: pure.
Format: docs/cvmfs-publishing.md, "Signatures"; openssl(1) is the witness in tests/unit/test_publish_sign.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from ..errors import CvmfsProblem, Mistake, Untrusted
from ..hashes import Algorithm, ContentHash, hash_of
from ..manifest import split_envelope, unsigned_envelope
from ..trust import SHA1_DIGEST_INFO, parse_whitelist

_STAMP: Final = "%Y%m%d%H%M%S"
_MIN_PADDING: Final = 11


def sign_raw(key: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """RSA with PKCS#1 v1.5 type 1 padding around `message` as it is.  Raises CvmfsProblem if it does not fit."""
    numbers = key.private_numbers()
    public = numbers.public_numbers
    size = (public.n.bit_length() + 7) // 8
    if len(message) + _MIN_PADDING > size:
        raise CvmfsProblem(f"an RSA key of {size * 8} bits cannot sign {len(message)} bytes")
    padded = b"\0\1" + b"\xff" * (size - len(message) - 3) + b"\0" + message
    value = int.from_bytes(padded, "big")
    one = pow(value, numbers.dmp1, numbers.p)
    two = pow(value, numbers.dmq1, numbers.q)
    signature = two + numbers.q * ((one - two) * numbers.iqmp % numbers.p)
    if pow(signature, public.e, public.n) != value:
        raise CvmfsProblem("the RSA key does not fit together: its signature does not verify")
    return signature.to_bytes(size, "big")


def sign_sha1(key: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """RSA PKCS#1 v1.5 with SHA-1 of `message`."""
    return sign_raw(key, SHA1_DIGEST_INFO + hashlib.sha1(message, usedforsecurity=False).digest())


def sign_manifest(body: bytes, algorithm: Algorithm, key: rsa.RSAPrivateKey) -> bytes:
    """The file `.cvmfspublished` for the letter lines `body`."""
    envelope = unsigned_envelope(body, algorithm)
    return replace(envelope, signature=sign_sha1(key, envelope.hash_text)).join()


@dataclass(frozen=True)
class Whitelist:
    """What the master key says: these certificates may sign for `fqrn` until `expires` (UTC, by the hour)."""

    fqrn: str
    created: datetime
    expires: datetime
    fingerprints: tuple[ContentHash, ...]

    def body(self) -> bytes:
        """The text that is signed."""
        lines = [
            self.created.astimezone(UTC).strftime(_STAMP),
            "E" + self.expires.astimezone(UTC).strftime(_STAMP),
            "N" + self.fqrn,
            *(fingerprint.fingerprint() for fingerprint in self.fingerprints),
        ]
        return "".join(line + "\n" for line in lines).encode()

    def sign(self, algorithm: Algorithm, master: rsa.RSAPrivateKey) -> bytes:
        """The file `.cvmfswhitelist`."""
        envelope = unsigned_envelope(self.body(), algorithm)
        return replace(envelope, signature=sign_raw(master, envelope.hash_text)).join()


def require_listed(data: bytes, fqrn: str, der: bytes, now: datetime) -> None:
    """See that clients will accept what the certificate `der` signs under this whitelist.

    Raises Malformed, Untrusted or (for what `cvmfs-server resign` mends) Mistake.
    """
    whitelist = parse_whitelist(split_envelope(data, "the whitelist").text)
    if whitelist.fqrn != fqrn:
        raise Untrusted(f"the whitelist is for {whitelist.fqrn}, not for {fqrn}")
    if now >= whitelist.expires:
        raise Mistake(
            f"the whitelist of {fqrn} expired at {whitelist.expires:%Y-%m-%d %H:00} UTC; "
            "renew it with 'cvmfs-server resign'"
        )
    if not any(hash_of(der, listed.algorithm) == listed for listed in whitelist.fingerprints):
        raise Mistake(
            f"the whitelist of {fqrn} does not list the certificate {fqrn}.crt; "
            "use the keys of this repository or sign a new whitelist with 'cvmfs-server resign'"
        )
