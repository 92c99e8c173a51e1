# SPDX-License-Identifier: BSD-3-Clause
"""Keys are kept and signatures are made so that openssl(1), a stranger to this code, accepts them."""

from __future__ import annotations

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cernvm.cvmfs.errors import CvmfsProblem, Malformed, Mistake, Untrusted
from cernvm.cvmfs.hashes import Algorithm, hash_of
from cernvm.cvmfs.manifest import split_envelope
from cernvm.cvmfs.publish.keys import KeyFiles, ensure_keys, load_master, load_release
from cernvm.cvmfs.publish.sign import Whitelist, require_listed, sign_manifest, sign_raw
from cernvm.cvmfs.trust import MasterKey, check_manifest_signature, check_whitelist, load_master_keys
from cernvm.kit.proc import find_program

FQRN = "sign.test.org"
NOW = datetime(2026, 3, 4, 5, 50, 7, tzinfo=UTC)
BODY = b"Cffff\nNsign.test.org\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    files = KeyFiles(tmp_path_factory.mktemp("keys") / "made", FQRN)
    assert ensure_keys(files, NOW)
    return files


def openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(
        [find_program("openssl"), *map(str, arguments)], input=data, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def public_of_certificate(keys: KeyFiles, tmp_path: Path) -> Path:
    path = tmp_path / "release.pub"
    path.write_bytes(openssl("x509", "-in", keys.certificate, "-pubkey", "-noout"))
    return path


def whitelist(keys: KeyFiles, *, days: int = 30, algorithm: Algorithm = Algorithm.SHA1) -> bytes:
    listed = hash_of(load_release(keys).der, algorithm)
    return Whitelist(FQRN, NOW, NOW + timedelta(days=days), (listed,)).sign(algorithm, load_master(keys))


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_openssl_accepts_the_signature_of_a_manifest(keys: KeyFiles, tmp_path: Path, algorithm: Algorithm) -> None:
    envelope = split_envelope(sign_manifest(BODY, algorithm, load_release(keys).private), "manifest")
    signature = tmp_path / "signature"
    signature.write_bytes(envelope.signature)
    text = openssl(
        *("pkeyutl", "-verifyrecover", "-pubin", "-inkey", public_of_certificate(keys, tmp_path)),
        *("-pkeyopt", "digest:sha1", "-in", signature),
    )
    assert text == openssl("dgst", "-sha1", "-binary", data=envelope.hash_text)


def test_openssl_recovers_the_hash_from_the_signature_of_a_whitelist(keys: KeyFiles, tmp_path: Path) -> None:
    envelope = split_envelope(whitelist(keys), "whitelist")
    signature = tmp_path / "signature"
    signature.write_bytes(envelope.signature)
    plain = openssl("pkeyutl", "-verifyrecover", "-pubin", "-inkey", keys.public, "-in", signature)
    assert plain == envelope.hash_text
    assert len(plain) == 40


def test_openssl_reads_the_certificate_with_the_name_of_the_release_managers(keys: KeyFiles) -> None:
    text = openssl("x509", "-in", keys.certificate, "-noout", "-subject", "-text").decode()
    assert f"CN = {FQRN} CernVM-FS Release Managers" in text
    assert "2048 bit" in text


def test_the_reading_side_accepts_what_is_signed(keys: KeyFiles) -> None:
    release = load_release(keys)
    envelope = split_envelope(sign_manifest(BODY, Algorithm.SHA1, release.private), "manifest")
    check_manifest_signature(envelope, release.certificate, FQRN)
    masters = load_master_keys([keys.public])
    checked = check_whitelist(split_envelope(whitelist(keys), "whitelist"), masters, FQRN, NOW)
    assert checked.fingerprints == {hash_of(release.der)}


def test_the_reading_side_refuses_a_whitelist_of_another_master_key(keys: KeyFiles, tmp_path: Path) -> None:
    other = KeyFiles(tmp_path, FQRN)
    ensure_keys(other, NOW)
    stranger = MasterKey(load_master_keys([other.public])[0].key, other.public)
    with pytest.raises(Untrusted, match="not signed by any"):
        check_whitelist(split_envelope(whitelist(keys), "whitelist"), [stranger], FQRN, NOW)


def test_private_keys_are_private(keys: KeyFiles) -> None:
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in keys.paths()}
    assert modes == {".masterkey": 0o600, ".key": 0o600, ".pub": 0o644, ".crt": 0o644}
    assert stat.S_IMODE(keys.directory.stat().st_mode) == 0o700


