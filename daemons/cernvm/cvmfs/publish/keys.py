# SPDX-License-Identifier: BSD-3-Clause
"""The four key files of a repository: made once, never overwritten, read with one sentence for each fault.

`FQRN.masterkey` signs the whitelist, `FQRN.pub` is its public part for clients; `FQRN.key` signs revisions and
`FQRN.crt` is its certificate.  Private files have mode 0600.  Thread-safe: values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from cernvm.kit.errors import sentence
from cernvm.kit.files import write_atomically

from ..errors import Mistake

BITS: Final = 2048
_CERTIFICATE_LIFE: Final = timedelta(days=3650)
"""Clients look at the public key and the fingerprint only, not at these dates."""
_PRIVATE: Final = 0o600


@dataclass(frozen=True)
class KeyFiles:
    """Where the keys of one repository are."""

    directory: Path
    fqrn: str

    @property
    def master(self) -> Path:
        """Private master key."""
        return self.directory / f"{self.fqrn}.masterkey"

    @property
    def public(self) -> Path:
        """Public master key, for clients."""
        return self.directory / f"{self.fqrn}.pub"

    @property
    def release(self) -> Path:
        """Private key of the release managers."""
        return self.directory / f"{self.fqrn}.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the release managers, PEM."""
        return self.directory / f"{self.fqrn}.crt"

    def paths(self) -> tuple[Path, ...]:
        """All four."""
        return self.master, self.public, self.release, self.certificate


@dataclass(frozen=True)
class ReleaseKey:
    """What signs revisions, and the certificate that clients check it with."""

    private: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """The certificate as it is stored in the repository."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        """The certificate as fingerprints are taken of it."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


def ensure_keys(files: KeyFiles, now: datetime) -> bool:
    """Make the four files unless all are there; True if they were made.  Raises Mistake if only some are there."""
    there = [path for path in files.paths() if path.exists()]
    if len(there) == len(files.paths()):
        return False
    if there:
        missing = [path.name for path in files.paths() if path not in there]
        raise Mistake(
            f"{files.directory}: has {', '.join(path.name for path in there)} but not {', '.join(missing)}; "
            "put the missing files back or name another directory for new keys"
        )
    try:
        files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(files, now)
    except OSError as error:
        raise Mistake(f"cannot write keys: {sentence(error)}") from error
    return True


def replace_release(files: KeyFiles, now: datetime) -> None:
    """Make a new repository key and certificate; the old ones stay, with `.old` at their end.  Raises Mistake, OSError.

    The master key is not needed.
    """
    load_release(files)
    for path in (files.release, files.certificate):
        write_atomically(
            path.with_name(path.name + ".old"), _read(path), mode=_PRIVATE if path == files.release else 0o644
        )
    _make_release(files, now)


def _make_release(files: KeyFiles, now: datetime) -> None:
    release = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    certificate = self_signed(release, files.fqrn, now)
    write_atomically(files.release, _pem(release), mode=_PRIVATE)
    write_atomically(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _make(files: KeyFiles, now: datetime) -> None:
    master = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    public = master.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_atomically(files.master, _pem(master), mode=_PRIVATE)
    write_atomically(files.public, public)
    _make_release(files, now)


def self_signed(key: rsa.RSAPrivateKey, fqrn: str, now: datetime) -> x509.Certificate:
    """Certify `key` by itself under the name that the original server gives."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{fqrn} CernVM-FS Release Managers"[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _CERTIFICATE_LIFE)
        .sign(key, hashes.SHA256())
    )


def load_master(files: KeyFiles) -> rsa.RSAPrivateKey:
    """Read the private master key.  Raises Mistake."""
    return _private(files.master)


def load_public(files: KeyFiles) -> rsa.RSAPublicKey:
    """Read the public master key.  Raises Mistake."""
    try:
        key = serialization.load_pem_public_key(_read(files.public))
    except ValueError:
        raise Mistake(f"{files.public}: is not a PEM public key") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise Mistake(f"{files.public}: is not an RSA key")
    return key


def load_release(files: KeyFiles) -> ReleaseKey:
    """Read the release managers' key and certificate, and see that they belong together.  Raises Mistake."""
    private = _private(files.release)
    try:
        certificate = x509.load_pem_x509_certificate(_read(files.certificate))
    except ValueError:
        raise Mistake(f"{files.certificate}: is not a PEM certificate") from None
    public = certificate.public_key()
    if not isinstance(public, rsa.RSAPublicKey) or public.public_numbers() != private.public_key().public_numbers():
        raise Mistake(f"{files.release}: is not the private key of the certificate {files.certificate.name}")
    return ReleaseKey(private, certificate)


def _private(path: Path) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError):
        raise Mistake(f"{path}: is not a PEM private key without a password") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise Mistake(f"{path}: is not an RSA key")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Mistake(f"{path}: key file is missing; --keys names the directory that mkfs wrote") from None
    except OSError as error:
        raise Mistake(f"cannot read the key file {sentence(error)}") from error


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
