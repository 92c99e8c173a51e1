# SPDX-License-Identifier: BSD-3-Clause
"""Whitelists inside PKCS#7 messages, and certificates that an authority has to have issued."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options

from cernvm.cvmfs.authorities import Authorities, load_authorities
from cernvm.cvmfs.errors import Malformed, Mistake, ObjectMissing, Untrusted
from cernvm.cvmfs.hashes import Algorithm, hash_of
from cernvm.cvmfs.manifest import unsigned_envelope
from cernvm.cvmfs.pkcs7 import verified_content
from cernvm.cvmfs.publish.keys import KeyFiles, load_master, load_release
from cernvm.cvmfs.publish.sign import sign_raw
from cernvm.cvmfs.trust import check_pkcs7_whitelist
from cernvm.kit.proc import find_program
from tests.support.authority import NOW, Issued, key, message, revocations
from tests.support.chain import FQRN, Chain, publish_chain

URI = f"cvmfs:{FQRN}"
ROOT = Issued("root", authority=True)
MIDDLE = Issued("middle", "root", authority=True, length=0)
SIGNER = Issued("signer", "root", uri=URI)
STORE = Authorities((ROOT.make(),))
TEXT = f"20300101000000\nE20300506080000\nN{FQRN}\nVpkcs7\n".encode()


def read(data: bytes, store: Authorities = STORE) -> bytes:
    return verified_content(data, store, URI, NOW, "the whitelist")


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["signer", "ec-signer"])
def test_a_text_that_may_be_believed_comes_out(name: str, digest: hashes.SHA256) -> None:
    signer = replace(SIGNER, name=name).make()
    assert read(message(TEXT, signer, name, digest=digest)) == TEXT


def test_a_message_without_signed_attributes_is_read_too() -> None:
    options = [PKCS7Options.Binary, PKCS7Options.NoAttributes]
    assert read(message(TEXT, SIGNER.make(), "signer", options=options)) == TEXT


def test_a_signer_below_another_authority_is_believed() -> None:
    below = replace(SIGNER, issuer="middle").make()
    assert read(message(TEXT, below, "signer", [MIDDLE.make()])) == TEXT
    store = Authorities((ROOT.make(), MIDDLE.make()))
    assert read(message(TEXT, below, "signer"), store) == TEXT
    with pytest.raises(Untrusted, match="no trusted authority"):
        read(message(TEXT, below, "signer"))


def refused(signer: Issued, *others: Issued, store: Authorities = STORE) -> Callable[[], bytes]:
    return lambda: read(message(TEXT, signer.make(), signer.name, [one.make() for one in others]), store)


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        pytest.param(refused(replace(SIGNER, uri="cvmfs:else.test.org")), "is not for cvmfs:chain", id="another name"),
        pytest.param(refused(replace(SIGNER, uri="")), "is not for cvmfs:chain", id="no name"),
        pytest.param(refused(SIGNER, store=Authorities()), "no trusted authority", id="no authority"),
        pytest.param(refused(replace(SIGNER, issuer="stranger")), "no trusted authority", id="a stranger's"),
        pytest.param(
            refused(SIGNER, store=Authorities((replace(ROOT, ends=NOW - timedelta(hours=1)).make(),))),
            "CN=root is valid from",
            id="expired root",
        ),
        pytest.param(
            refused(replace(SIGNER, ends=NOW - timedelta(hours=1))), "CN=signer is valid from", id="expired signer"
        ),
        pytest.param(
            refused(replace(SIGNER, begins=NOW + timedelta(hours=1))), "CN=signer is valid from", id="early signer"
        ),
        pytest.param(
            refused(replace(SIGNER, issuer="middle"), replace(MIDDLE, authority=False, length=None)),
            "CN=middle may not issue",
            id="no authority in between",
        ),
        pytest.param(
            refused(replace(SIGNER, issuer="lower"), MIDDLE, Issued("lower", "middle", authority=True)),
            "CN=middle may not issue",
            id="a path too long",
        ),
        pytest.param(
            refused(replace(SIGNER, extra=x509.PolicyConstraints(1, None))),
            "is not understood",
            id="critical extension",
        ),
        pytest.param(
            refused(SIGNER, store=Authorities((ROOT.make(),), (revocations("root", [SIGNER.make()]),))),
            "CN=root has revoked CN=signer",
            id="revoked",
        ),
        pytest.param(
            refused(SIGNER, store=Authorities((ROOT.make(),), (revocations("root", [], NOW - timedelta(1)),))),
            "revocation list of CN=root is out of date",
            id="old revocation list",
        ),
        pytest.param(
            lambda: (
                read(message(TEXT, SIGNER.make(), "signer"), Authorities((Issued("root", authority=True).make(),)))
                and read(message(TEXT, SIGNER.make(), "signer"), Authorities((replace(ROOT, name="other").make(),)))
            ),
            "no trusted authority",
            id="another root",
        ),
    ],
)
def test_what_may_not_be_believed_has_its_sentence(attempt: Callable[[], bytes], told: str) -> None:
    with pytest.raises(Untrusted, match=told):
        attempt()


def test_a_root_of_the_same_name_with_another_key_issues_nothing() -> None:
    false = replace(ROOT, name="root2")
    certificate = false.make()
    built = x509.CertificateBuilder().subject_name(ROOT.make().subject).issuer_name(ROOT.make().subject)
    built = built.public_key(certificate.public_key()).serial_number(5).not_valid_before(NOW).not_valid_after(NOW)
    built = built.add_extension(x509.BasicConstraints(True, None), critical=True)
    other = built.sign(key("root2"), hashes.SHA256())
    with pytest.raises(Untrusted, match="has not signed"):
        read(message(TEXT, SIGNER.make(), "signer"), Authorities((other,)))


def test_revocation_lists_of_strangers_revoke_nothing() -> None:
    stranger = revocations("root", [SIGNER.make()])
    built = x509.CertificateRevocationListBuilder().issuer_name(ROOT.make().subject).last_update(NOW)
    entry = x509.RevokedCertificateBuilder().serial_number(SIGNER.make().serial_number).revocation_date(NOW).build()
    false = built.next_update(NOW + timedelta(1)).add_revoked_certificate(entry).sign(key("other"), hashes.SHA256())
    assert stranger.issuer == false.issuer
    assert read(message(TEXT, SIGNER.make(), "signer"), Authorities((ROOT.make(),), (false,))) == TEXT


def test_every_byte_of_a_message_counts_or_changes_nothing() -> None:
    good = message(TEXT, SIGNER.make(), "signer")
    lines = good.split(b"-----\n")[1].split(b"\n-----")[0]
    der = base64.b64decode(lines)
    for at in range(0, len(der), 7):
        broken = bytearray(der)
        broken[at] ^= 0x41
        pem = b"-----BEGIN PKCS7-----\n" + base64.encodebytes(bytes(broken)) + b"-----END PKCS7-----\n"
        with suppress(Untrusted, Malformed):
            assert read(pem) == TEXT  # of what is not signed: the version, a name of an algorithm


def test_what_is_no_message_is_refused() -> None:
    for data in (b"", b"<html>", b"-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n"):
        with pytest.raises(Malformed, match="PKCS#7 message"):
            read(data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TEXT.replace(FQRN.encode(), b"else.test.org"), "is for the repository else.test.org"),
        (TEXT.replace(b"E20300506080000", b"E20300506070000"), "expired on 2030-05-06 07:00"),
    ],
)
def test_the_terms_inside_count_as_in_a_plain_one(text: bytes, told: str) -> None:
    with pytest.raises(Untrusted, match=told):
        check_pkcs7_whitelist(message(text, SIGNER.make(), "signer"), STORE, FQRN, NOW)
    assert check_pkcs7_whitelist(message(TEXT, SIGNER.make(), "signer"), STORE, FQRN, NOW).fqrn == FQRN


def test_openssl_signs_what_is_read_here(tmp_path: Path) -> None:
    """With a digest that authorities of long ago use, and streaming, whose lengths are indefinite."""
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "signer.crt").write_bytes(SIGNER.make().public_bytes(Encoding.PEM))
    private = key("signer").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "signer.key").write_bytes(private)
    for command in ("smime", "cms"):
        for more in (["-md", "sha1"], ["-stream"], ["-noattr"]):
            sign = [find_program("openssl"), command, "-sign", "-nodetach", "-binary", "-outform", "PEM", "-in", "text"]
            sign += ["-signer", "signer.crt", "-inkey", "signer.key", "-out", "message", *more]
            done = subprocess.run(sign, cwd=tmp_path, capture_output=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            assert read((tmp_path / "message").read_bytes()) == TEXT


def test_directories_of_authorities_are_read_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "1234abcd.0").write_bytes(ROOT.make().public_bytes(Encoding.PEM))
    (tmp_path / "middle.der").write_bytes(MIDDLE.make().public_bytes(Encoding.DER))
    (tmp_path / "1234abcd.r0").write_bytes(revocations("root", []).public_bytes(Encoding.PEM))
    (tmp_path / "list.der").write_bytes(revocations("middle", []).public_bytes(Encoding.DER))
    (tmp_path / "root.signing_policy").write_text("access_id_CA X509 '/CN=root'\n")
    store = load_authorities([tmp_path, tmp_path / "absent"])
    assert set(store.certificates) == {ROOT.make(), MIDDLE.make()} or len(store.certificates) == 2
    assert len(store.revocations) == 2
    with pytest.raises(Mistake, match="cannot be read"):
        load_authorities([tmp_path / "middle.der"])


# --- in a repository


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_chain(tmp_path_factory.mktemp("published"))


@pytest.fixture
def chain(tmp_path: Path, published: Path) -> Chain:
    made = Chain(tmp_path, published)
    made.now = NOW
    return made


def whitelist(chain: Chain, flag: str, fingerprints: bool = True) -> bytes:
    release = load_release(KeyFiles(chain.published / "keys", FQRN))
    listed = hash_of(release.der).fingerprint() if fingerprints else ""
    return f"20300101000000\nE20400506080000\nN{FQRN}\n{flag}\n{listed}\n".encode()


def put_pkcs7(chain: Chain) -> None:
    plain = unsigned_envelope(whitelist(chain, "Vpkcs7", fingerprints=False), Algorithm.SHA1)
    (chain.root / ".cvmfswhitelist").write_bytes(plain.join())
    signed = message(whitelist(chain, "Vpkcs7"), SIGNER.make(), "signer")
    (chain.root / ".cvmfswhitelist.pkcs7").write_bytes(signed)


def test_a_repository_with_a_pkcs7_whitelist_is_shown_where_its_authority_is_trusted(chain: Chain) -> None:
    put_pkcs7(chain)
    with pytest.raises(Untrusted, match="no trusted authority"):
        chain.repository().load()
    assert chain.repository(authorities=STORE).load().manifest.revision == 2
    (chain.root / ".cvmfswhitelist.pkcs7").unlink()
    (chain.cache.directory / f"cvmfschecksum.{FQRN}").unlink()
    with pytest.raises(ObjectMissing, match="pkcs7"):
        chain.repository(authorities=STORE).load()


def test_a_whitelist_may_ask_that_an_authority_has_issued_the_certificate(chain: Chain, published: Path) -> None:
    files = KeyFiles(published / "keys", FQRN)
    plain = unsigned_envelope(whitelist(chain, "Wcachain"), Algorithm.SHA1)
    signed = replace(plain, signature=sign_raw(load_master(files), plain.hash_text))
    (chain.root / ".cvmfswhitelist").write_bytes(signed.join())
    with pytest.raises(Untrusted, match="the repository's certificate: no trusted authority"):
        chain.repository(authorities=STORE).load()
    own = Authorities((load_release(files).certificate,))
    assert chain.repository(authorities=own).load().manifest.revision == 2
    chain.now = NOW + timedelta(days=9 * 365)
    with pytest.raises(Untrusted, match="is valid from"):
        chain.repository(authorities=own).load()
