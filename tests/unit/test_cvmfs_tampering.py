# SPDX-License-Identifier: BSD-3-Clause
"""Every field and every kind of byte of what a server says, tampered with: each has its sentence, none is shown."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cernvm.cvmfs.errors import CvmfsProblem, Malformed, ObjectCorrupt, ObjectMissing, RolledBack, Untrusted
from cernvm.cvmfs.hashes import Algorithm, Kind, hash_of
from cernvm.cvmfs.manifest import split_envelope, unsigned_envelope
from cernvm.cvmfs.publish.keys import KeyFiles, load_master, load_release, self_signed
from cernvm.cvmfs.publish.sign import sign_raw, sign_sha1
from cernvm.cvmfs.trust import load_master_keys
from tests.support.chain import FQRN, Chain, publish_chain
from tests.support.daemon import ROOT

MANIFEST, WHITELIST = ".cvmfspublished", ".cvmfswhitelist"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_chain(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, published: Path) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"), published)


@pytest.fixture
def chain(shared: Chain) -> Chain:
    """The same storage for all, whole again for each; nothing is known of the repository."""
    for name in (MANIFEST, WHITELIST):
        (shared.root / name).write_bytes((shared.published / "storage" / name).read_bytes())
    for known in shared.cache.directory.glob("cvmfs*"):
        known.unlink()
    return shared


def refusal(chain: Chain) -> CvmfsProblem:
    """What a mount says; and nothing is remembered."""
    with pytest.raises(CvmfsProblem) as refused:
        chain.repository().load()
    assert not list(chain.cache.directory.glob("cvmfs*"))
    assert "\n" not in str(refused.value)
    return refused.value


# --- without the keys: any change is noticed by hash or signature


def fields(name: str) -> list[str]:
    """Each line of the text, by its letter; of the whitelist by its number."""
    return ["C", "B", "R", "D", "S", "G", "A", "N", "X", "H", "T", "M", "Y"] if name == MANIFEST else list("0123")


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in (MANIFEST, WHITELIST) for field in fields(name)])
@pytest.mark.parametrize("rehashed", [False, True])
def test_a_changed_field_is_noticed(chain: Chain, name: str, field: str, rehashed: bool) -> None:
    file = chain.root / name
    envelope = split_envelope(file.read_bytes(), "it")
    lines = envelope.text.split(b"\n")[:-1]
    found = [i for i, line in enumerate(lines) if line[:1] == field.encode() or (name == WHITELIST and str(i) == field)]
    if not found:
        pytest.skip(f"the publisher writes no line {field}")
    line = lines[found[0]]
    lines[found[0]] = line[:-1] + (b"1" if line[-1:] != b"1" else b"2")
    text = b"\n".join(lines) + b"\n"
    hash_text = str(hash_of(text)).encode() if rehashed else envelope.hash_text
    file.write_bytes(replace(envelope, text=text, hash_text=hash_text).join())
    refused = refusal(chain)
    assert isinstance(refused, Untrusted | Malformed | ObjectMissing)
    if not rehashed:
        assert "does not have the hash that it says" in str(refused)


@pytest.mark.parametrize("name", [MANIFEST, WHITELIST])
@pytest.mark.parametrize("part", ["text", "separator", "hash", "newline", "signature"])
@pytest.mark.parametrize("how", ["flip", "cut", "double", "empty"])
def test_no_kind_of_byte_may_change(chain: Chain, name: str, part: str, how: str) -> None:
    file = chain.root / name
    data = file.read_bytes()
    head = data.index(b"\n--\n") + 1
    tail = data.index(b"\n", head + 3)
    spans = {"text": (0, head), "separator": (head, head + 3), "hash": (head + 3, tail)}
    begin, end = (spans | {"newline": (tail, tail + 1), "signature": (tail + 1, len(data))})[part]
    piece, random = data[begin:end], Random(part + how)
    at = random.randrange(len(piece))
    changed = {
        "flip": piece[:at] + bytes([piece[at] ^ 1 << random.randrange(8)]) + piece[at + 1 :],
        "cut": piece[:at] + piece[at + 1 :],
        "double": piece + piece,
        "empty": b"",
    }[how]
    file.write_bytes(data[:begin] + changed + data[end:])
    assert isinstance(refusal(chain), Untrusted | Malformed)


@pytest.mark.parametrize("position", [0, 1, 100, 254, 255])
@pytest.mark.parametrize("name", [MANIFEST, WHITELIST])
def test_every_byte_of_a_signature_counts(chain: Chain, name: str, position: int) -> None:
    file = chain.root / name
    envelope = split_envelope(file.read_bytes(), "it")
    signature = bytearray(envelope.signature)
    signature[position] ^= 1
    file.write_bytes(replace(envelope, signature=bytes(signature)).join())
    told = "does not belong to the repository's certificate" if name == MANIFEST else "not signed by any of the master"
    assert told in str(refusal(chain))


@pytest.mark.parametrize("name", [MANIFEST, WHITELIST])
@pytest.mark.parametrize("data", [b"", b"\n", b"--\n", b"<html>sign in here</html>\n" * 30, b"\xff" * 999, b"\0"])
def test_what_a_captive_portal_answers_is_none(chain: Chain, name: str, data: bytes) -> None:
    (chain.root / name).write_bytes(data)
    assert isinstance(refusal(chain), Malformed)


def test_what_is_far_too_long_is_not_even_read(chain: Chain) -> None:
    (chain.root / MANIFEST).write_bytes(b"C" * (2 << 20))
    assert "more than 1048576 bytes" in str(refusal(chain))


# --- with the keys: a signed text may still say what must not be followed


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"C", "no line C"),
        (b"R", "no line R"),
        (b"D", "no line D"),
        (b"S", "no line S"),
        (b"N", "no line N"),
        (b"X", "names no certificate"),
        (b"Cabc", "not a content hash: 'abc'"),
        (b"C" + b"g" * 40, "not a content hash"),
        (b"Xabc", "not a content hash: 'abc'"),
        (b"Hxyz", "not a content hash: 'xyz'"),
        (b"R" + b"0" * 32, "not describe the root"),
        (b"Dsoon", "line D is not a number"),
        (b"S-1", "line S is not a number"),
        (b"S" + b"9" * 30, "line S is not a number"),
        (b"T1.5", "line T is not a number"),
        (b"Bbig", "line B is not a number"),
        (b"Nelse.test.org", "is for the repository else.test.org"),
        (b"C" + b"0" * 40, "no server has data/00/"),
        (b"X" + b"0" * 40, "no server has data/00/"),
        (b"B1", "longer than the catalog says"),
    ],
)
def test_a_signed_manifest_that_says_nonsense_is_refused(chain: Chain, line: bytes, told: str) -> None:
    manifest = chain.manifest()
    kept = [one for one in manifest.body().split(b"\n")[:-1] if one[:1] != line[:1]]
    text = b"\n".join([*kept, *([line] if len(line) > 1 else [])]) + b"\n"
    chain.cache.forget(str(manifest.root_hash))
    chain.sign_text(text, manifest)
    assert told in str(refusal(chain))


def put_whitelist(chain: Chain, *lines: str, master: str = "keys") -> None:
    envelope = unsigned_envelope("".join(f"{line}\n" for line in lines).encode(), Algorithm.SHA1)
    key = load_master(KeyFiles(chain.published / master, FQRN))
    (chain.root / WHITELIST).write_bytes(replace(envelope, signature=sign_raw(key, envelope.hash_text)).join())


def fingerprint(chain: Chain, algorithm: Algorithm = Algorithm.SHA1) -> str:
    return hash_of(load_release(KeyFiles(chain.published / "keys", FQRN)).der, algorithm).fingerprint()


def expiry(chain: Chain, **delta: float) -> str:
    return f"E{chain.now + timedelta(**delta):%Y%m%d%H%M%S}"


GOOD = ("20300101000000", "", f"N{FQRN}")


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("form", ["{}", "  {}  # the release manager", "{}\t", "{}#"])
def test_a_fingerprint_may_have_any_form(chain: Chain, algorithm: Algorithm, form: str) -> None:
    listed = form.format(fingerprint(chain, algorithm))
    put_whitelist(chain, GOOD[0], expiry(chain, days=1), GOOD[2], "AB:CD", "# nobody", listed)
    assert chain.repository().load().manifest.revision == 2


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("2030", "{E}", "{N}", "{F}"), "does not begin with its dates"),
        (("{C}", "20400101000000", "{N}", "{F}"), "does not begin with its dates"),
        (("{C}", "{N}", "{E}", "{F}"), "does not begin with its dates"),
        (("{C}", "E2040013100000", "{N}", "{F}"), "expiry date is not a date"),
        (("{C}", "E", "{N}", "{F}"), "expiry date is not a date"),
        (("{C}", "E20200101000000", "{N}", "{F}"), "the whitelist expired on 2020-01-01 00:00 UTC"),
        (("{C}", "{E}", "Nelse.test.org", "{F}"), "whitelist is for the repository else.test.org"),
        (("{C}", "{E}", "N", "{F}"), "whitelist is for the repository "),
        (("{C}", "{E}", "{N}"), "certificate is not on the whitelist"),
        (("{C}", "{E}", "{N}", "AB:CD"), "certificate is not on the whitelist"),
        (("{C}", "{E}", "{N}", "#{F}"), "certificate is not on the whitelist"),
        (("{C}", "{E}", "{N}", "{f}"), "certificate is not on the whitelist"),
        (("{C}", "{E}", "{N}", "{F}-RMD160"), "certificate is not on the whitelist"),
        (("{C}", "{E}", "{N}", "{F}", "Wcachain"), "no trusted authority"),
        (("{C}", "{E}", "{N}", "{F}", "Vpkcs7"), "no server has .cvmfswhitelist.pkcs7"),
    ],
)
def test_a_signed_whitelist_that_does_not_allow_it_is_refused(chain: Chain, lines: tuple[str, ...], told: str) -> None:
    own = fingerprint(chain)
    values = {"C": GOOD[0], "E": expiry(chain, days=9), "N": GOOD[2], "F": own, "f": own.lower()}
    put_whitelist(chain, *(line.format(**values) for line in lines))
    assert told in str(refusal(chain))


def test_the_whitelist_expires_as_soon_as_its_hour_has_begun(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    put_whitelist(chain, GOOD[0], "E20300506075959", GOOD[2], fingerprint(chain))
    monkeypatch.setattr(chain, "now", datetime.fromisoformat("2030-05-06T07:00:00+00:00"))
    assert "expired on 2030-05-06 07:00 UTC" in str(refusal(chain))
    monkeypatch.setattr(chain, "now", datetime.fromisoformat("2030-05-06T06:59:59+00:00"))
    assert chain.repository().load().manifest.revision == 2


def test_a_stranger_with_a_master_key_of_his_own_is_refused(chain: Chain) -> None:
    put_whitelist(chain, GOOD[0], expiry(chain, days=9), GOOD[2], fingerprint(chain), master="other-keys")
    assert "not signed by any of the master keys" in str(refusal(chain))


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda stored: stored[:-1], ObjectCorrupt, "is corrupt"),
        (lambda stored: stored + b"x", ObjectCorrupt, "is corrupt"),
        (lambda stored: b"", ObjectCorrupt, "is corrupt"),
        (lambda stored: bytes([stored[0] ^ 1]) + stored[1:], ObjectCorrupt, "is corrupt"),
        (lambda stored: zlib.compress(zlib.decompress(stored), 1), ObjectCorrupt, "is corrupt"),
    ],
)
def test_another_certificate_object_is_noticed(
    chain: Chain, change: Callable[[bytes], bytes], error: type[CvmfsProblem], told: str
) -> None:
    certificate = chain.manifest().certificate
    assert certificate is not None
    file = chain.root / certificate.path(Kind.CERTIFICATE)
    stored = file.read_bytes()
    chain.cache.forget(str(certificate))
    file.write_bytes(change(stored))
    try:
        refused = refusal(chain)
    finally:
        file.write_bytes(stored)
    assert isinstance(refused, error)
    assert told in str(refused)


@pytest.mark.parametrize("field", ["key", "serial", "subject", "dates", "signature", "text"])
def test_every_field_of_a_certificate_counts(chain: Chain, field: str) -> None:
    """Another certificate in the manifest, signed by who holds its key, is not the one that the whitelist lists."""
    release = load_release(KeyFiles(chain.published / "keys", FQRN))
    other = load_release(KeyFiles(chain.published / "other-keys", FQRN))
    private = other.private if field == "key" else release.private
    pems: dict[str, Callable[[], bytes]] = {
        "key": lambda: other.pem,
        "serial": lambda: _pem(self_signed(release.private, FQRN, chain.now)),
        "subject": lambda: _pem(self_signed(release.private, "else.test.org", chain.now)),
        "dates": lambda: _pem(self_signed(release.private, FQRN, chain.now + timedelta(days=1))),
        "signature": lambda: release.pem.replace(b"=", b"", 1) + b"garbage",
        "text": lambda: b"no certificate",
    }
    pem = pems[field]()
    named = replace(chain.manifest(), certificate=chain.store(pem, Kind.CERTIFICATE).root_hash)
    envelope = unsigned_envelope(named.body(), Algorithm.SHA1)
    signed = replace(envelope, signature=sign_sha1(private, envelope.hash_text))
    (chain.root / MANIFEST).write_bytes(signed.join())
    told = "not a PEM X.509 certificate" if field in ("signature", "text") else "is not on the whitelist"
    assert told in str(refusal(chain))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def test_one_of_several_master_keys_is_enough(chain: Chain) -> None:
    keys = [chain.published / name / f"{FQRN}.pub" for name in ("other-keys", "keys")]
    repository = chain.repository()
    repository.anchor = replace(repository.anchor, master_keys=load_master_keys(keys))
    assert repository.load().manifest.revision == 2
    repository.anchor = replace(repository.anchor, master_keys=load_master_keys(keys[:1]))
    with pytest.raises(Untrusted, match="other-keys"):
        repository.load()


def test_what_was_believed_is_remembered_for_its_owner_only(chain: Chain) -> None:
    chain.repository().load()
    for name in (f"cvmfschecksum.{FQRN}", f"cvmfspublished.{FQRN}"):
        assert (chain.cache.directory / name).stat().st_mode & 0o777 == 0o600
    old = chain.manifest()
    chain.sign(replace(old, timestamp=old.timestamp - 1))
    with pytest.raises(RolledBack, match="older than the known revision 2"):
        chain.repository().load()


RESTRICTIVE = """
openssl_conf = main
[main]
alg_section = policy
ssl_conf = ssl
[policy]
default_properties = fips=yes
[ssl]
system_default = strict
[strict]
MinProtocol = TLSv1.3
CipherString = ALL@SECLEVEL=5
"""
CHILD = """
import sys
import _hashlib
from pathlib import Path
try:
    _hashlib.new("sha1", b"x")
except ValueError:
    print("policy holds")
from tests.support.chain import Chain
print(Chain(Path(sys.argv[1]), Path(sys.argv[2])).repository().load().manifest.revision)
"""


def test_a_machine_that_forbids_sha1_believes_the_same(tmp_path: Path, published: Path) -> None:
    """The policy of the whole system's OpenSSL is what a hardened distribution ships, and stricter."""
    (tmp_path / "openssl.cnf").write_text(RESTRICTIVE)
    environment = dict(os.environ, OPENSSL_CONF=str(tmp_path / "openssl.cnf"), PYTHONPATH=f"{ROOT / 'daemons'}:{ROOT}")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "chain", published],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["policy holds", "2"], done.stderr