def test_complete_keys_are_kept(keys: KeyFiles) -> None:
    before = [path.read_bytes() for path in keys.paths()]
    assert not ensure_keys(keys, NOW)
    assert [path.read_bytes() for path in keys.paths()] == before


def test_incomplete_keys_are_not_completed(keys: KeyFiles, tmp_path: Path) -> None:
    partial = KeyFiles(tmp_path, FQRN)
    partial.master.write_bytes(keys.master.read_bytes())
    with pytest.raises(Mistake, match=r"has sign\.test\.org\.masterkey but not sign\.test\.org\.pub, "):
        ensure_keys(partial, NOW)
    assert [path.name for path in tmp_path.iterdir()] == [partial.master.name]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("key", None, "key file is missing"),
        ("crt", None, "key file is missing"),
        ("key", b"no key", "is not a PEM private key"),
        ("crt", b"no certificate", "is not a PEM certificate"),
    ],
)
def test_a_bad_key_file_is_named(
    keys: KeyFiles, tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    copy = KeyFiles(tmp_path, FQRN)
    for path in keys.paths():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / f"{FQRN}.{name}"
    bad.unlink() if content is None else bad.write_bytes(content)
    with pytest.raises(Mistake, match=complaint) as caught:
        load_release(copy)
    assert str(caught.value).startswith(str(bad))


def test_a_key_of_another_certificate_is_refused(keys: KeyFiles, tmp_path: Path) -> None:
    other = KeyFiles(tmp_path, FQRN)
    ensure_keys(other, NOW)
    other.certificate.write_bytes(keys.certificate.read_bytes())
    with pytest.raises(Mistake, match="is not the private key of the certificate"):
        load_release(other)


def test_a_message_longer_than_the_key_is_refused(keys: KeyFiles) -> None:
    key = load_release(keys).private
    assert len(sign_raw(key, b"x" * 245)) == 256
    with pytest.raises(CvmfsProblem, match="cannot sign 246 bytes"):
        sign_raw(key, b"x" * 246)


@pytest.mark.parametrize(
    ("moment", "refused"),
    [
        (NOW, False),
        (NOW.replace(minute=0) + timedelta(days=30, seconds=-8), False),
        (NOW.replace(minute=0, second=0) + timedelta(days=30), True),
        (NOW + timedelta(days=31), True),
    ],
)
def test_a_whitelist_ends_with_the_hour_before_its_last(keys: KeyFiles, moment: datetime, refused: bool) -> None:
    der = load_release(keys).der
    if not refused:
        require_listed(whitelist(keys), FQRN, der, moment)
        return
    with pytest.raises(Mistake, match="expired at 2026-04-03 05:00 UTC; renew it with 'cvmfs-server resign'"):
        require_listed(whitelist(keys), FQRN, der, moment)


def test_a_whitelist_that_does_not_list_the_certificate_is_refused(keys: KeyFiles, tmp_path: Path) -> None:
    other = KeyFiles(tmp_path, FQRN)
    ensure_keys(other, NOW)
    with pytest.raises(Mistake, match="does not list the certificate"):
        require_listed(whitelist(keys), FQRN, load_release(other).der, NOW)


def test_a_whitelist_of_another_repository_is_refused(keys: KeyFiles) -> None:
    with pytest.raises(Untrusted, match=r"is for sign\.test\.org, not for other\.test\.org"):
        require_listed(whitelist(keys), "other.test.org", load_release(keys).der, NOW)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_whitelists_list_the_certificate_by_every_hash(keys: KeyFiles, algorithm: Algorithm) -> None:
    require_listed(whitelist(keys, algorithm=algorithm), FQRN, load_release(keys).der, NOW)


def test_a_damaged_whitelist_is_refused(keys: KeyFiles) -> None:
    with pytest.raises(Malformed):
        require_listed(whitelist(keys).replace(b"Nsign", b"Nsigm"), FQRN, b"", NOW)
