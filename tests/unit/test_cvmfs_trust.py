# SPDX-License-Identifier: BSD-3-Clause
"""Every way in which a repository may not be believed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes as primitives
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cernvm.cvmfs import trust
from cernvm.cvmfs.errors import Malformed, Mistake, RolledBack, Untrusted
from cernvm.cvmfs.hashes import Algorithm, ContentHash, hash_of
from cernvm.cvmfs.manifest import Envelope, Manifest, split_envelope, unsigned_envelope
from cernvm.cvmfs.rsa import signed_block_matches
from tests.support.cvmfs import fixture

FQRN = "software.example.org"
NOW = datetime(2030, 5, 6, 7, 30, tzinfo=UTC)


@cache
def key(which: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024 if which == "other" else 2048)


def raw_sign(private: rsa.RSAPrivateKey, block: bytes) -> bytes:
    numbers = private.private_numbers()
    n = numbers.public_numbers.n
    return pow(int.from_bytes(block, "big"), numbers.d, n).to_bytes((n.bit_length() + 7) // 8, "big")


def padded(private: rsa.RSAPrivateKey, payload: bytes, *, fill: bytes = b"\xff", kind: bytes = b"\x01") -> bytes:
    size = private.key_size // 8
    return b"\x00" + kind + fill * (size - 3 - len(payload)) + b"\x00" + payload


def certificate(of: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(of.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    return builder.sign(of, primitives.SHA256())


def whitelist(*lines: str, fqrn: str = FQRN, expires: str = "20300506080000", signer: str = "master") -> Envelope:
    text = "\n".join(["20300101000000", f"E{expires}", f"N{fqrn}", *lines]).encode() + b"\n"
    envelope = unsigned_envelope(text, Algorithm.SHA1)
    return replace(envelope, signature=raw_sign(key(signer), padded(key(signer), envelope.hash_text)))


def masters(*which: str) -> list[trust.MasterKey]:
    return [trust.MasterKey(key(one).public_key(), Path(f"/keys/{one}.pub")) for one in which]


def listed(of: x509.Certificate, algorithm: Algorithm = Algorithm.SHA1) -> str:
    return hash_of(of.public_bytes(Encoding.DER), algorithm).fingerprint()


def test_a_signature_of_the_library_is_accepted() -> None:
    private = key("repository")
    envelope = unsigned_envelope(b"C...\n", Algorithm.SHA1)
    signature = private.sign(envelope.hash_text, padding.PKCS1v15(), primitives.SHA256())
    signed = replace(envelope, signature=signature)
    with pytest.raises(Untrusted, match="signature does not belong"):
        trust.check_manifest_signature(signed, certificate(private), FQRN)
    payload = trust.SHA1_DIGEST_INFO + hashlib.sha1(envelope.hash_text).digest()
    good = replace(envelope, signature=raw_sign(private, padded(private, payload)))
    trust.check_manifest_signature(good, certificate(private), FQRN)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(lambda k, p: padded(k, p, kind=b"\x02"), id="type 2"),
        pytest.param(lambda k, p: padded(k, p, fill=b"\xfe"), id="another filling"),
        pytest.param(lambda k, p: padded(k, p + b"\x00"), id="more after the payload"),
        pytest.param(
            lambda k, p: (b"\x00\x01" + b"\xff" * 8 + b"\x00" + p).ljust(k.key_size // 8, b"\x00"),
            id="short filling, garbage at the end",
        ),
        pytest.param(lambda k, p: b"\x00" * (k.key_size // 8), id="zeros"),
    ],
)
def test_only_the_one_correct_block_is_a_signature(block: object) -> None:
    private, payload = key("repository"), b"0123456789" * 4
    make = block
    assert callable(make)
    assert not signed_block_matches(private.public_key(), raw_sign(private, make(private, payload)), payload)


def test_a_signature_of_another_length_or_beyond_the_modulus_is_none() -> None:
    private, payload = key("repository"), b"text"
    good = raw_sign(private, padded(private, payload))
    public = private.public_key()
    assert signed_block_matches(public, good, payload)
    assert not signed_block_matches(public, good + b"\x00", payload)
    assert not signed_block_matches(public, b"\x00" + good, payload)
    assert not signed_block_matches(public, b"", payload)
    beyond = int.from_bytes(good, "big") + public.public_numbers().n
    if beyond < 1 << 2048:
        assert not signed_block_matches(public, beyond.to_bytes(256, "big"), payload)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_whitelist_with_the_certificate_is_believed(algorithm: Algorithm) -> None:
    mine = certificate(key("repository"))
    envelope = whitelist("garbage", listed(mine, algorithm) + " # me")
    checked = trust.check_whitelist(envelope, masters("other", "master"), FQRN, NOW)
    trust.check_certificate(mine, checked, trust.Blacklist(), FQRN)


@pytest.mark.parametrize(
    ("envelope", "told"),
    [
        pytest.param(
            lambda: whitelist(signer="other"), r"not signed by any of the master keys \(/keys/master.pub\)", id="key"
        ),
        pytest.param(lambda: whitelist(fqrn="else.example.org"), "is for the repository else.example.org", id="name"),
        pytest.param(lambda: whitelist(expires="20300506070000"), "expired on 2030-05-06 07:00 UTC", id="this hour"),
        pytest.param(lambda: whitelist(expires="20290506070000"), "expired on 2029-05-06", id="long ago"),
    ],
)
def test_a_whitelist_that_is_not_good_has_its_sentence(envelope: object, told: str) -> None:
    assert callable(envelope)
    with pytest.raises(Untrusted, match=told):
        trust.check_whitelist(envelope(), masters("master"), FQRN, NOW)


@pytest.mark.parametrize("text", [b"", b"x\n", b"20300101000000\nE2030\nNa.b\n", b"20300101000000\nNa.b\nE2030\n"])
def test_a_malformed_whitelist_is_refused(text: bytes) -> None:
    with pytest.raises(Malformed, match="whitelist"):
        trust.parse_whitelist(text)


def test_a_certificate_has_to_be_listed_and_not_black_listed() -> None:
    mine, other = certificate(key("repository")), certificate(key("other"))
    checked = trust.check_whitelist(whitelist(listed(mine)), masters("master"), FQRN, NOW)
    with pytest.raises(Untrusted, match="is not on the whitelist"):
        trust.check_certificate(other, checked, trust.Blacklist(), FQRN)
    with pytest.raises(Untrusted, match="certificate is black-listed"):
        trust.check_certificate(mine, checked, trust.parse_blacklist(f"# why\n{listed(mine)} # lost\n"), FQRN)


def test_a_black_listed_revision_is_refused() -> None:
    blacklist = trust.parse_blacklist(f"<{FQRN} 10\n<else.example.org 99\nnonsense\n")
    blacklist.check_revision(FQRN, 10)
    with pytest.raises(Untrusted, match="revision 9 is black-listed"):
        blacklist.check_revision(FQRN, 9)


def test_a_certificate_without_rsa_key_signs_nothing() -> None:
    envelope = replace(unsigned_envelope(b"C...\n", Algorithm.SHA1), signature=b"x" * 256)
    with pytest.raises(Untrusted, match="has no RSA key"):
        trust.check_manifest_signature(envelope, certificate(ec.generate_private_key(ec.SECP256R1())), FQRN)
    with pytest.raises(Malformed, match="not a PEM"):
        trust.load_certificate(b"nothing")


def test_an_older_manifest_is_a_roll_back() -> None:
    manifest = Manifest(ContentHash(bytes(20)), FQRN, 5, timestamp=1000)
    for timestamp, revision in ((1000, 5), (999, 5), (1000, 4)):
        trust.check_manifest(manifest, FQRN, trust.Known(ContentHash(bytes(20)), timestamp, revision))
    for timestamp, revision in ((1001, 1), (1000, 6), (999, 9)):
        with pytest.raises(RolledBack, match="older than the known revision"):
            trust.check_manifest(manifest, FQRN, trust.Known(ContentHash(bytes(20)), timestamp, revision))
    with pytest.raises(Untrusted, match=r"is for the repository software\.example\.org"):
        trust.check_manifest(manifest, "else.example.org", None)
    far = replace(manifest, timestamp=10**17)
    with pytest.raises(RolledBack):
        trust.check_manifest(manifest, FQRN, trust.Known(far.root_hash, far.timestamp, 1))


def test_key_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="no public master key is configured"):
        trust.load_master_keys([])
    absent, text, curve = tmp_path / "absent.pub", tmp_path / "text.pub", tmp_path / "curve.pub"
    text.write_text("hello")
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    curve.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for file, told in ((absent, "No such file"), (text, "not a public key"), (curve, "not an RSA public key")):
        with pytest.raises(Mistake, match=rf"{file.name}: .*{told}"):
            trust.load_master_keys([file])


@pytest.mark.parametrize(("name", "fqrn"), [("small", "small.test.org"), ("small-rmd160", "rmd160.test.org")])
def test_the_original_servers_signatures_hold(name: str, fqrn: str) -> None:
    published = fixture(name)
    keys = trust.load_master_keys(sorted((published / "keys").glob("*.pub")))
    signed = split_envelope((published / "repo" / ".cvmfswhitelist").read_bytes(), "the whitelist")
    checked = trust.check_whitelist(signed, keys, fqrn, NOW)
    repository = trust.load_certificate((published / "keys" / f"{fqrn}.crt").read_bytes())
    manifest = split_envelope((published / "repo" / ".cvmfspublished").read_bytes(), "the manifest")
    trust.check_manifest_signature(manifest, repository, fqrn)
    trust.check_certificate(repository, checked, trust.Blacklist(), fqrn)
