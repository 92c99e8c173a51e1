# SPDX-License-Identifier: BSD-3-Clause
"""Who may sign: new keys, a repository key that takes over, whitelists signed here or elsewhere.

The master key is needed for `resign_whitelist` and `sign_whitelist` only; it may stay on another machine, where
`sign_whitelist` makes the file that `install_whitelist` takes in here.
Thread rule: one operation belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cernvm.kit.errors import sentence
from cernvm.kit.files import write_atomically

from ..errors import CvmfsProblem, Mistake
from ..hashes import Algorithm, ContentHash, Kind, hash_of
from ..manifest import MAX_ENVELOPE, Manifest, split_envelope
from ..trust import check_manifest_signature, check_whitelist, load_certificate, load_master_keys, parse_whitelist
from .keys import KeyFiles, ensure_keys, load_master, load_release, replace_release
from .revisions import failures, now, read_manifest, require_name
from .sign import Whitelist, require_listed
from .store import MANIFEST, WHITELIST, Store

WHITELIST_DAYS: Final = 30


@dataclass(frozen=True)
class KeyReport:
    """The keys of a repository in one directory."""

    fqrn: str
    directory: Path
    made: tuple[str, ...]
    """Names of the files that were written now."""
    fingerprint: str
    """Of the certificate, SHA-1, as whitelists show it."""


def make_keys(fqrn: str, keys: Path, *, rotate: bool = False) -> KeyReport:
    """Make the keys that are missing; with `rotate` a new repository key and certificate under the same master key.

    The key that is replaced stays beside the new one, with `.old` at its end.  Raises Mistake.
    """
    require_name(fqrn)
    files = KeyFiles(keys, fqrn)
    try:
        if rotate:
            replace_release(files, now())
            made: tuple[str, ...] = (files.release.name, files.certificate.name)
        else:
            made = tuple(path.name for path in files.paths()) if ensure_keys(files, now()) else ()
    except OSError as error:
        raise Mistake(f"cannot write keys: {sentence(error)}") from error
    fingerprint = hash_of(load_release(files).der).fingerprint()
    return KeyReport(fqrn, keys, made, fingerprint)


def resign_whitelist(fqrn: str, storage: Path, keys: Path, *, days: int = WHITELIST_DAYS) -> datetime:
    """Sign a new whitelist for the certificate in `keys`; return when it expires.

    While the served revision is signed by another certificate, that one stays on the list: clients go on reading
    until the next publication, after which `resign` drops it.  Raises Mistake, CvmfsProblem.
    """
    require_name(fqrn)
    files = KeyFiles(keys, fqrn)
    release, master = load_release(files), load_master(files)
    store = Store(storage)
    manifest = read_manifest(store, fqrn)
    algorithm = manifest.root_hash.algorithm
    listed = dict.fromkeys((hash_of(release.der, algorithm), *_serving(store, manifest)))
    begins = now()
    whitelist = Whitelist(fqrn, begins, begins + timedelta(days=days), tuple(listed))
    with failures(), store.writing():
        store.write_root(WHITELIST, whitelist.sign(algorithm, master))
    return whitelist.expires


def _serving(store: Store, manifest: Manifest) -> tuple[ContentHash, ...]:
    """The certificate of the served revision, if the whitelist has it and the signature is good."""
    data, signed = store.read_root(MANIFEST), store.read_root(WHITELIST)
    if manifest.certificate is None or data is None or signed is None:
        return ()
    try:
        certificate = load_certificate(store.read(manifest.certificate, Kind.CERTIFICATE))
        check_manifest_signature(split_envelope(data, MANIFEST), certificate, manifest.fqrn)
        listed = parse_whitelist(split_envelope(signed, WHITELIST).text).fingerprints
    except CvmfsProblem:
        return ()  # nobody could believe it anyway
    der = certificate.public_bytes(Encoding.DER)
    if not any(hash_of(der, fingerprint.algorithm) == fingerprint for fingerprint in listed):
        return ()
    return (hash_of(der, manifest.root_hash.algorithm),)


def sign_whitelist(
    fqrn: str,
    keys: Path,
    certificates: Sequence[Path],
    output: Path,
    *,
    algorithm: Algorithm = Algorithm.SHA1,
    days: int = WHITELIST_DAYS,
) -> datetime:
    """Sign a whitelist for `certificates` into the file `output`, far from any storage; return when it expires.

    Raises Mistake, CvmfsProblem.
    """
    require_name(fqrn)
    master = load_master(KeyFiles(keys, fqrn))
    listed = tuple(dict.fromkeys(hash_of(_der(path), algorithm) for path in certificates))
    begins = now()
    whitelist = Whitelist(fqrn, begins, begins + timedelta(days=days), listed)
    try:
        write_atomically(output, whitelist.sign(algorithm, master))
    except OSError as error:
        raise Mistake(f"the whitelist cannot be written: {sentence(error)}") from error
    return whitelist.expires


def install_whitelist(fqrn: str, storage: Path, source: Path, keys: Path) -> datetime:
    """Take in a whitelist that was signed elsewhere, if clients will believe it; return when it expires.

    `keys` has the public master key and the certificate.  Raises Mistake, Untrusted, CvmfsProblem.
    """
    require_name(fqrn)
    try:
        with source.open("rb") as file:
            data = file.read(MAX_ENVELOPE + 1)
    except OSError as error:
        raise Mistake(f"cannot read the whitelist {sentence(error)}") from error
    store = Store(storage)
    read_manifest(store, fqrn)
    files = KeyFiles(keys, fqrn)
    whitelist = check_whitelist(split_envelope(data, str(source)), load_master_keys([files.public]), fqrn, now())
    require_listed(data, fqrn, _der(files.certificate), now())
    with failures(), store.writing():
        store.write_root(WHITELIST, data)
    return whitelist.expires


def _der(path: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except ValueError:
        raise Mistake(f"{path}: is not a PEM certificate") from None
    except OSError as error:
        raise Mistake(f"cannot read the certificate {sentence(error)}") from error
