# SPDX-License-Identifier: BSD-3-Clause
"""A repository as a file system, without a kernel."""

from __future__ import annotations

import gc
import hashlib
import os
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from cernvm.cvmfs import errors
from cernvm.cvmfs.hashes import Algorithm
from cernvm.cvmfs.inodes import ROOT, Inode
from cernvm.cvmfs.magic import Visibility
from cernvm.cvmfs.owners import OwnerMap
from cernvm.cvmfs.publish import create_repository, publish_tree
from cernvm.cvmfs.symlinks import expand
from cernvm.cvmfs.view import Policy
from tests.support.cvmfs import copy_of, fixture
from tests.support.storage import StorageView, catalogs_taken

FQRN = "view.test.org"
ARCH = {b"CVMFS_ARCH": b"x86_64"}


@pytest.fixture
def small(tmp_path: Path) -> StorageView:
    """The repository of the original server."""
    return StorageView(fixture("small") / "repo", tmp_path / "cache", Policy(variables=ARCH))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `keys` and `storage` of a repository of one revision (keys take their time)."""
    directory = tmp_path_factory.mktemp("published")
    create_repository(FQRN, directory / "storage", directory / "keys")
    return directory


class Own:
    """A repository of our own, published again at will."""

    def __init__(self, directory: Path, published: Path) -> None:
        self.tree = directory / "tree"
        self.tree.mkdir()
        self.keys = published / "keys"
        self.storage = copy_of(published / "storage", directory / "storage")
        self.files({"kept": "kept", "changed": "one", "sub/.cvmfscatalog": "", "sub/deep/file": "one", "gone/x": "x"})
        self.shown = StorageView(self.storage, directory / "cache")
        self.view = self.shown.view

    def files(self, contents: Mapping[str, str]) -> None:
        """Write files and publish."""
        for name, content in contents.items():
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_text(content)
        publish_tree(FQRN, self.tree, self.storage, self.keys, jobs=1)

    def names_changed(self) -> set[tuple[Inode, bytes]]:
        """Switch to the newest revision."""
        return set(self.view.switch(self.shown.newest()).names)


@pytest.fixture
def own(tmp_path: Path, published: Path) -> Own:
    return Own(tmp_path, published)


def whole(shown: StorageView, inode: Inode, step: int = 100_000) -> bytes:
    size = shown.view.attributes(inode).size
    return b"".join(shown.view.read(inode, at, step) for at in range(0, size + step, step))


def test_a_chunked_file_reads_alike_however_it_is_cut(small: StorageView) -> None:
    inode = small.walk("big/chunked-26M")
    content = whole(small, inode, 999_983)
    assert hashlib.sha1(content).hexdigest() == "b9f099054b7a14ab00c9d7f37c1f3db64a936464"
    for at, size in ((0, 1), (25_999_999, 100), (26_000_000, 5), (10_000_000, 3_000_000), (524_287, 2)):
        assert small.view.read(inode, at, size) == content[at : at + size]


def test_a_file_is_fetched_at_its_first_read_and_only_then(small: StorageView) -> None:
    inode = small.walk("README.txt")
    before = len(small.storage.taken)
    assert len(small.view.read(inode, 0, 1000)) == 41
    small.view.read(inode, 0, 10)
    small.view.open(inode)
    assert len(small.storage.taken) == before + 1


def test_an_empty_file_needs_no_transfer(small: StorageView) -> None:
    inode = small.walk("nested/.cvmfscatalog")
    before = len(small.storage.taken)
    small.view.open(inode)
    assert small.view.read(inode, 0, 10) == b""
    assert len(small.storage.taken) == before


def test_a_listing_does_not_load_the_catalogs_below(small: StorageView) -> None:
    names = [entry.name for entry in small.view.list(ROOT)]
    assert b"nested" in names
    assert names == sorted(names)
    assert len(catalogs_taken(small.storage.taken)) == 1
    small.walk("nested")
    assert len(catalogs_taken(small.storage.taken)) == 1
    small.view.list(small.walk("nested"))
    assert len(catalogs_taken(small.storage.taken)) == 2


def test_lookup_list_and_attributes_agree(small: StorageView) -> None:
    for directory in ("", "hl", "special", "links", "nested"):
        inode = small.walk(directory)
        for entry in small.view.list(inode):
            shown = small.view.lookup(inode, entry.name)
            assert (shown.inode, stat.S_IFMT(shown.mode)) == (entry.inode, stat.S_IFMT(entry.mode))
            assert small.view.attributes(shown.inode) == shown


def test_hard_links_are_one_inode_and_other_files_are_not(small: StorageView) -> None:
    group = {small.walk(f"hl/{name}") for name in ("h1", "h2", "h3")}
    other = {small.walk(f"hl/{name}") for name in ("g1", "g2")}
    assert (len(group), len(other), group & other) == (1, 1, set())
    assert small.walk("dedup/copy0") != small.walk("dedup/copy1"), "same content, but two files"


def test_inode_numbers_are_the_same_after_a_restart(small: StorageView, tmp_path: Path) -> None:
    again = StorageView(fixture("small") / "repo", tmp_path / "other-cache", Policy(variables=ARCH))
    for path in ("README.txt", "hl/g2", "nested/link", "special/chr", "big"):
        assert again.walk(path) == small.walk(path)


def test_symbolic_links_show_their_variables_expanded_and_their_size_so(small: StorageView) -> None:
    inode = small.walk("links/variant")
    assert small.view.readlink(inode) == b"x86_64/lib"
    assert small.view.attributes(inode).size == 10
    assert small.view.xattr(inode, b"user.rawlink") == b"$(CVMFS_ARCH)/lib"


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"plain", b"plain"),
        (b"$(A)/$(B)", b"1/2"),
        (b"a$(C)b", b"ab"),
        (b"$(C:-other)", b"other"),
        (b"$(A:-other)", b"1"),
        (b"$(A", b"$(A"),
        (b"$A ${A} $(", b"$A ${A} $("),
        (b"$($(A))", b"$($(A))".replace(b"$(A)", b"1")),
    ],
)
def test_variables(target: bytes, shown: bytes) -> None:
    assert expand(target, {b"A": b"1", b"B": b"2"}) == shown


def test_special_files_have_their_device_and_no_content(small: StorageView) -> None:
    shown = small.view.attributes(small.walk("special/chr"))
    assert (stat.S_ISCHR(shown.mode), os.major(shown.device), os.minor(shown.device), shown.size) == (True, 1, 3, 0)
    with pytest.raises(errors.NotReadable):
        small.view.read(shown.inode, 0, 1)


def test_what_cannot_be_done_has_its_own_error(small: StorageView) -> None:
    readme, directory = small.walk("README.txt"), small.walk("hl")
    with pytest.raises(errors.NoEntry):
        small.view.lookup(ROOT, b"absent")
    with pytest.raises(errors.NotDirectory):
        small.view.lookup(readme, b"x")
    with pytest.raises(errors.NotDirectory):
        small.view.list(readme)
    with pytest.raises(errors.IsDirectory):
        small.view.open(directory)
    with pytest.raises(errors.NotReadable):
        small.view.readlink(readme)
    with pytest.raises(errors.NoAttribute):
        small.view.xattr(readme, b"user.absent")
    with pytest.raises(errors.NoEntry):
        small.view.attributes(Inode(12345))
    with pytest.raises(errors.Unreachable, match="is external data, and CVMFS_EXTERNAL_URL does not say"):
        small.view.read(small.walk("external/text"), 0, 1)


def test_owners_and_modes_follow_the_policy(tmp_path: Path) -> None:
    policy = Policy(owner=(11, 22), world_readable=True)
    shown = StorageView(fixture("small") / "repo", tmp_path / "cache", policy)
    attributes = shown.view.attributes(shown.walk("special/blk"))
    assert (attributes.uid, attributes.gid, attributes.mode & 0o777) == (11, 22, 0o644)
    mapped = Policy(users=OwnerMap({0: 33}), groups=OwnerMap({}, 44))
    shown = StorageView(fixture("small") / "repo", tmp_path / "cache", mapped)
    attributes = shown.view.attributes(shown.walk("special/blk"))
    assert (attributes.uid, attributes.gid) == (33, 44)


@pytest.mark.parametrize(
    ("visibility", "on_root", "elsewhere"),
    [(Visibility.ROOT_ONLY, True, False), (Visibility.ALWAYS, True, True), (Visibility.NEVER, False, False)],
)
def test_computed_attributes_are_answered_everywhere_and_listed_as_wanted(
    tmp_path: Path, visibility: Visibility, on_root: bool, elsewhere: bool
) -> None:
    shown = StorageView(fixture("small") / "repo", tmp_path / "cache", Policy(list_magic=visibility))
    readme = shown.walk("README.txt")
    assert (b"user.fqrn" in shown.view.xattr_names(ROOT)) is on_root
    assert (b"user.fqrn" in shown.view.xattr_names(readme)) is elsewhere
    assert shown.view.xattr(readme, b"user.fqrn") == b"small.test.org"
    assert shown.view.xattr(ROOT, b"user.revision") == b"7"
    assert shown.view.xattr(readme, b"user.hash") == b"6c25e61bc15029f9afc4d3a942b7edd37f0f173c"
    assert shown.view.xattr(shown.walk("xattr/f"), b"user.a") == b"value"
    assert b"user.a" in shown.view.xattr_names(shown.walk("xattr/f"))
    chunks = shown.view.xattr(shown.walk("big/chunked-26M"), b"user.chunk_list").split(b"\n")
    assert chunks[0] == b"hash,offset,size"
    assert int(shown.view.xattr(shown.walk("big/chunked-26M"), b"user.chunks")) == len(chunks) - 1


def test_an_inode_is_known_until_it_is_forgotten_as_often_as_looked_up(small: StorageView) -> None:
    inode = small.walk("README.txt")
    small.walk("README.txt")
    small.view.forget(inode, 1)
    assert small.view.attributes(inode).size == 41
    small.view.forget(inode, 1)
    with pytest.raises(errors.NoEntry):
        small.view.attributes(inode)
    small.view.forget(inode, 5)
    small.view.forget(ROOT, 99)
    assert small.view.attributes(ROOT).inode == ROOT


def test_a_switch_names_what_changed_and_nothing_else(own: Own) -> None:
    paths = ("kept", "changed", "sub/deep/file", "gone", "gone/x")
    before = {path: own.shown.walk(path) for path in paths}
    deep = own.shown.walk("sub/deep")
    with pytest.raises(errors.NoEntry):
        own.view.lookup(ROOT, b"new")
    with pytest.raises(errors.NoEntry):
        own.view.lookup(ROOT, b"still-absent")
    (own.tree / "gone" / "x").unlink()
    (own.tree / "gone").rmdir()
    own.files({"changed": "two", "sub/deep/file": "two", "new": "n"})
    assert own.names_changed() == {
        (ROOT, b"changed"),
        (deep, b"file"),
        (ROOT, b"gone"),
        (before["gone"], b"x"),
        (ROOT, b"new"),
    }
    assert own.view.remembers_absent(ROOT, b"still-absent")
    assert not own.view.remembers_absent(ROOT, b"new")
    assert own.shown.walk("kept") == before["kept"]
    assert own.view.read(own.shown.walk("changed"), 0, 10) == b"two"
    assert own.view.read(before["changed"], 0, 10) == b"one", "an inode stands for one content"
    assert own.view.read(before["sub/deep/file"], 0, 10) == b"one"
    with pytest.raises(errors.NoEntry):
        own.view.list(before["gone"])


def test_a_directory_that_becomes_a_file_is_named_and_its_number_is_not_used_again(own: Own) -> None:
    directory = own.shown.walk("gone")
    (own.tree / "gone" / "x").unlink()
    (own.tree / "gone").rmdir()
    own.files({"gone": "now a file"})
    assert own.names_changed() == {(ROOT, b"gone")}
    assert own.shown.walk("gone") != directory
    assert own.view.read(own.shown.walk("gone"), 0, 20) == b"now a file"


def test_directories_keep_their_number_and_tell_new_attributes(own: Own) -> None:
    directory = own.shown.walk("sub/deep")
    before = own.view.attributes(directory)
    (own.tree / "sub" / "deep").chmod(0o700)
    own.files({"sub/deep/other": "x"})
    changes = own.view.switch(own.shown.newest())
    assert directory in changes.directories
    assert own.shown.walk("sub/deep") == directory
    assert own.view.attributes(directory).mode & 0o777 == 0o700 != before.mode & 0o777
    assert [entry.name for entry in own.view.list(directory)] == [b"file", b"other"]


def test_a_switch_to_the_same_content_changes_nothing(own: Own) -> None:
    for path in ("kept", "changed", "sub/deep/file"):
        own.shown.walk(path)
    assert own.names_changed() == set()


def test_unchanged_nested_catalogs_are_shared_between_revisions(own: Own) -> None:
    own.shown.walk("sub/deep/file")
    own.files({"kept": "changed now"})
    tree = own.shown.newest()
    before = len(own.shown.storage.taken)
    tree.preload(own.view.tree)
    assert len(own.shown.storage.taken) == before
    assert tree.catalogs()[b"/sub"] is own.view.tree.catalogs()[b"/sub"]


def test_a_chunked_file_with_the_same_size_and_time_but_another_content_is_another_inode(own: Own) -> None:
    def write(seed: int) -> bytes:
        content = Random(seed).randbytes(9_000_000)
        (own.tree / "large").write_bytes(content)
        os.utime(own.tree / "large", (1e9, 1e9))
        own.files({})
        return content

    old = write(1)
    own.view.switch(own.shown.newest())
    before = own.shown.walk("large")
    assert own.view.xattr(before, b"user.chunks") != b"1"
    new = write(2)
    assert own.names_changed() == {(ROOT, b"large")}
    after = own.shown.walk("large")
    assert (whole(own.shown, after), whole(own.shown, before)) == (new, old)


def test_old_catalogs_are_let_go_although_the_kernel_knows_their_entries(own: Own) -> None:
    own.shown.walk("kept")
    old = weakref.ref(own.view.tree.root)
    own.files({"changed": "two"})
    own.view.switch(own.shown.newest())
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("algorithm", Algorithm)
def test_repositories_of_every_hash_read_back(tmp_path: Path, algorithm: Algorithm) -> None:
    (tmp_path / "tree" / "nested").mkdir(parents=True)
    (tmp_path / "tree" / "nested" / ".cvmfscatalog").touch()
    (tmp_path / "tree" / "nested" / "file").write_text("content")
    create_repository(FQRN, tmp_path / "storage", tmp_path / "keys", algorithm=algorithm)
    publish_tree(FQRN, tmp_path / "tree", tmp_path / "storage", tmp_path / "keys", jobs=1)
    shown = StorageView(tmp_path / "storage", tmp_path / "cache")
    inode = shown.walk("nested/file")
    assert whole(shown, inode) == b"content"
    assert shown.view.xattr(inode, b"user.hash").endswith(algorithm.tag.encode())
