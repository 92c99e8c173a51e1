# SPDX-License-Identifier: BSD-3-Clause
"""Catalogs of other revisions bound into a tree (`/.cvmfs/snapshots/TAG`), and what is hidden from listings."""

from __future__ import annotations

import sqlite3
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cernvm.cvmfs import flags
from cernvm.cvmfs.errors import Malformed
from cernvm.cvmfs.hashes import ContentHash, Kind, hash_of, path_hash
from cernvm.cvmfs.inodes import ROOT
from cernvm.cvmfs.manifest import parse_manifest, split_envelope, unsigned_envelope
from cernvm.cvmfs.publish import create_repository, publish_tree
from tests.support.storage import StorageView

FQRN = "bind.test.org"
BOUND = "/.cvmfs/snapshots/one"


class Bound:
    """A repository whose second revision shows the first one below `/.cvmfs/snapshots/one`."""

    def __init__(self, directory: Path) -> None:
        self.storage = directory / "storage"
        self.directory = directory
        tree = directory / "tree"
        (tree / "sub" / "deep").mkdir(parents=True)
        for file in ("file", "sub/.cvmfscatalog", "sub/deep/file"):
            (tree / file).write_text("first" if "cat" not in file else "")
        create_repository(FQRN, self.storage, directory / "keys")
        first = self.publish()
        (tree / "sub" / "deep" / "file").write_text("second")
        self.bind(first, self.publish())

    def publish(self) -> ContentHash:
        """The root catalog of a new revision."""
        publish_tree(FQRN, self.directory / "tree", self.storage, self.directory / "keys", jobs=1)
        return self.root()

    def root(self) -> ContentHash:
        """The root catalog now."""
        return parse_manifest(split_envelope((self.storage / ".cvmfspublished").read_bytes(), "it").text).root_hash

    def bind(self, bound: ContentHash, into: ContentHash) -> None:
        """Rewrite the root catalog `into` with hidden directories and a bind mountpoint of `bound`."""
        file = self.directory / "catalog"
        file.write_bytes(zlib.decompress((self.storage / into.path(Kind.CATALOG)).read_bytes()))
        with closing(sqlite3.connect(file)) as database, database:
            for path, bits in (("/.cvmfs", flags.HIDDEN), ("/.cvmfs/snapshots", 0), (BOUND, flags.BIND_MOUNTPOINT)):
                values = (*path_hash(path.encode()), *path_hash(path.rpartition("/")[0].encode()))
                name = path.rpartition("/")[2]
                database.execute(
                    "INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, size, mode, mtime,"
                    " flags, name, symlink, uid, gid) VALUES (?, ?, ?, ?, 1, 4096, 16877, 5, ?, ?, '', 0, 0)",
                    (*values, bits | flags.DIRECTORY, name),
                )
            database.execute("INSERT INTO bind_mountpoints VALUES (?, ?, 0)", (BOUND, str(bound)))
        stored = zlib.compress(file.read_bytes())
        named = hash_of(stored)
        place = self.storage / named.path(Kind.CATALOG)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(stored)
        manifest = self.storage / ".cvmfspublished"
        old = parse_manifest(split_envelope(manifest.read_bytes(), "it").text)
        body = replace(old, root_hash=named, root_size=file.stat().st_size).body()
        manifest.write_bytes(replace(unsigned_envelope(body, named.algorithm), signature=b"unsigned").join())


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Bound:
    return Bound(tmp_path_factory.mktemp("bound"))


def test_a_bound_revision_shows_its_own_content_below_its_mountpoint(bound: Bound, tmp_path: Path) -> None:
    shown = StorageView(bound.storage, tmp_path / "cache")
    view = shown.view
    for path, content in (
        (f"{BOUND}/sub/deep/file", b"first"),
        ("/sub/deep/file", b"second"),
        (f"{BOUND}/file", b"first"),
    ):
        assert view.read(shown.walk(path), 0, 99) == content
    assert [one.name for one in view.list(shown.walk(BOUND))] == [b"file", b"sub"]
    assert [one.name for one in view.list(shown.walk(f"{BOUND}/sub"))] == [b".cvmfscatalog", b"deep"]
    assert shown.walk(f"{BOUND}/sub/deep/file") != shown.walk("/sub/deep/file")
    assert shown.walk(f"{BOUND}/file") != shown.walk("/file")


def test_what_is_hidden_is_found_and_not_listed(bound: Bound, tmp_path: Path) -> None:
    shown = StorageView(bound.storage, tmp_path / "cache")
    assert [one.name for one in shown.view.list(ROOT)] == [b"file", b"sub"]
    assert [one.name for one in shown.view.list(shown.walk("/.cvmfs"))] == [b"snapshots"]


def test_a_regular_mountpoint_does_not_take_another_catalog(bound: Bound, tmp_path: Path) -> None:
    other = StorageView(bound.storage, tmp_path / "cache")
    nested = other.view.tree.root.nested[b"/sub"]
    with pytest.raises(Malformed, match="is not the one for"):
        other.loader.load(replace(nested, root=b"/else"), b"/else")


def test_a_bound_tree_that_holds_itself_has_an_end(bound: Bound, tmp_path: Path) -> None:
    shown = StorageView(bound.storage, tmp_path / "cache")
    root = shown.view.tree.root
    itself = shown.loader.load(replace(root.nested[BOUND.encode()], content=root.content), BOUND.encode())
    assert list(itself.nested) == [BOUND.encode() + b"/sub"]
