# SPDX-License-Identifier: BSD-3-Clause
"""From a storage that may lie to a tree that may be believed: the whole chain, without a network."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cernvm.cvmfs.errors import Malformed, ObjectCorrupt, ObjectMissing, RolledBack, Unsupported, Untrusted
from cernvm.cvmfs.hashes import Kind, hash_of
from cernvm.cvmfs.publish import publish_tree
from cernvm.cvmfs.publish.keys import KeyFiles, load_release
from tests.support.chain import FQRN, Chain, publish_chain


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_chain(tmp_path_factory.mktemp("published"))


@pytest.fixture
def chain(tmp_path: Path, published: Path) -> Chain:
    return Chain(tmp_path, published)


def test_what_is_signed_is_believed_and_remembered(chain: Chain) -> None:
    tree = chain.repository().load()
    assert (tree.manifest.revision, tree.manifest.fqrn) == (2, FQRN)
    assert tree.find(b"/file") is not None
    crumb = (chain.cache.directory / f"cvmfschecksum.{FQRN}").read_text()
    assert crumb == f"{tree.manifest.root_hash}T{tree.manifest.timestamp}R2"


def test_the_time_to_live_is_the_catalogs_cut_by_the_sites(chain: Chain) -> None:
    tree = chain.repository().load()
    assert chain.repository().ttl(tree) == (tree.root.ttl or 240)
    assert chain.repository(max_ttl=60).ttl(tree) == 60


def test_no_news_is_one_request(chain: Chain) -> None:
    repository = chain.repository()
    tree = repository.load()
    before = len(chain.storage.taken)
    assert repository.newer(tree) is None
    assert chain.storage.taken[before:] == [".cvmfspublished"]


def test_a_newer_revision_is_verified_with_a_fresh_whitelist(chain: Chain) -> None:
    repository = chain.repository()
    tree = repository.load()
    (chain.published / "tree" / "file").write_text("changed")
    publish_tree(FQRN, chain.published / "tree", chain.root, chain.published / "keys", jobs=1)
    before = len(chain.storage.taken)
    newer = repository.newer(tree)
    assert newer is not None
    assert newer.manifest.revision == 3
    assert ".cvmfswhitelist" in chain.storage.taken[before:]


def test_a_revision_of_before_is_refused_also_after_a_restart(chain: Chain) -> None:
    old = chain.manifest()
    repository = chain.repository()
    tree = repository.load()
    chain.sign(replace(old, timestamp=old.timestamp - 1, root_hash=hash_of(b"another")))
    with pytest.raises(RolledBack):
        repository.newer(tree)
    with pytest.raises(RolledBack):
        chain.repository().load()


def sign_for_another(chain: Chain) -> None:
    chain.sign(replace(chain.manifest(), fqrn="else.test.org"))


def sign_by_a_stranger(chain: Chain) -> None:
    chain.sign(chain.manifest(), "other-keys")


def forget_the_certificate(chain: Chain) -> None:
    chain.sign(replace(chain.manifest(), certificate=None))


def let_the_whitelist_expire(chain: Chain) -> None:
    chain.now += timedelta(days=40)


def use_the_strangers_certificate(chain: Chain) -> None:
    release = load_release(KeyFiles(chain.published / "other-keys", FQRN))
    manifest = chain.store(release.pem, Kind.CERTIFICATE)
    chain.sign(replace(chain.manifest(), certificate=manifest.root_hash), "other-keys")


def change_the_text(chain: Chain) -> None:
    file = chain.root / ".cvmfspublished"
    file.write_bytes(file.read_bytes().replace(b"\nS2\n", b"\nS9\n"))


def lose_the_whitelist(chain: Chain) -> None:
    (chain.root / ".cvmfswhitelist").unlink()


def break_the_certificate(chain: Chain) -> None:
    certificate = chain.manifest().certificate
    assert certificate is not None
    (chain.root / certificate.path(Kind.CERTIFICATE)).write_bytes(zlib.compress(b"x"))


def inflate_the_certificate(chain: Chain) -> None:
    bomb = chain.store(bytes(64 << 20), Kind.CERTIFICATE)
    chain.sign(replace(chain.manifest(), certificate=bomb.root_hash))


def put_a_page_in_place_of_the_catalog(chain: Chain) -> None:
    chain.sign(chain.store(b"<html>" * 100, Kind.CATALOG))


def make_it_for_members_only(chain: Chain) -> None:
    root = chain.manifest()
    content = zlib.decompress((chain.root / root.root_hash.path(Kind.CATALOG)).read_bytes())
    file = chain.cache.directory / "changed"
    file.write_bytes(content)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("INSERT INTO properties VALUES ('voms_authz', '/some/group')")
    chain.sign(chain.store(file.read_bytes(), Kind.CATALOG))


@pytest.mark.parametrize(
    ("spoil", "error", "told"),
    [
        (sign_for_another, Untrusted, "manifest is for the repository else.test.org"),
        (sign_by_a_stranger, Untrusted, "signature does not belong to the repository's certificate"),
        (forget_the_certificate, Untrusted, "names no certificate"),
        (use_the_strangers_certificate, Untrusted, "certificate is not on the whitelist"),
        (let_the_whitelist_expire, Untrusted, "the whitelist expired on"),
        (change_the_text, Malformed, "does not have the hash that it says"),
        (lose_the_whitelist, ObjectMissing, "no server has .cvmfswhitelist"),
        (break_the_certificate, ObjectCorrupt, "is corrupt"),
        (inflate_the_certificate, ObjectCorrupt, "is longer than"),
        (put_a_page_in_place_of_the_catalog, Malformed, "cannot be read"),
        (make_it_for_members_only, Unsupported, "only members of a group"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_what_may_not_be_believed_is_refused(
    chain: Chain, spoil: Callable[[Chain], None], error: type[Exception], told: str
) -> None:
    spoil(chain)
    with pytest.raises(error, match=told):
        chain.repository().load()
    assert not (chain.cache.directory / f"cvmfschecksum.{FQRN}").exists()


def test_another_master_key_and_a_black_list_refuse(chain: Chain) -> None:
    with pytest.raises(Untrusted, match="not signed by any of the master keys"):
        chain.repository(keys="other-keys").load()
    with pytest.raises(Untrusted, match="revision 2 is black-listed"):
        chain.repository(blacklist=f"<{FQRN} 3").load()
    tree = chain.repository().load()
    with pytest.raises(Untrusted, match="revision 2 is black-listed"):
        chain.repository(blacklist=f"<{FQRN} 3").newer(tree)
