# SPDX-License-Identifier: BSD-3-Clause
"""Repositories that the original server made go on in our hands, under new keys; keys change while clients read."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cernvm.cli import cvmfs_server
from cernvm.cvmfs.errors import Untrusted
from cernvm.cvmfs.manifest import split_envelope
from cernvm.cvmfs.publish import check_repository, publish_tree, read_manifest, resign_whitelist
from cernvm.cvmfs.publish.trustees import install_whitelist, make_keys, sign_whitelist
from cernvm.cvmfs.trust import parse_whitelist
from tests.support.cvmfs import copy_of, fixture, missing
from tests.support.publisher import FQRN, Home, make_home, plant
from tests.support.publisher import make_keys as new_keys
from tests.support.publishing import CHECKER, check, opened

pytestmark = pytest.mark.real


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    status = cvmfs_server.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    return said.out


def listed(storage: Path) -> set[str]:
    text = split_envelope((storage / ".cvmfswhitelist").read_bytes(), "w").text
    return {fingerprint.fingerprint() for fingerprint in parse_whitelist(text).fingerprints}


def test_a_repository_of_the_original_server_is_taken_over_and_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not CHECKER.is_file():
        missing(f"{CHECKER} is not here")
    place, fqrn, keys = fixture("small"), "small.test.org", tmp_path / "keys"
    storage = copy_of(place / "repo", tmp_path / "storage")
    places = ("--storage", storage, "--keys", keys)
    command(capsys, "keys", fqrn, "--keys", keys)
    command(capsys, "resign", fqrn, *places)
    old = check(storage, keys / f"{fqrn}.pub", fqrn)  # its old certificate is on the new list
    plant(tmp_path / "tree", {"new": b"content", "sw/.cvmfscatalog": b"", "sw/f": b"f", "big": os.urandom(6 << 20)})
    done = json.loads(command(capsys, "publish", fqrn, tmp_path / "tree", *places, "--json"))
    assert done["revision"] == 8
    command(capsys, "resign", fqrn, *places)
    assert len(listed(storage)) == 1
    new = check(storage, keys / f"{fqrn}.pub", fqrn)
    assert "'regular': 4" in new
    assert "v3.0" in new
    assert new != old
    assert check_repository(fqrn, storage, public=keys / f"{fqrn}.pub", objects=True).faults == ()
    assert check_repository(fqrn, storage, tag="trunk-previous", objects=True).faults == ()


def test_one_with_another_hash_is_continued(tmp_path: Path) -> None:
    fqrn, keys = "rmd160.test.org", tmp_path / "keys"
    storage = copy_of(fixture("small-rmd160") / "repo", tmp_path / "storage")
    make_keys(fqrn, keys)
    resign_whitelist(fqrn, storage, keys)
    plant(tmp_path / "tree", {"new": b"content"})
    assert publish_tree(fqrn, tmp_path / "tree", storage, keys).revision == 3
    found = check_repository(fqrn, storage, public=keys / f"{fqrn}.pub", objects=True)
    assert (found.faults, found.entries) == ((), 2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path, new_keys(tmp_path / "keys"))


def test_clients_read_on_while_the_repository_key_changes(home: Home) -> None:
    old = listed(home.storage)
    assert make_keys(FQRN, home.keys).made == ()
    new = {make_keys(FQRN, home.keys, rotate=True).fingerprint}
    assert (home.keys / f"{FQRN}.key").stat().st_mode & 0o777 == 0o600
    assert (home.keys / f"{FQRN}.key.old").stat().st_mode & 0o777 == 0o600
    resign_whitelist(FQRN, home.storage, home.keys)
    assert listed(home.storage) == old | new
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        assert revision.tree.manifest.revision == 1
    home.publish()
    resign_whitelist(FQRN, home.storage, home.keys)
    assert listed(home.storage) == new
    with opened(FQRN, home.storage, home.public, home.root / "cache") as revision:
        assert revision.tree.manifest.revision == 2


def test_the_master_key_may_stay_on_another_machine(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    master, signed = home.root / "vault", home.root / "signed"
    master.mkdir()
    (home.keys / f"{FQRN}.masterkey").rename(master / f"{FQRN}.masterkey")
    make_keys_again = (home.keys / f"{FQRN}.crt").read_bytes()
    before = (home.storage / ".cvmfswhitelist").read_bytes()
    certificate = home.keys / f"{FQRN}.crt"
    command(capsys, "whitelist", FQRN, "--sign", signed, "--keys", master, "--certificate", certificate, "--days", "7")
    out = command(
        capsys, "whitelist", FQRN, "--install", signed, "--storage", home.storage, "--keys", home.keys, "--json"
    )
    assert json.loads(out)["whitelist_expires"] > f"{datetime.now(UTC):%Y-%m-%d}"
    assert (home.storage / ".cvmfswhitelist").read_bytes() not in (before, make_keys_again)
    assert home.publish().revision == 2
    assert check_repository(FQRN, home.storage, public=home.public).good


def test_a_whitelist_that_clients_would_refuse_is_not_installed(home: Home, tmp_path: Path) -> None:
    other, signed = new_keys(tmp_path / "other"), tmp_path / "signed"
    sign_whitelist(FQRN, other, [home.keys / f"{FQRN}.crt"], signed)
    before = (home.storage / ".cvmfswhitelist").read_bytes()
    with pytest.raises(Untrusted, match="not signed by any"):
        install_whitelist(FQRN, home.storage, signed, home.keys)
    assert (home.storage / ".cvmfswhitelist").read_bytes() == before
    assert read_manifest(FQRN, home.storage).revision == 1
